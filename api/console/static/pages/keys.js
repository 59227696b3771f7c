// API keys: whose they are, what they may do, and how to end them.
import { post, remove } from "../lib/api.js"
import { now } from "../lib/clock.js"
import { money } from "../lib/format.js"
import { html, useState } from "../lib/html.js"
import { me } from "../lib/session.js"
import { CheckField, ChecksField, FormBox, SelectField, TextField, numberOf, useForm } from "../settings/fields.js"
import { Confirm, Listing, Name, Secret, isAdmin, useList } from "../settings/parts.js"
import { Badge, Button, Dialog, Empty, Foreign, Head, Time } from "../ui/parts.js"

/** What a scope allows, in the order of the form. @type {[string, string][]} */
const SCOPES = [
  ["data.threads.read", "Read threads"], ["data.threads.write", "Write threads"],
  ["data.runs.read", "Read runs"], ["data.runs.write", "Start and steer runs"],
  ["data.files.read", "Read files"], ["data.files.write", "Upload files"],
  ["tools.work", "Work as a tool worker, send results of HTTP tools"], ["agents.work", "Work as an agent worker"],
  ["admin", "Administer the organization"], ["operator", "Operate the service, for all organizations"],
]
const NAMES = new Map(SCOPES)
/** @type {[string, string][]} */
const LIVES = [["30", "30 days"], ["90", "90 days"], ["365", "One year"], ["", "Never"]]

export function Page() {
  const list = useList("api-keys", { limit: 50 })
  const [isNew, setNew] = useState(false)
  const [made, setMade] = useState(/** @type {any} */ (null))
  const [leaving, setLeaving] = useState(/** @type {any} */ (null))
  const onMade = (/** @type {any} */ key) => {
    setNew(false)
    setMade(key)
    void list.reload()
  }
  const create = html`<${Button} kind="primary" icon="plus" onClick=${() => setNew(true)}>Create key</${Button}>`
  return html`<${Head} title="API keys" actions=${create} />
    <div class="page">
      <p class="lead">A key lets a program call the API as the member who created it, within its scopes.
        ${isAdmin() ? " You see the keys of all members." : " You see your own keys."}</p>
      <${Listing} list=${list} label="API keys" columns=${columns(setLeaving)}
        empty=${html`<${Empty} icon="key" title="No API keys yet"><p>Create one for each program that calls the API, so that each can be revoked alone.</p></${Empty}>`} />
    </div>
    ${isNew && html`<${NewKey} onMade=${onMade} onClose=${() => setNew(false)} />`}
    ${made && html`<${Secret} title="API key created" secret=${made.key} label="API key" onClose=${() => setMade(null)}
      lost="The key was created, but the network has lost the response that contained it. Revoke this key and create another.">
      <p>Send it as <code>Authorization: Bearer …</code> with each request.</p></${Secret}>`}
    ${leaving && html`<${Confirm} title="Revoke this key?" action="Revoke key" onClose=${() => setLeaving(null)}
      run=${async (/** @type {import("../lib/api.js").Sending} */ sending) => { await remove(`api-keys/${leaving.id}`, sending); await list.reload() }}>
      <p><b><${Foreign} text=${leaving.name} /></b> (<code>${leaving.key_prefix}…</code>) stops working within 5 seconds, and its active runs are cancelled.</p>
      <p>This cannot be undone.</p></${Confirm}>`}`
}

