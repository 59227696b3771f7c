// Webhook endpoints, and what was delivered to them.
import { get, isGone, patch, post, removeIfThere } from "../lib/api.js"
import { now } from "../lib/clock.js"
import { html, useRef, useState } from "../lib/html.js"
import { go, href } from "../lib/router.js"
import { may } from "../lib/session.js"
import { save } from "../settings/edits.js"
import { AreaField, ChecksField, FormBox, TextField, useForm } from "../settings/fields.js"
import { Confirm, Facts, Failed, Listing, Name, Secret, Section, isAdmin, useList } from "../settings/parts.js"
import { Rotation } from "../settings/rotation.js"
import { Data } from "../ui/json.js"
import { Badge, Button, Dialog, Empty, Foreign, Head, Id, Loading, Problem, Time, useAction, useInterval, useRead } from "../ui/parts.js"

/** @type {[string, string][]} */
const EVENTS = ["run.completed", "run.failed", "run.cancelled", "run.waiting_for_input", "budget.threshold_reached"].map((name) => [name, name])
/** Of a new endpoint, whose secret no service has. */
const LOST = "The network has lost the response that contained the secret. Rotate the secret of the endpoint to get another."
const Verified = () => html`<p>Your service verifies the signature of each message with this secret, by a library of Standard Webhooks.</p>`

/** @param {{id?: string, params: URLSearchParams}} props */
export const Page = ({ id, params }) => (id === undefined ? html`<${List} />` : html`<${Endpoint} key=${id} id=${id} state=${params.get("state") ?? ""} />`)

function List() {
  const list = useList("webhook-endpoints", { limit: 50 })
  const [isNew, setNew] = useState(false)
  const [made, setMade] = useState(/** @type {any} */ (null))
  const onMade = (/** @type {any} */ endpoint) => {
    setNew(false)
    setMade(endpoint)
  }
  return html`<${Head} title="Webhooks" actions=${isAdmin() && html`<${Button} kind="primary" icon="plus" onClick=${() => setNew(true)}>Add endpoint</${Button}>`} />
    <div class="page"><p class="lead">Addresses that are notified when runs end or wait for a person, and when budgets run low. Messages are signed, and repeated until they arrive.</p>
    <${Listing} list=${list} label="Webhook endpoints" columns=${[
      { title: "Address", isTitle: true, cell: (/** @type {any} */ one) => html`<a class="row-link" href=${href(`/webhooks/${one.id}`)}><${Name} text=${one.url} /></a>${one.description && html`<span class="sub"><${Name} text=${one.description} /></span>`}` },
      { title: "Events", cell: (/** @type {any} */ one) => one.event_types.length === EVENTS.length ? "all" : html`<span class="tags">${one.event_types.map((/** @type {string} */ type) => html`<span class="tag" key=${type}>${type}</span>`)}</span>` },
      { title: "Status", class: "nowrap", cell: (/** @type {any} */ one) => html`<${Status} endpoint=${one} />` },
      { title: "Created", class: "nowrap", cell: (/** @type {any} */ one) => html`<${Time} at=${one.created_at} />` },
    ]} empty=${html`<${Empty} icon="webhook" title="No endpoints yet"><p>Add the address of your service to learn when runs end, without polling.</p></${Empty}>`} /></div>
    ${isNew && html`<${Edit} endpoint=${null} onDone=${onMade} onClose=${() => setNew(false)} />`}
    ${made && html`<${Secret} title="Endpoint added" secret=${made.signing_secret} label="Signing secret" lost=${LOST} onClose=${() => go(`/webhooks/${made.id}`)}><${Verified} /></${Secret}>`}`
}

/** @param {{endpoint: any}} props */
function Status({ endpoint }) {
  if (!endpoint.enabled) return html`<${Badge} status="disabled" text=${endpoint.disabled_reason === "gone" ? "disabled: gone" : "disabled"} />`
  return endpoint.failing_since ? html`<${Badge} status="failed" text="failing" />` : html`<${Badge} status="active" />`
}

/** @param {{endpoint: any, onDone: (endpoint: any) => void, onClose: () => void}} props */
function Edit({ endpoint, onDone, onClose }) {
  const initial = { url: endpoint?.url ?? "", description: endpoint?.description ?? "", event_types: endpoint?.event_types ?? EVENTS.map(([name]) => name) }
  const form = useForm(initial, async (values, sending) => {
    const fields = { ...values, url: values.url.trim() }
    onDone(await (endpoint === null ? post("webhook-endpoints", fields, sending) : save(`webhook-endpoints/${endpoint.id}`, { fields, before: initial }, sending)))
  })
  return html`<${Dialog} title=${endpoint === null ? "Add an endpoint" : "Edit the endpoint"} onClose=${onClose}>
    <${FormBox} form=${form} action=${endpoint === null ? "Add endpoint" : "Save"} onCancel=${onClose} isReady=${form.values.url.trim() !== "" && form.values.event_types.length > 0}>
      <${TextField} form=${form} name="url" label="Address" type="url" required autofocus placeholder="https://shop.example.com/hooks/arkloop" />
      <${AreaField} form=${form} name="description" label="Description" rows="2" spellcheck=${true} />
      <${ChecksField} form=${form} name="event_types" label="Events" options=${EVENTS} />
    </${FormBox}></${Dialog}>`
}

