// Limits on requests, runs and streams, and budgets on costs.
import { get, put, segment } from "../lib/api.js"
import { count, money, words } from "../lib/format.js"
import { classes, html, useId, useState } from "../lib/html.js"
import { changed, current } from "../settings/edits.js"
import { FormBox, TextField, numberOf, useForm } from "../settings/fields.js"
import { Failed, Section, isAdmin } from "../settings/parts.js"
import { Button, Dialog, Empty, Foreign, Head, Loading, Problem, Time, useInterval, useRead } from "../ui/parts.js"

export function Page() {
  return html`<${Head} title="Limits" /><div class="page">
    ${isAdmin() && html`<${Budget} /><${EndUsers} />`}<${Limits} /></div>`
}

/** How much of an amount is used, as a bar. @param {{used: number, of: number, label: string}} props */
function Bar({ used, of, label }) {
  const share = of > 0 ? Math.min(1, used / of) : 1
  return html`<svg class="bar-of" role="img" aria-label=${`${label}: ${Math.round(share * 100)} % used`}><rect class="track" width="100%" height="6" />
    <rect class=${classes("used", share >= 1 ? "full" : share >= 0.8 && "near")} width=${`${(share * 100).toFixed(1)}%`} height="6" /></svg>`
}

/** @param {{budget: any}} props */
const Spent = ({ budget }) => html`<dl class="facts">
  <div><dt>Spent in ${budget.month}</dt><dd><b>${money(budget.spent_usd)}</b>${budget.max_cost_usd_per_month !== null && html` of ${money(budget.max_cost_usd_per_month)}
    <${Bar} used=${budget.spent_usd + budget.held_usd} of=${budget.max_cost_usd_per_month} label="The month's budget" />`}</dd></div>
  <div><dt>Reserved by active runs</dt><dd>${money(budget.held_usd)}</dd></div>
  <div><dt>Per run</dt><dd>${limitOf(budget.max_cost_usd)}</dd></div>
  <div><dt>Per month</dt><dd>${limitOf(budget.max_cost_usd_per_month)}</dd></div></dl>`

/** @param {number | null} usd */
const limitOf = (usd) => (usd === null ? "no limit" : money(usd))

function Budget() {
  const { data, error, reload } = useRead((signal) => get("budget", {}, signal), [])
  const [open, setOpen] = useState(/** @type {any} */ (null))
  return html`<${Section} title="Budget" about="What the organization's runs may cost. Keys and personas have limits of their own."
      actions=${data && html`<${Button} onClick=${() => setOpen(data)}>Change budget</${Button}>`}>
    ${data === null ? error ? html`<${Failed} error=${error} onRetry=${reload} />` : html`<${Loading} lines=${2} />`
      : html`<${Problem} error=${error} onRetry=${reload} /><${Spent} budget=${data} />`}
    ${open && html`<${Edit} title="Change the budget" path="budget" values=${open} onClose=${() => setOpen(null)} onDone=${() => { setOpen(null); reload() }} />`}
  </${Section}>`
}

function EndUsers() {
  const id = useId()
  const [typed, setTyped] = useState("")
  const [one, setOne] = useState("")
  const each = useRead((signal) => get("budget/end-users", {}, signal), [])
  const found = useRead((signal) => (one === "" ? Promise.resolve(null) : get("budget/end-users", { end_user_id: one }, signal)), [one])
  // The limits that were shown when the form was opened: another end user may be searched for meanwhile.
  const [open, setOpen] = useState(/** @type {any} */ (null))
  const search = (/** @type {Event} */ event) => {
    event.preventDefault()
    // The same name is looked for again: after an error, or when the numbers may have changed.
    if (typed.trim() === one) found.reload()
    else setOne(typed.trim())
  }
  const close = () => setOpen(null)
  const done = () => { close(); each.reload(); found.reload() }
  return html`<${Section} title="Budget of each end user" about="For those that have no budget of their own."
      actions=${each.data && html`<${Button} onClick=${() => setOpen({ kind: "each", shown: each.data })}>Change for each</${Button}>`}>
    ${each.data === null ? each.error ? html`<${Failed} error=${each.error} onRetry=${each.reload} />` : html`<${Loading} lines=${2} />`
      : html`<${Problem} error=${each.error} onRetry=${each.reload} /><dl class="facts"><div><dt>Per run</dt><dd>${limitOf(each.data.max_cost_usd)}</dd></div><div><dt>Per month</dt><dd>${limitOf(each.data.max_cost_usd_per_month)}</dd></div></dl>`}
    <form class="filter-row" onSubmit=${search}><div><label for=${id}>End user</label>
      <input id=${id} class="small" maxlength="128" autocomplete="off" spellcheck=${false} placeholder="customer-7" value=${typed} onInput=${(/** @type {any} */ event) => setTyped(event.target.value)} /></div>
      <${Button} type="submit" class="small" disabled=${typed.trim() === ""} busy=${one !== "" && found.isLoading}>Show budget</${Button}></form>
    <${Problem} error=${found.error} onRetry=${found.reload} />
    ${found.data && html`<div class="card-box"><header><h3><${Foreign} text=${found.data.end_user_id} /></h3><${Button} class="small" onClick=${() => setOpen({ kind: "one", shown: found.data })}>Change</${Button}></header><${Spent} budget=${found.data} /></div>`}
    ${open?.kind === "each" && html`<${Edit} title="Budget of each end user" path="budget/end-users" values=${open.shown} onClose=${close} onDone=${done} />`}
    ${open?.kind === "one" && html`<${Edit} title=${`Budget of ${open.shown.end_user_id}`} path="budget/end-users" values=${open.shown.own ?? open.shown} each=${each.data} endUser=${open.shown.end_user_id} onClose=${close} onDone=${done} />`}
  </${Section}>`
}