/** @param {(key: any) => void} revoke @returns {import("../settings/parts.js").Column[]} */
const columns = (revoke) => [
  { title: "Name", isTitle: true, cell: (key) => html`<${Name} text=${key.name} /><span class="sub"><code>${key.key_prefix}…</code>${isAdmin() && key.user_id === me.get()?.id ? " · yours" : ""}</span>` },
  { title: "Scopes", cell: (key) => html`<${Scopes} scopes=${key.scopes} />` },
  { title: "Limits", class: "nowrap", cell: (key) => limits(key) },
  { title: "Last used", class: "nowrap", cell: (key) => key.last_used_at ? html`<${Time} at=${key.last_used_at} />` : html`<span class="faint">never</span>` },
  { title: "Expires", class: "nowrap", cell: (key) => key.expires_at ? html`<${Time} at=${key.expires_at} />` : html`<span class="faint">never</span>` },
  { title: "Status", cell: (key) => html`<${Badge} status=${statusOf(key)} />` },
  { title: "Actions", isHidden: true, cell: (key) => statusOf(key) === "active" && html`<${Button} kind="quiet" class="small danger-text"
    aria-label=${`Revoke ${key.name}`} onClick=${() => revoke(key)}>Revoke</${Button}>` },
]

/** @param {any} key */
function statusOf(key) {
  if (key.revoked_at) return "revoked"
  return key.expires_at && Date.parse(key.expires_at) < now() ? "expired" : "active"
}

/** @param {any} key */
function limits(key) {
  if (key.max_cost_usd === null && key.max_cost_usd_per_month === null) return html`<span class="faint">none</span>`
  return html`${key.max_cost_usd !== null && html`<div>${money(key.max_cost_usd)} / run</div>`}
    ${key.max_cost_usd_per_month !== null && html`<div>${money(key.max_cost_usd_per_month)} / month</div>`}`
}

/** @param {{scopes: string[]}} props */
function Scopes({ scopes }) {
  const data = SCOPES.filter(([scope]) => scope.startsWith("data.")).map(([scope]) => scope)
  const isAllData = data.every((scope) => scopes.includes(scope))
  const shown = SCOPES.every(([scope]) => scope === "operator" || scopes.includes(scope)) && !scopes.includes("operator") ? ["all"] : isAllData ? ["all data", ...scopes.filter((scope) => !data.includes(scope))] : scopes
  return html`<span class="tags">${shown.map((scope) => html`<span class="tag" key=${scope} title=${NAMES.get(scope) ?? scope}>${scope}</span>`)}</span>`
}

/** @param {{onMade: (key: any) => void, onClose: () => void}} props */
function NewKey({ onMade, onClose }) {
  const mine = me.get()?.permissions ?? []
  const scopes = SCOPES.filter(([scope]) => mine.includes(scope))
  const initial = {
    name: "", scopes: scopes.map(([scope]) => scope).filter((scope) => scope.startsWith("data.")), expires_at: "90",
    hasLimits: false, max_cost_usd: "", max_cost_usd_per_month: "",
  }
  const form = useForm(initial, async (values, sending) => {
    const days = Number(values.expires_at)
    const limits = values.hasLimits
      ? { max_cost_usd: numberOf(values, "max_cost_usd"), max_cost_usd_per_month: numberOf(values, "max_cost_usd_per_month") } : {}
    onMade(await post("api-keys", {
      name: values.name.trim(), scopes: values.scopes, ...limits,
      ...(days ? { expires_at: new Date(now() + days * 86_400_000).toISOString() } : {}),
    }, sending))
  })
  return html`<${Dialog} title="Create an API key" onClose=${onClose}>
    <${FormBox} form=${form} action="Create key" onCancel=${onClose} isReady=${form.values.name.trim() !== "" && form.values.scopes.length > 0}>
      <${TextField} form=${form} name="name" label="Name" required autofocus maxlength="200" placeholder="Billing service, production" hint="For the program that will use it." />
      <${ChecksField} form=${form} name="scopes" label="Scopes" options=${scopes} />
      <${SelectField} form=${form} name="expires_at" label="Expires after" options=${LIVES} />
      ${isAdmin() && html`<${CheckField} form=${form} name="hasLimits" label="Limit the cost of its runs" />`}
      ${form.values.hasLimits && html`<div class="pair">
        <${TextField} form=${form} name="max_cost_usd" label="USD per run" inputmode="decimal" placeholder="No limit" />
        <${TextField} form=${form} name="max_cost_usd_per_month" label="USD per month" inputmode="decimal" placeholder="No limit" /></div>`}
    </${FormBox}>
  </${Dialog}>`
}
