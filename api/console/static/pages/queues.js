// Operators: how many runs wait for a worker, for how long, and whose they are.
import { get } from "../lib/api.js"
import { now } from "../lib/clock.js"
import { count, duration } from "../lib/format.js"
import { html } from "../lib/html.js"
import { MOST } from "../operator/lists.js"
import { Suspended, useOrgActions } from "../operator/orgs.js"
import { Failed, Name, Section, Table } from "../settings/parts.js"
import { Button, Empty, Head, Loading, Problem, Time, useInterval, useRead } from "../ui/parts.js"

const CLASSES = ["1", "2-10", "11-100", "101+"]

export function Page() {
  const { data, error, reload, refresh } = useRead((signal) => get("operator/queues", {}, signal), [])
  const { cell, note, dialogs } = useOrgActions(reload)
  useInterval(refresh, 5_000, [])
  if (data === null) return html`<${Head} title="Queues" /><div class="page">${error ? html`<${Failed} error=${error} onRetry=${reload} />` : html`<${Loading} />`}</div>`
  // Queued runs of the others wait for no worker.
  const open = data.orgs.filter((/** @type {any} */ org) => org.suspended_at === null)
  const oldest = open[0]?.oldest_queued_at
  const isPart = data.orgs.length >= MOST
  // Zeros and "Nothing is going on" are statements about now.
  const isKnown = !error || data.orgs.length > 0
  const figures = [
    ["Queued", count(sum(open, "queued"))],
    ["Oldest", oldest ? duration(Math.max(0, now() - Date.parse(oldest))) : "–"],
    ["For agent workers", count(sum(open, "queued_for_agents"))],
    ["Executing", count(sum(data.orgs, "executing"))],
    ["Waiting", count(sum(data.orgs, "waiting"))],
    ["Not yet due", count(sum(data.orgs, "not_yet_due"))],
  ]
  return html`<${Head} title="Queues" actions=${html`<${Button} kind="quiet" icon="retry" label="Reload" onClick=${reload} />`} />
    <div class="page">
      <p class="lead">Runs ${isPart ? `of the ${MOST} organizations below` : "of all organizations"} that have not ended. It is read again every 5 seconds.
        ${isPart && " There may be more organizations: only the classes count the queued runs of all."} Queued runs of suspended organizations are listed in the last table, and not counted.</p>
      <${Problem} error=${error} onRetry=${reload} />
      ${note}
      ${isKnown && html`<dl class="figures">${figures.map(([name, value]) => html`<div key=${name}><dt>${name}</dt><dd>${value}</dd></div>`)}</dl>
      <${Section} title="By class" about="Organizations by their number of queued runs. While turns work, small organizations do not wait behind a flood.">
        <${Table} label="Queue by class" id=${(/** @type {any} */ row) => row.queued_per_org} rows=${CLASSES.map((name) => byClass(data.classes, name))} columns=${[
          { title: "Queued runs each", isTitle: true, cell: (/** @type {any} */ row) => row.queued_per_org },
          { title: "Organizations", class: "number", cell: (/** @type {any} */ row) => count(row.orgs) },
          { title: "Runs", class: "number", cell: (/** @type {any} */ row) => count(row.runs) },
          { title: "Oldest waits for", class: "number", cell: (/** @type {any} */ row) => row.runs ? duration(row.oldest_seconds * 1000) : "–" },
        ]} />
        <p class="faint">Measured <${Time} at=${data.measured_at} />.</p></${Section}>
      <${Section} title="By organization" about="The longest wait for a worker comes first, of at most 200. Suspended organizations come last, and are listed without runs, too.">
        ${data.orgs.length === 0 ? html`<${Empty} icon="runs" title="Nothing is going on"><p>No run is queued, executed or waiting.</p></${Empty}>` : html`<${Table} label="Queue by organization"
          id=${(/** @type {any} */ row) => row.org_id} rows=${data.orgs} columns=${columns(cell)} />`}</${Section}>`}
      ${dialogs}
    </div>`
}

/** @param {any[]} orgs @param {string} name */
const sum = (orgs, name) => orgs.reduce((all, org) => all + org[name], 0)

/** @param {any[]} classes @param {string} name */
const byClass = (classes, name) => classes.find((one) => one.queued_per_org === name)
  ?? { queued_per_org: name, orgs: 0, runs: 0, oldest_seconds: 0 }

/** @param {(row: any) => any} actions @returns {import("../settings/parts.js").Column[]} */
const columns = (actions) => [
  { title: "Organization", isTitle: true, cell: (row) => html`<${Name} text=${row.name} /><span class="sub">${row.slug ?? `…${row.org_id.slice(-8)}`}${row.weight > 1 ? ` · weight ${row.weight}` : ""}</span><${Suspended} org=${row} />` },
  { title: "Queued", class: "number", cell: (row) => count(row.queued) },
  { title: "Oldest", class: "nowrap", cell: (row) => html`<${Time} at=${row.oldest_queued_at} />` },
  { title: "For agents", class: "number", cell: (row) => count(row.queued_for_agents) },
  { title: "Executing", class: "number", cell: (row) => count(row.executing) },
  { title: "Waiting", class: "number", cell: (row) => count(row.waiting) },
  { title: "Not yet due", class: "number", cell: (row) => count(row.not_yet_due) },
  { title: "Actions", isHidden: true, cell: actions },
]
