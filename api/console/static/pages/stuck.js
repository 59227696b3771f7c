// Operators: runs that should have moved on by now, each with what is wrong.
import { get } from "../lib/api.js"
import { html, useId } from "../lib/html.js"
import { go } from "../lib/router.js"
import { RunCell, useRunActions } from "../operator/actions.js"
import { MOST } from "../operator/lists.js"
import { Failed, Name, Table } from "../settings/parts.js"
import { Badge, Empty, Head, Loading, Problem, Time, useInterval, useRead } from "../ui/parts.js"

/** What is wrong, for people. @type {Record<string, string>} */
const PROBLEMS = {
  queued: "No worker has taken it.",
  worker_lost: "Its worker's lease has expired.",
  silent: "It writes nothing, and its worker is alive.",
  cancelling: "It was to be cancelled, and has not ended.",
  overdue: "The sweep should have ended or started it.",
}
const QUEUED = /** @type {[string, string][]} */ ([["10", "10 seconds"], ["60", "1 minute"], ["600", "10 minutes"], ["3600", "1 hour"]])
const SILENT = /** @type {[string, string][]} */ ([["60", "1 minute"], ["600", "10 minutes"], ["3600", "1 hour"], ["86400", "1 day"]])

/** @param {{params: URLSearchParams}} props */
export function Page({ params }) {
  const limits = { queued_seconds: params.get("queued_seconds") ?? "60", silent_seconds: params.get("silent_seconds") ?? "600" }
  const { data, error, reload, refresh } = useRead((signal) => get("operator/stuck-runs", limits, signal), [JSON.stringify(limits)])
  const { cell, notes, dialogs } = useRunActions(data?.items, reload)
  useInterval(refresh, 5_000, [])
  const isPart = data?.items.length >= MOST
  const set = (/** @type {Partial<typeof limits>} */ changed) => go("/stuck", { ...limits, ...changed }, { replace: true })
  return html`<${Head} title="Stuck runs" />
    <div class="page">
      <p class="lead">Runs of all organizations that should have moved on by now, the longest stuck first${isPart && `: ${MOST} of maybe more`}. Queueing a run again is safe at any time: one that a worker holds is left to it.</p>
      <div class="filter-row">
        <${Choice} label="Queued for longer than" value=${limits.queued_seconds} options=${QUEUED} onChange=${(/** @type {string} */ value) => set({ queued_seconds: value })} />
        <${Choice} label="Silent for longer than" value=${limits.silent_seconds} options=${SILENT} onChange=${(/** @type {string} */ value) => set({ silent_seconds: value })} />
      </div>
      ${notes}
      ${data === null ? error ? html`<${Failed} error=${error} onRetry=${reload} />` : html`<${Loading} />` : html`<${Problem} error=${error} onRetry=${reload} />
        ${data.items.length === 0 ? !error && html`<${Empty} icon="check" title="Nothing is stuck"><p>All runs move on, or wait for people.</p></${Empty}>`
          : html`<${Table} label="Stuck runs" id=${(/** @type {any} */ row) => row.run_id} rows=${data.items} columns=${columns(cell)} />`}`}
      ${dialogs}
    </div>`
}

/** @param {{label: string, value: string, options: [string, string][], onChange: (value: string) => void}} props */
function Choice({ label, value, options, onChange }) {
  const id = useId()
  const isKnown = options.some(([one]) => one === value)
  return html`<div><label for=${id}>${label}</label><select id=${id} class="small" value=${value} onChange=${(/** @type {any} */ event) => onChange(event.target.value)}>
    ${!isKnown && html`<option value=${value}>${value} seconds</option>`}${options.map(([one, text]) => html`<option key=${one} value=${one}>${text}</option>`)}</select></div>`
}

/** @param {(row: any) => any} actions @returns {import("../settings/parts.js").Column[]} */
const columns = (actions) => [
  { title: "Run", isTitle: true, cell: (row) => html`<${RunCell} row=${row} />` },
  { title: "Problem", cell: (row) => html`<${Badge} status=${row.problem} /><p class="sub">${PROBLEMS[row.problem] ?? ""}</p>` },
  { title: "Since", class: "nowrap", cell: (row) => html`<${Time} at=${row.since} />` },
  { title: "Organization", cell: (row) => html`<${Name} text=${row.org_name} />` },
  { title: "Attempt", class: "number", cell: (row) => row.attempt },
  { title: "Actions", isHidden: true, cell: actions },
]