/** @type {[string, string][]} */
const STATES = [["", "All"], ["pending", "Pending"], ["delivered", "Delivered"], ["dead", "Dead"]]

/** Deliveries are read often from this long before an attempt. */
const SOON_MS = 5_000
/** Until this long after its time: what is not attempted by then may wait for an earlier delivery of its run. */
const OVERDUE_MS = 60_000
/** Each reading has all rows that are shown: without an attempt to come, there is a pause between two. */
const PAUSE_MS = 30_000

/** @param {{id: string, state: string}} props */
function Endpoint({ id, state }) {
  const path = `webhook-endpoints/${id}`
  const { data, error, reload, refresh } = useRead((signal) => get(path, {}, signal), [])
  const list = useList(`${path}/deliveries`, { state, limit: 50 })
  const action = useAction()
  const [open, setOpen] = useState(/** @type {any} */ (null))
  const update = () => Promise.all([list.reload(), reload()])
  // What somebody else has deleted is found when it is to be changed: the page would still show it as active.
  const shown = (/** @type {Promise<any>} */ request) => request.then(update, (error) => {
    if (isGone(error)) reload()
    throw error
  })
  const close = () => { setOpen(null); reload() }
  const refreshedAt = useRef(Date.now())
  const refreshBoth = () => {
    const pending = list.rows?.filter((row) => row.state === "pending") ?? []
    const isNear = (/** @type {number} */ ahead) => ahead > -OVERDUE_MS && ahead < SOON_MS
    // Nothing is attempted at an endpoint that is disabled.
    const isSoon = data?.enabled && pending.some((row) => isNear(Date.parse(row.next_attempt_at) - now()))
    // Not while a dialog is open: it would go with the endpoint, before the response that says that it was deleted.
    if (open !== null || pending.length === 0 || (!isSoon && Date.now() - refreshedAt.current < PAUSE_MS)) return
    refreshedAt.current = Date.now()
    list.refresh()
    refresh()
  }
  useInterval(refreshBoth, 3_000, [list.rows, data?.enabled, open])
  if (data === null) {
    return html`<${Head} title="Webhook endpoint" back=${href("/webhooks")} /><div class="page">${error ? html`<${Failed} error=${error} onRetry=${reload} />` : html`<${Loading} />`}</div>`
  }
  const test = () => action.run((sending) => shown(post(`${path}:test`, undefined, sending)))
  const redeliver = (/** @type {string} */ delivery, /** @type {import("../lib/api.js").Sending} */ sending) => shown(post(`${path}:replay`, { delivery_ids: [delivery] }, sending))
  return html`<${Head} title=${html`<${Name} text=${data.url} />`} back=${href("/webhooks")} actions=${html`
      <${Button} busy=${action.isBusy} disabled=${!data.enabled} onClick=${test}>Send test</${Button}><${Button} onClick=${() => setOpen({ kind: "edit", endpoint: data })}>Edit</${Button}>`}>
      <${Status} endpoint=${data} /></${Head}>
    <div class="page">
      <${Problem} error=${error} onRetry=${reload} /><${Problem} error=${action.error} />
      <${Facts} rows=${[["Id", html`<${Id} id=${data.id} />`], ["Events", data.event_types.length === EVENTS.length ? "all" : data.event_types.join(", ")],
        ["Failing since", html`<${Time} at=${data.failing_since} />`], ["Former secret until", html`<${Time} at=${data.former_secret_until} />`]]} />
      ${data.description && html`<p class="lead"><${Foreign} text=${data.description} /></p>`}
      <${Section} title="Deliveries" about="Of the last 35 days. A delivery is tried again for three days, then it is dead." actions=${html`
          <select class="small" aria-label="State" value=${state} onChange=${(/** @type {any} */ event) => go(`/webhooks/${id}`, { state: event.target.value })}>
            ${STATES.map(([value, text]) => html`<option key=${value} value=${value}>${text}</option>`)}</select>
          <${Button} class="small" onClick=${() => setOpen({ kind: "replay" })}>Redeliver the dead</${Button}>`}>
        <${Listing} list=${list} label="Deliveries" columns=${deliveryColumns((delivery) => setOpen({ kind: "delivery", delivery }), redeliver)}
          empty=${html`<${Empty} icon="webhook" title="No deliveries"><p>Send a test to see whether your service receives messages.</p></${Empty}>`} />
      </${Section}>
      <${Section} title="Administration"><div class="actions">
        <${Button} onClick=${() => setOpen({ kind: "rotate" })}>Rotate secret</${Button}>
        <${Button} busy=${action.isBusy} onClick=${() => action.run((sending) => shown(patch(path, { enabled: !data.enabled }, sending)))}>${data.enabled ? "Disable" : "Enable"}</${Button}>
        <${Button} class="danger-text" onClick=${() => setOpen({ kind: "delete" })}>Delete endpoint</${Button}></div></${Section}>
    </div>
    ${open?.kind === "edit" && html`<${Edit} endpoint=${open.endpoint} onClose=${close} onDone=${close} />`}
    ${open?.kind === "delivery" && html`<${Delivery} path=${path} row=${open.delivery} onClose=${close} />`}
    ${open?.kind === "replay" && html`<${Confirm} title="Deliver the dead again?" action="Redeliver" kind="primary" onClose=${close} run=${async (/** @type {import("../lib/api.js").Sending} */ sending) => { await post(`${path}:replay`, undefined, sending); await update() }}>
      <p>The 1,000 oldest dead deliveries are tried again, under the ids that they have.</p></${Confirm}>`}
    ${open?.kind === "rotate" && html`<${Rotation} path=${path} signed="messages" onClose=${close}><${Verified} /></${Rotation}>`}
    ${open?.kind === "delete" && html`<${Confirm} title="Delete this endpoint?" action="Delete endpoint" onClose=${() => setOpen(null)} run=${async (/** @type {import("../lib/api.js").Sending} */ sending) => { await removeIfThere(path, sending); go("/webhooks") }}>
      <p>Nothing is delivered to <b><${Foreign} text=${data.url} /></b> any more, and its deliveries are no longer shown.</p></${Confirm}>`}`
}