/** @param {{title: string, path: string, values: any, each?: any, endUser?: string, onDone: () => void, onClose: () => void}} props
 *   `each` has the limits that one end user inherits where it has none of its own */
function Edit({ title, path, values: before, each, endUser, onDone, onClose }) {
  const initial = { max_cost_usd: before.max_cost_usd ?? "", max_cost_usd_per_month: before.max_cost_usd_per_month ?? "" }
  const limitsOf = (/** @type {Record<string, any>} */ values) =>
    ({ max_cost_usd: numberOf(values, "max_cost_usd"), max_cost_usd_per_month: numberOf(values, "max_cost_usd_per_month") })
  const form = useForm(initial, async (values, sending) => {
    const of = endUser === undefined ? {} : { end_user_id: endUser }
    const changes = changed(limitsOf(values), limitsOf(initial))
    // Both limits are replaced: one that was not changed here is sent as it is now.
    const now = await current(endUser === undefined ? path : `${path}?end_user_id=${segment(endUser)}`, sending)
    const { max_cost_usd, max_cost_usd_per_month } = now.own ?? now
    await put(path, { max_cost_usd, max_cost_usd_per_month, ...changes, ...of }, sending)
    onDone()
  })
  const empty = (/** @type {string} */ name) => ((each?.[name] ?? null) === null ? "No limit" : `Inherited: ${money(each[name])}`)
  return html`<${Dialog} title=${title} onClose=${onClose}><${FormBox} form=${form} action="Save" onCancel=${onClose} isReady=${form.isChanged}>
    <div class="pair"><${TextField} form=${form} name="max_cost_usd" label="USD per run" inputmode="decimal" autofocus placeholder=${empty("max_cost_usd")} />
      <${TextField} form=${form} name="max_cost_usd_per_month" label="USD per month" inputmode="decimal" placeholder=${empty("max_cost_usd_per_month")} /></div>
    ${endUser !== undefined && html`<p class="hint">A limit that is left empty is that of each end user.</p>`}</${FormBox}></${Dialog}>`
}

/** What the operator, or the limits of a key, allow. */
function Limits() {
  const { data, error, reload, refresh } = useRead((signal) => get("me", {}, signal), [])
  useInterval(refresh, 10_000, [])
  const limits = data?.limits ?? []
  return html`<${Section} title="Limits" about="Set by the operator. The numbers are those of this moment.">
    <${Problem} error=${data && error} onRetry=${reload} />
    ${data === null ? error ? html`<${Failed} error=${error} onRetry=${reload} />` : html`<${Loading} lines=${3} />`
      : limits.length === 0 ? !error && html`<${Empty} icon="limits" title="No limits"><p>The operator has not limited requests, runs or streams.</p></${Empty}>`
        : html`<dl class="facts">${limits.map((/** @type {any} */ one) => html`<div key=${one.name + one.scope}><dt>${words(one.name)} of the ${one.scope === "org" ? "organization" : one.scope}</dt>
          <dd>${count(one.used)} of ${count(one.limit)}<${Bar} used=${one.used} of=${one.limit} label=${words(one.name)} />${one.resets_at && html`<span class="sub">resets <${Time} at=${one.resets_at} /></span>`}</dd></div>`)}</dl>`}
    ${data && html`<p class="faint">In each round of turns, ${data.weight} of the organization's queued runs ${data.weight === 1 ? "starts" : "start"}.</p>`}
  </${Section}>`
}
