// Operators: which worker holds which run, until when, and what the run has written last.
import { count } from "../lib/format.js"
import { html } from "../lib/html.js"
import { href } from "../lib/router.js"
import { RunCell, useRunActions } from "../operator/actions.js"
import { Listing, useList } from "../settings/parts.js"
import { Badge, Empty, Foreign, Head, Time, useInterval } from "../ui/parts.js"

/** @param {{params: URLSearchParams}} props */
export function Page({ params }) {
  const workerId = params.get("worker_id") ?? ""
  const list = useList("operator/leases", { worker_id: workerId || null, limit: 50 })
  const { cell, notes, dialogs } = useRunActions(list.rows, () => void list.reload())
  useInterval(list.refresh, 5_000, [list.refresh])
  return html`<${Head} title="Leases" />
    <div class="page">
      <p class="lead">Runs that a worker executes, newest first. A worker whose lease ends loses its runs, which another one continues.
        ${workerId && html` These are those of worker <code>…${workerId.slice(-8)}</code>: <a href=${href("/leases")}>show all</a>.`}</p>
      ${notes}
      <${Listing} list=${list} label="Leases" id=${(/** @type {any} */ row) => row.run_id} columns=${columns(cell)}
        empty=${html`<${Empty} icon="clock" title="No run is executed"><p>${workerId ? "This worker has none." : "No worker holds a run now."}</p></${Empty}>`} />
      ${dialogs}
    </div>`
}

/** @param {(row: any) => any} actions @returns {import("../settings/parts.js").Column[]} */
const columns = (actions) => [
  { title: "Run", isTitle: true, cell: (row) => html`<${RunCell} row=${row} />` },
  { title: "State", cell: (row) => html`<${Badge} status=${row.is_held ? row.phase : "worker_lost"} />` },
  { title: "Worker", cell: (row) => html`${row.agent === null ? html`${row.hostname ?? "unknown"} <span class="faint">${row.pid ?? ""}</span>` : html`agent <${Foreign} text=${row.agent} />`}` },
  { title: "Lease ends", class: "nowrap", cell: (row) => html`<${Time} at=${row.lease_expires_at} />` },
  { title: "Attempt", class: "number", cell: (row) => html`${count(row.attempt)}${row.crashes > 0 ? html` <span class="faint">(${row.crashes} lost)</span>` : ""}` },
  { title: "Last event", cell: (row) => row.last_event ? html`<code>${row.last_event}</code><p class="sub"><${Time} at=${row.last_event_at} /></p>` : "–" },
  { title: "Actions", isHidden: true, cell: actions },
]