/** @typedef {(delivery: string, sending: import("../lib/api.js").Sending) => Promise<unknown>} Redelivery */

/** @param {(delivery: any) => void} show @param {Redelivery} redeliver @returns {import("../settings/parts.js").Column[]} */
const deliveryColumns = (show, redeliver) => [
  { title: "Event", isTitle: true, cell: (one) => html`<button type="button" class="link" onClick=${() => show(one)}>${one.type}</button>
    ${one.run_id && html`<span class="sub"><${RunOf} id=${one.run_id} /></span>`}` },
  { title: "State", cell: (one) => html`<${Badge} status=${one.state} />` },
  { title: "Response", cell: (one) => html`${one.response_status ?? ""}${one.error && html`<span class="sub"> <${Name} text=${one.error} /></span>`}${one.response_status === null && !one.error && html`<span class="faint">none yet</span>`}` },
  { title: "Attempts", class: "number", cell: (one) => one.attempts },
  { title: "Created", class: "nowrap", cell: (one) => html`<${Time} at=${one.created_at} />` },
  { title: "Next attempt", class: "nowrap", cell: (one) => one.state === "pending" ? html`<${Time} at=${one.next_attempt_at} />` : "–" },
  { title: "Actions", isHidden: true, cell: (one) => html`<${Redeliver} delivery=${one} redeliver=${redeliver} />` },
]

/** As a link for people who may see the run. @param {{id: string}} props */
function RunOf({ id }) {
  const name = `run …${id.slice(-8)}`
  return may("data.runs.read") ? html`<a href=${href(`/runs/${id}`)}>${name}</a>` : name
}

/** With its own error, which is in the row: the top of the page may be far away. @param {{delivery: any, redeliver: Redelivery}} props */
function Redeliver({ delivery: { id, type }, redeliver }) {
  const action = useAction()
  return html`<${Button} kind="quiet" class="small" busy=${action.isBusy} aria-label=${`Redeliver ${type} ${id.slice(-8)}`}
      onClick=${() => action.run((sending) => redeliver(id, sending))}>Redeliver</${Button}>
    <${Problem} error=${action.error} />`
}

/** @param {{path: string, row: any, onClose: () => void}} props */
function Delivery({ path, row, onClose }) {
  const { data, error, reload } = useRead((signal) => get(`${path}/deliveries/${row.id}`, {}, signal), [])
  return html`<${Dialog} title=${row.type} onClose=${onClose}>
    ${data === null ? html`<div>${error ? html`<${Problem} error=${error} onRetry=${reload} />` : html`<${Loading} lines=${3} />`}</div>` : html`<div>
      <${Facts} rows=${[["Message id", html`<${Id} id=${data.id} />`], ["State", html`<${Badge} status=${data.state} />`], ["Attempts", data.attempts],
        ["Last attempt", html`<${Time} at=${data.tried_at} />`], ["Last response", `${data.response_status ?? "–"} ${data.error ?? ""}`], ["Delivered", html`<${Time} at=${data.delivered_at} />`]]} />
      <${Data} value=${data.data} label="Data" /></div>`}
  </${Dialog}>`
}
