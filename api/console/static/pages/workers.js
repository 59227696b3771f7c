// Operators: the worker processes, whether they are alive, and how many runs each holds.
import { get } from "../lib/api.js"
import { count } from "../lib/format.js"
import { html } from "../lib/html.js"
import { href } from "../lib/router.js"
import { MOST } from "../operator/lists.js"
import { Failed, Table } from "../settings/parts.js"
import { Badge, Button, Empty, Foreign, Head, Loading, Problem, Time, useInterval, useRead } from "../ui/parts.js"

export function Page() {
  const { data, error, reload, refresh } = useRead((signal) => get("operator/workers", {}, signal), [])
  useInterval(refresh, 5_000, [])
  // "0 alive" and "No worker is known" are statements about now.
  if (data === null || (error && data.items.length === 0)) return html`<${Head} title="Workers" /><div class="page">${error ? html`<${Failed} error=${error} onRetry=${reload} />` : html`<${Loading} />`}</div>`
  const isPart = data.items.length >= MOST
  const alive = data.items.filter((/** @type {any} */ one) => one.is_alive)
  return html`<${Head} title="Workers" actions=${html`<${Button} kind="quiet" icon="retry" label="Reload" onClick=${reload} />`} />
    <div class="page">
      <p class="lead">${isPart ? `The first ${MOST} worker processes, those that are alive first, of maybe more` : "Worker processes"} that were heard within the last day: ${count(alive.length)} alive, ${count(data.items.length - alive.length)} away. One that is stopped is
        not listed; one that is away was killed, is frozen or cut off.</p>
      <${Problem} error=${error} onRetry=${reload} />
      ${data.items.length === 0
        ? html`<${Empty} icon="alert" title="No worker is known"><p>Runs are accepted, and wait until a worker is started.</p></${Empty}>`
        : html`<${Table} label="Workers" rows=${data.items} columns=${COLUMNS} />`}
    </div>`
}

/** @type {import("../settings/parts.js").Column[]} */
const COLUMNS = [
  { title: "Process", isTitle: true, cell: (row) => html`${row.agent === null ? html`${row.hostname} <span class="faint">process ${row.pid}</span>` : html`agent <${Foreign} text=${row.agent} />`}
    <span class="sub"><code>…${row.id.slice(-8)}</code>${row.org_id ? html` · org <code>…${row.org_id.slice(-8)}</code>` : ""}</span>` },
  { title: "State", cell: (row) => html`<${Badge} status=${row.is_alive ? "alive" : "away"} />` },
  { title: "Runs", class: "number", cell: (row) => row.runs > 0 ? html`<a href=${href("/leases", { worker_id: row.id })}>${count(row.runs)}</a>` : "0" },
  { title: "Last seen", class: "nowrap", cell: (row) => html`<${Time} at=${row.seen_at} />` },
  { title: "Lease ends", class: "nowrap", cell: (row) => html`<${Time} at=${row.lease_expires_at} />` },
  { title: "Started", class: "nowrap", cell: (row) => html`<${Time} at=${row.started_at} />` },
]
