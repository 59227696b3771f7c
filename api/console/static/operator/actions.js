// What operators do to a run of any org: ask why it is where it is, queue it again, cancel it.
import { get, post, segment } from "../lib/api.js"
import { brief, words } from "../lib/format.js"
import { html, useState } from "../lib/html.js"
import { Confirm } from "../settings/parts.js"
import { Icon } from "../ui/icons.js"
import { Button, Dialog, Foreign, Id, Loading, Problem, Time, useAction, useRead } from "../ui/parts.js"

/** What came of queueing a run again, for people. @type {Record<string, string>} */
const OUTCOMES = {
  queued: "is queued; workers were notified.",
  held: "was left alone: a worker holds it, and nothing is executed twice. Cancel it, or stop the worker.",
  waiting: "was left alone: it waits for people, results, sub-runs, its thread or its time.",
  ended: "has ended.",
}

/**
 * Offer the actions of a list of runs.
 * @param {() => void} reload
 * @returns {{cell: (row: {run_id: string}) => any, notes: any, dialogs: any}}
 */
export function useRunActions(reload) {
  const [said, setSaid] = useState("")
  const [explaining, setExplaining] = useState(/** @type {string | null} */ (null))
  const [cancelling, setCancelling] = useState(/** @type {string | null} */ (null))
  const doing = useAction()
  const requeue = (/** @type {string} */ id) => doing.run(async (sending) => {
    const done = await post(`operator/runs/${segment(id)}:requeue`, undefined, sending)
    setSaid(`Run ${brief(id)} ${OUTCOMES[done.outcome] ?? done.outcome}`)
    reload()
  })
  const cancel = async (/** @type {string} */ id, /** @type {import("../lib/api.js").Sending} */ sending) => {
    await post(`operator/runs/${segment(id)}:cancel`, undefined, sending)
    setSaid(`Run ${brief(id)} is cancelled.`)
    reload()
  }
  const cell = (/** @type {{run_id: string}} */ { run_id: id }) => html`
    <${Button} kind="quiet" class="small" aria-label=${`Why is run ${brief(id)} here?`} onClick=${() => setExplaining(id)}>Why?</${Button}>
    <${Button} class="small" icon="retry" busy=${doing.isBusy} aria-label=${`Requeue run ${brief(id)}`} onClick=${() => requeue(id)}>Requeue</${Button}>
    <${Button} kind="quiet" class="small danger-text" aria-label=${`Cancel run ${brief(id)}`} onClick=${() => setCancelling(id)}>Cancel</${Button}>`
  const notes = html`<div role="status">${said && html`<p class="note">${said}</p>`}</div><${Problem} error=${doing.error} />`
  const dialogs = html`
    ${explaining && html`<${Why} id=${explaining} onClose=${() => setExplaining(null)} />`}
    ${cancelling && html`<${Confirm} title="Cancel this run?" action="Cancel run" onClose=${() => setCancelling(null)} run=${(/** @type {import("../lib/api.js").Sending} */ sending) => cancel(cancelling, sending)}>
      <p><${Id} id=${cancelling} /></p><p>It ends with all its sub-runs; what it has said so far stays. The audit log of its organization says that an operator
        has done this.</p></${Confirm}>`}`
  return { cell, notes, dialogs }
}

/** @param {{id: string, onClose: () => void}} props */
function Why({ id, onClose }) {
  const { data, error, reload } = useRead((signal) => get(`operator/runs/${segment(id)}:explain`, {}, signal), [id])
  return html`<${Dialog} title="Why the run is where it is" onClose=${onClose}><div>
    <p><${Id} id=${id} /></p>
    <${Problem} error=${error} onRetry=${reload} />
    ${data === null ? !error && html`<${Loading} lines=${2} />` : html`<div class="note explanation"><${Icon} name="clock" /><div><p><${Foreign} text=${data.sentence} /></p>
      ${data.next && html`<p class="faint">Next: ${words(data.next.action)}${data.next.at && html`, <${Time} at=${data.next.at} />`}</p>`}</div></div>
      <p class="faint"><code>${data.reason}</code> · ${words(data.phase)}</p>`}</div></${Dialog}>`
}

/** The row's run, which an operator who is no member of its org cannot open. @param {{row: any}} props */
export const RunCell = ({ row }) => html`<${Id} id=${row.run_id} />
  <span class="sub"><${Foreign} text=${row.persona_id} /> · ${row.agent ? html`agent <${Foreign} text=${row.agent} />` : html`<${Foreign} text=${row.route_id} />`}</span>`
