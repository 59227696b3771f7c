// The threads, and the conversation of one of them.
import { Chat } from "../chat/chat.js"
import { NewThread } from "../chat/new_thread.js"
import { calledOff, page } from "../lib/api.js"
import { brief } from "../lib/format.js"
import { classes, html, useEffect, useRef, useState } from "../lib/html.js"
import { order } from "../lib/order.js"
import { href } from "../lib/router.js"
import { may } from "../lib/session.js"
import { useStore } from "../lib/store.js"
import { Forbidden } from "../settings/parts.js"
import { Icon } from "../ui/icons.js"
import { Button, Empty, Foreign, Head, Loading, Problem, Time, useAction, useInterval, useNextSession } from "../ui/parts.js"

/** What the service requires of a first message, and of the conversation that it leads to. */
const BEGIN = ["data.runs.read", "data.runs.write", "data.threads.write"]

/** @param {{id?: string, params: URLSearchParams}} props */
export function Page({ id, params }) {
  const list = useThreads(params.get("end_user_id") ?? "")
  const mayBegin = BEGIN.every(may)
  return html`<div class=${classes("split", id && "has-detail")}>
    <section class="split-list" aria-label="Threads">
      <header class="list-head"><h1>Threads</h1>
        ${mayBegin && html`<a class="button primary small" href=${href("/threads/new")}><${Icon} name="plus" /><span>New</span></a>`}
      </header>
      <${ThreadList} list=${list} current=${id} />
    </section>
    <section class="split-detail" aria-label="Conversation">
      ${id === undefined && (list.rows?.length === 0 && mayBegin ? html`<${Empty} icon="thread" title="Say something to an agent">
        <p>Its answer appears here as it is written, with its steps.</p>
        <a class="button primary" href=${href("/threads/new")}>Write a message</a></${Empty}>` : html`<${Empty} icon="thread" title="No thread selected">
        <p>Select a thread to see its conversation, live.</p></${Empty}>`)}
      ${id === "new" && (mayBegin ? html`<${NewThread} onMade=${list.reload} />` : html`<div class="new-thread">
        <${Head} title="New thread" back=${href("/threads")} /><div class="page"><${Forbidden} also=${BEGIN} /></div></div>`)}
      ${id !== undefined && id !== "new" && html`<${Chat} key=${id} id=${id} onChange=${list.reload} onDelete=${() => list.onDelete(id)} />`}
    </section>
  </div>`
}

/** @typedef {{rows: any[] | null, next: string | null, isExtended: boolean}} List `next` leads to older threads; an extended
 * list has some of them */

/** @type {List} */
const UNREAD = { rows: null, next: null, isExtended: false }

/**
 * Put a new first page into the list. Older threads stay; newer ones that the page does not have are deleted.
 * @param {List} before
 * @param {{rows: any[], next: string | null}} found
 * @returns {List}
 */
function renewed(before, found) {
  const shown = before.rows ?? []
  const ids = new Set(found.rows.map((row) => row.id))
  // Without a thread in common, others may be between the page and the rest: only reading on from the page shows them.
  const isConnected = shown.some((row) => ids.has(row.id))
  if (!before.isExtended || found.next === null || !isConnected) return { ...found, isExtended: false }
  const last = found.rows.at(-1).created_at
  return { ...before, rows: [...found.rows, ...shown.filter((row) => !ids.has(row.id) && row.created_at <= last)] }
}

