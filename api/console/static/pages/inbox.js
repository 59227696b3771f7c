// The runs that wait for a person, with the means to answer each.
import { PendingInput } from "../chat/pending_input.js"
import { page } from "../lib/api.js"
import { brief } from "../lib/format.js"
import { html, useEffect, useRef, useState } from "../lib/html.js"
import { order } from "../lib/order.js"
import { href } from "../lib/router.js"
import { may } from "../lib/session.js"
import { Button, Empty, explained, Foreign, Head, Loading, Problem, Time, useAction, useInterval, useNextSession } from "../ui/parts.js"
import { countWaiting } from "../waiting.js"

const SECONDS = 8

/** @typedef {{rows: any[] | null, next: string | null, isExtended: boolean}} List `next` leads to older runs; an extended
 * list has some of them */

/** Return all runs of both, newest first; those in both as `found` has them. @param {any[]} found @param {any[]} shown */
function union(found, shown) {
  const ids = new Set(found.map((row) => row.run_id))
  return [...found, ...shown.filter((row) => !ids.has(row.run_id))].sort((one, other) => other.created_at.localeCompare(one.created_at))
}

/**
 * Put a new first page into the list. Older runs stay, with what was typed there; runs that the page should have
 * do not wait any more if it has not.
 * @param {List} before
 * @param {{rows: any[], next: string | null}} found
 * @returns {List}
 */
function renewed(before, found) {
  if (!before.isExtended || found.next === null) return { ...found, isExtended: false }
  const shown = before.rows ?? []
  const last = found.rows.at(-1)
  const older = shown.filter((row) => last === undefined || row.created_at <= last.created_at)
  const isConnected = shown.some((row) => found.rows.some(({ run_id }) => run_id === row.run_id))
  // Runs in between, and old ones that wait since, are found by reading on from the first page.
  return { rows: union(found.rows, older), next: isConnected ? before.next ?? found.next : found.next, isExtended: true }
}

export function Page() {
  const [list, setList] = useState(/** @type {List} */ ({ rows: null, next: null, isExtended: false }))
  const { rows, next } = list
  const [error, setError] = useState(/** @type {unknown} */ (null))
  const more = useAction()
  const replies = useRef(0)
  const [begin] = useState(order)
  /** @returns {Promise<void>} */
  const reload = async () => {
    const known = replies.current
    const isInTime = begin()
    try {
      const found = await page("runs", { status: "waiting_for_input", limit: 50 })
      if (!isInTime()) return
      // A run that was replied to meanwhile would be here again, as if the reply had been lost.
      if (replies.current !== known) return reload()
      setList((before) => renewed(before, found))
      setError(null)
    } catch (problem) {
      if (isInTime()) setError(problem)
    }
  }
  const older = async () => {
    const found = await page("runs", { status: "waiting_for_input", limit: 50, before: next })
    setList((before) => ({
      rows: union(found.rows, before.rows ?? []), next: before.next === next ? found.next : before.next, isExtended: true,
    }))
  }
  useEffect(() => void reload(), [])
  useInterval(reload, SECONDS * 1000, [])
  useNextSession(error, () => void reload())
  const onDone = (/** @type {string} */ runId) => {
    replies.current += 1
    setList((before) => ({ ...before, rows: before.rows?.filter((row) => row.run_id !== runId) ?? null }))
    void countWaiting()
  }
  // Boxes move with what is above them: others, with a request of another height, or an error.
  const above = error === null ? "" : explained(error).text
  const place = [...(rows ?? []).map(({ run_id, pending_input }) => `${run_id}:${pending_input?.request_id}`), above].join()
  return html`<${Head} title="Inbox" />
    <div class="page inbox">
      ${rows === null && (error ? null : html`<${Loading} lines=${6} />`)}
      <${Problem} error=${error} onRetry=${reload} />
      ${rows?.length === 0 && !error && html`<${Empty} icon="inbox" title="Nothing waits for you">
        <p>Runs that need an approval or an answer appear here.</p></${Empty}>`}
      ${rows?.map((row) => html`<article key=${`${row.run_id}:${row.pending_input?.request_id}`} class="inbox-item">
        <header><${Persona} row=${row} />
          ${row.end_user_id && html`<span class="tag"><${Foreign} text=${row.end_user_id} /></span>`}
          <span class="faint">${row.created_by_user_name && html`<${Foreign} text=${row.created_by_user_name} /> · `}<${Time} at=${row.created_at} /></span>
          <span class="grow"></span>
          <a class="faint" href=${href(`/runs/${row.run_id}`)}>Run ${brief(row.run_id)}</a></header>
        <${PendingInput} runId=${row.run_id} pending=${row.pending_input} createdBy=${row.created_by_user_id} creator=${row.created_by_user_name}
          place=${place} isListed
          onDone=${() => onDone(row.run_id)} onStale=${() => void reload()} />
      </article>`)}
      ${next && html`<${Button} class="more" busy=${more.isBusy} onClick=${() => more.run(older)}>More</${Button}>`}
      <${Problem} error=${more.error} />
    </div>`
}

/** The run's persona, as a link to the thread for people who may read that. @param {{row: any}} props */
function Persona({ row }) {
  const name = html`<${Foreign} text=${row.persona_id ?? "Run"} />`
  return may("data.threads.read") ? html`<a href=${href(`/threads/${row.thread_id}`)}>${name}</a>` : name
}
