// What operators do to a run of any org: ask why it is where it is, queue it again, cancel it.
import { get, post, segment } from "../lib/api.js"
import { brief, words } from "../lib/format.js"
import { html, useState } from "../lib/html.js"
import { SignedOut } from "../lib/refusals.js"
import { Confirm } from "../settings/parts.js"
import { Icon } from "../ui/icons.js"
import { Button, Dialog, Foreign, Id, Loading, Problem, SentAgain, Time, useNextSession, useRead, useSending } from "../ui/parts.js"

/** What came of queueing a run again, for people. @type {Record<string, string>} */
const OUTCOMES = {
  queued: "is queued; workers were notified.",
  held: "was left alone: a worker holds it, and nothing is executed twice. Cancel it, or stop the worker.",
  waiting: "was left alone: it waits for people, results, sub-runs, its thread or its time.",
  ended: "has ended.",
}

/** @typedef {{isBusy: boolean, error: unknown}} Requeuing */

/**
 * Offer the actions of a list of runs. What came of one is in the row of its run, or in `notes` if the list has none any more.
 * @param {any[] | null | undefined} rows
 * @param {() => void} reload
 * @returns {{cell: (row: {run_id: string}) => any, notes: any, dialogs: any}}
 */
export function useRunActions(rows, reload) {
  const [said, setSaid] = useState({ id: "", text: "" })
  /** By the ids of the runs. */
  const [requeuing, setRequeuing] = useState(/** @type {Record<string, Requeuing>} */ ({}))
  const [explaining, setExplaining] = useState(/** @type {string | null} */ (null))
  const [cancelling, setCancelling] = useState(/** @type {string | null} */ (null))
  const mark = (/** @type {string} */ id, /** @type {Requeuing} */ one) => setRequeuing((before) => ({ ...before, [id]: one }))
  const clear = () => {
    setSaid({ id: "", text: "" })
    setRequeuing((before) => Object.fromEntries(Object.entries(before).filter(([, one]) => one.isBusy)))
  }
  // Of the page, not of a row: a run that is queued leaves the list, maybe before the response.
  const { signal } = useSending(() => {})
  const requeue = async (/** @type {string} */ id) => {
    clear()
    mark(id, { isBusy: true, error: null })
    try {
      const onRetry = () => mark(id, { isBusy: true, error: new SentAgain() })
      const done = await post(`operator/runs/${segment(id)}:requeue`, undefined, { signal, onRetry })
      mark(id, { isBusy: false, error: null })
      setSaid({ id, text: `Run ${brief(id)} ${OUTCOMES[done.outcome] ?? done.outcome}` })
      reload()
    } catch (error) {
      mark(id, { isBusy: false, error })
    }
  }
  useNextSession(Object.values(requeuing).find(({ error }) => error instanceof SignedOut)?.error, clear)
  const cancel = async (/** @type {string} */ id, /** @type {import("../lib/api.js").Sending} */ sending) => {
    await post(`operator/runs/${segment(id)}:cancel`, undefined, sending)
    setSaid({ id, text: `Run ${brief(id)} is cancelled.` })
    reload()
  }
  const cell = (/** @type {{run_id: string}} */ { run_id: id }) => html`
    <${Button} kind="quiet" class="small" aria-label=${`Why is run ${brief(id)} here?`} onClick=${() => setExplaining(id)}>Why?</${Button}>
    <${Button} class="small" icon="retry" busy=${requeuing[id]?.isBusy} aria-label=${`Requeue run ${brief(id)}`} onClick=${() => requeue(id)}>Requeue</${Button}>
    <${Button} kind="quiet" class="small danger-text" aria-label=${`Cancel run ${brief(id)}`} onClick=${() => { clear(); setCancelling(id) }}>Cancel</${Button}>
    <${Problem} error=${requeuing[id]?.error} />
    ${said.id === id && html`<p class="note" role="status">${said.text}</p>`}`
  const hasRow = (/** @type {string} */ id) => rows?.some((row) => row.run_id === id)
  const notes = html`<div role="status">${said.text && !hasRow(said.id) && html`<p class="note">${said.text}</p>`}</div>
    ${Object.entries(requeuing).filter(([id]) => !hasRow(id)).map(([id, { error }]) => html`<${Problem} key=${id} error=${error} />`)}`
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