/** @param {string} endUser */
function useThreads(endUser) {
  const [list, setList] = useState(UNREAD)
  const { rows, next } = list
  const [error, setError] = useState(/** @type {unknown} */ (null))
  const shown = useRef(endUser)
  const [begin] = useState(order)
  /** The ids of threads that were deleted here. */
  const deleted = useRef(/** @type {Set<string>} */ (new Set()))
  /** @param {number} least the number of rows that are read: with 0 the first page, and what is shown after it stays */
  const read = async (least) => {
    const filter = shown.current
    const isInTime = begin()
    const end = (/** @type {() => void} */ take) => {
      // Not under the name of another end user, who was chosen meanwhile.
      if (shown.current === filter && isInTime()) take()
    }
    const pages = async () => {
      const found = await page("threads", { limit: 40, end_user_id: filter })
      while (found.next !== null && found.rows.length < least) {
        const older = await page("threads", { limit: 40, end_user_id: filter, before: found.next })
        found.rows.push(...older.rows)
        found.next = older.next
      }
      return found
    }
    await pages().then(
      (found) => end(() => { setList((before) => (least > 0 ? { ...found, isExtended: before.isExtended } : renewed(before, found))); setError(null) }),
      (problem) => end(() => setError(problem)),
    )
  }
  const reload = () => read(0)
  const more = async () => {
    const found = await page("threads", { limit: 40, end_user_id: endUser, before: next }).catch((problem) => {
      if (shown.current === endUser) throw problem
      return null
    })
    if (found === null) return
    const older = found.rows.filter((row) => !deleted.current.has(row.id))
    // Not behind other threads than those that it was asked for.
    setList((before) => (before.next !== next ? before : { rows: [...(before.rows ?? []), ...older], next: found.next, isExtended: true }))
  }
  const onDelete = (/** @type {string} */ id) => {
    deleted.current.add(id)
    setList((before) => ({ ...before, rows: before.rows?.filter((row) => row.id !== id) ?? null }))
    // A list that was asked for before may still have the thread: it is late.
    begin()()
    void reload()
  }
  useEffect(() => {
    shown.current = endUser
    setList(UNREAD)
    setError(null)
    void reload()
  }, [endUser])
  useInterval(reload, 20_000, [endUser])
  useNextSession(error, reload)
  const changes = useStore(calledOff)
  // All rows that are shown: a thread that was deleted may be far down.
  useEffect(() => void (changes > 0 && read(rows?.length ?? 0)), [changes])
  return { endUser, rows, next, error, reload, more, onDelete }
}

/** A link, for people who may see where it leads. @param {{href: string | false, children: any, [other: string]: any}} props */
const Row = ({ href: to, children, ...rest }) => (to ? html`<a href=${to} ...${rest}>${children}</a>` : html`<div>${children}</div>`)

/** @param {{list: ReturnType<typeof useThreads>, current: string | undefined}} props */
function ThreadList({ list, current }) {
  const more = useAction()
  // It is the error of the list before.
  useEffect(() => more.clear(), [list.endUser])
  const problem = html`<${Problem} error=${list.error} onRetry=${list.reload} />`
  // Threads that are known stay below the error; that there were none does not.
  if (list.error && !list.rows?.length) return problem
  if (list.rows === null) return html`<${Loading} lines=${6} />`
  if (list.rows.length === 0) {
    return html`<${Empty} icon="thread" title="No threads yet"><p>A thread is a conversation, to which clients post runs.</p></${Empty}>`
  }
  return html`${problem}<ul class="thread-list">${list.rows.map((thread) => html`<li key=${thread.id}>
      <${Row} href=${may("data.runs.read") && href(`/threads/${thread.id}`)} aria-current=${thread.id === current ? "true" : undefined}>
        <span class="thread-title">${thread.active_run_id && html`<span class="pulse" title="A run is active"><span class="sr">active</span></span>`}
          <${Foreign} text=${thread.title ?? `Thread ${brief(thread.id)}`} /></span>
        <span class="thread-meta"><span>${thread.end_user_id ? html`<${Foreign} text=${thread.end_user_id} />` : thread.is_private ? "Private" : ""}</span>
          <${Time} at=${thread.updated_at} /></span>
      </${Row}></li>`)}</ul>
    ${list.next && html`<${Button} class="more" busy=${more.isBusy} onClick=${() => more.run(list.more)}>Older threads</${Button}>`}
    <${Problem} error=${more.error} />`
}
