// A thread as a chat shows it: its timeline, then its stream; on every tab and device the same.
import { ApiError, bodyOf, get, networkOr, page, post, segment, send } from "../lib/api.js"
import { parse } from "../lib/exact.js"
import { follow } from "../lib/follow.js"
import { fold } from "./fold.js"
import { deliver, textOf } from "./outbox.js"

const PAGE = 30
const FRAME_MS = 16
/** The pause between two looks at whether a run has ended that was cancelled. */
const STOPPED_MS = 500
/** For how long a stream that seems to be live may say nothing of a reply. */
const REPLIED_MS = 3_000
const TERMINAL = ["completed", "failed", "cancelled"]

/**
 * @typedef {import("./fold.js").RunEntry} RunEntry
 * @typedef {{type: "message", id: string, role: string, content: any, run_id: string | null, partial: boolean,
 *   created_at: string, metadata?: Record<string, string>}} MessageEntry
 * @typedef {RunEntry | MessageEntry} Entry
 * @typedef {{entries: Entry[], older: string | null, connection: string, limit: string, error: Error | null,
 *   isLoaded: boolean, sending: Sending[]}} View
 * @typedef {{key: string, text: string, isRepeated: boolean, runId: string}} Sending a message that the entries do not
 *   have; `runId` is the run that answers it, "" until the service has it
 */

const channel = "BroadcastChannel" in globalThis ? new BroadcastChannel("arkloop.threads") : null

/** Let other tabs read a thread again: its stream has no event of a run that waits for its turn. @param {string} threadId */
export const announce = (threadId) => channel?.postMessage({ thread_id: threadId })

/** @param {Entry} entry */
const idOf = (entry) => (entry.type === "run" ? `run:${entry.run_id}` : `message:${entry.id}`)

/** Return after how many seconds to load again; null if the service refuses for good. @param {unknown} error */
export function pauseAfter(error) {
  if (!(error instanceof ApiError)) return 2
  // The organization may be resumed, or the person signs in again.
  if (error.status === 401) return 5
  return error.status >= 500 || error.status === 429 ? Math.max(2, error.retryAfter) : null
}

/** What is drawn of entries: an element that is the same as before is not looked at again. */
class Drawn {
  /** @type {WeakMap<Entry, {canRetry: boolean, element: any}>} */
  elements = new WeakMap()

  /** @param {Entry} entry @param {boolean} canRetry @param {() => any} draw */
  of(entry, canRetry, draw) {
    const known = this.elements.get(entry)
    if (known?.canRetry === canRetry) return known.element
    const element = draw()
    this.elements.set(entry, { canRetry, element })
    return element
  }
}

export class Conversation {
  drawn = new Drawn()

  /** @param {string} threadId @param {(view: View) => void} onChange */
  constructor(threadId, onChange) {
    this.threadId = threadId
    /** @type {View} */
    this.view = { entries: [], older: null, connection: "connecting", limit: "", error: null, isLoaded: false, sending: [] }
    this.onChange = onChange
    this.stopFollowing = () => {}
    this.isClosed = false
    this.isAnnounced = false
    this.loads = 0
    /** The runs that have begun since a message was sent, with their messages. @type {Set<string>} */
    this.begun = new Set()
    /** The requests that were answered here since a reply was last looked for. @type {Set<string>} */
    this.replied = new Set()
    this.onElsewhere = (/** @type {MessageEvent} */ { data }) => {
      if (data.thread_id === this.threadId) void this.load()
    }
    channel?.addEventListener("message", this.onElsewhere)
  }

  close() {
    this.isClosed = true
    this.stopFollowing()
    channel?.removeEventListener("message", this.onElsewhere)
  }

  /** @param {Partial<View>} change */
  update(change) {
    if (this.isClosed) return
    this.view = { ...this.view, ...change }
    if (this.isAnnounced) return
    // What comes within a frame is drawn once. A timer, since a hidden tab has no frames.
    this.isAnnounced = true
    setTimeout(() => {
      this.isAnnounced = false
      if (!this.isClosed) this.onChange(this.view)
    }, FRAME_MS)
  }

  /** Read the end of the timeline, and follow the thread from there. */
  async load() {
    const load = (this.loads += 1)
    let response
    let entries
    try {
      response = await send("GET", `threads/${segment(this.threadId)}/timeline?limit=${PAGE}`)
      entries = await bodyOf(response)
    } catch (error) {
      if (load === this.loads) {
        this.update({ error: /** @type {Error} */ (error) })
        const seconds = pauseAfter(error)
        if (seconds !== null) setTimeout(() => load === this.loads && !this.isClosed && this.load(), 1_000 * seconds)
      }
      return
    }
    if (load !== this.loads || this.isClosed) return
    const isFirst = !this.view.isLoaded
    const known = new Set(entries.map(idOf))
    // Of older pages that were loaded, what comes before this one stays.
    const cut = this.view.entries.findIndex((entry) => known.has(idOf(entry)))
    const before = isFirst || cut < 0 ? [] : this.view.entries.slice(0, cut)
    // So do the first turns of a run that goes over two pages, unless there are turns between them and this page.
    const rest = cut < 0 ? null : restOf(this.view.entries[cut], entries[0])
    const isWhole = rest !== null && (rest.length > 0 || before.length > 0)
    if (rest?.length) entries[0] = { ...entries[0], first_turn: entries[0].first_turn - rest.length, turns: [...rest, ...entries[0].turns] }
    this.update({
      entries: isWhole ? [...before, ...entries] : entries,
      older: isWhole ? this.view.older : response.headers.get("X-Next-Cursor"),
      error: null,
      isLoaded: true,
      sending: this.view.sending.filter(({ runId }) => runId === ""),
    })
    this.follow(response.headers.get("X-Stream-Cursor"))
  }

  /** @param {string | null} cursor */
  follow(cursor) {
    this.stopFollowing()
    this.stopFollowing = follow(cursor, {
      path: (after) => `threads/${segment(this.threadId)}/events${after ? `?after=${encodeURIComponent(after)}` : ""}`,
      onFrame: (frame) => this.receive(frame),
      onState: (connection, limit = "") => {
        this.update({ connection, limit })
        if (connection !== "live") this.loadReplied()
      },
      onRefused: (error) => {
        if (error.status === 404 || error.status === 403) {
          this.update({ error })
          return "stop"
        }
        // The cursor's run is no longer there, or events were lost: what the timeline has counts.
        void this.load()
        return "stop"
      },
    })
  }

  /** @param {{id: string, data: string}} frame */
  receive({ id, data }) {
    const event = parse(data)
    if (event.type === "thread.run") {
      this.begin(event.data, event.created_at)
      return
    }
    const runId = id.split(":")[0]
    // A message that was given to the running agent, maybe elsewhere.
    if (event.type === "run.steered") void this.load()
    const index = this.view.entries.findLastIndex((entry) => entry.type === "run" && entry.run_id === runId)
    if (index < 0) return
    const run = /** @type {RunEntry} */ (this.view.entries[index])
    const next = fold(run, event)
    if (next === run) return
    this.update({ entries: this.view.entries.with(index, next) })
    // What happens without an answer is in the timeline alone. A program sends results of tools, perhaps many times in a run.
    if (event.type === "run.waiting_for_input" && event.data.kind !== "tool_results") void this.load()
    // What was given to it stands before its answer now, or waits for a run of its own.
    const isEnd = TERMINAL.some((status) => event.type === `run.${status}`)
    // The event does not say whether the run that it names has replaced this one.
    if (isEnd && (event.data.superseded_by || this.view.entries.slice(index).some((entry) => entry.type === "message"))) void this.load()
  }

  /** Read the thread after a reply that no stream reports. @param {string} requestId */
  onReply(requestId) {
    this.replied.add(requestId)
    // A connection that is cut or silent is called live for a while.
    if (this.view.connection === "live") setTimeout(() => this.loadReplied(), REPLIED_MS)
    else this.loadReplied()
  }

  /** Read the thread if something is shown as open that was answered. */
  loadReplied() {
    const isShown = this.view.entries.some((entry) => entry.type === "run" && this.replied.has(entry.pending_input?.request_id))
    this.replied.clear()
    if (isShown && !this.isClosed) void this.load()
  }

  /** Append a run that begins, with the messages that it answers. @param {any} data @param {string} createdAt */
  begin(data, createdAt) {
    const news = new Set(data.messages.map((/** @type {any} */ message) => message.id))
    const entries = this.view.entries
      .filter((entry) => !(entry.type === "run" && entry.run_id === data.run_id && entry.seq === 0))
      .filter((entry) => !(entry.type === "message" && news.has(entry.id)))
      .map((entry) => entry.type === "run" && data.supersedes.includes(entry.run_id)
        ? { ...entry, superseded_by: data.run_id } : entry)
    if (entries.some((entry) => entry.type === "run" && entry.run_id === data.run_id)) return
    // What still waits for its turn stays at the end.
    const waiting = entries.findIndex((entry) => entry.type === "run" && entry.queue !== null && entry.seq === 0)
    const at = waiting < 0 ? entries.length : firstOfWaiting(entries, waiting)
    const messages = data.messages.map((/** @type {any} */ message) => ({ type: "message", ...message }))
    entries.splice(at, 0, ...messages, {
      type: "run", run_id: data.run_id, status: "running", phase: "queued", seq: 0, first_turn: 0, turns: [],
      pending_input: null, error: null, superseded_by: null, created_by_user_id: data.created_by_user_id, persona_id: data.persona_id,
      route_id: data.route_id ?? null, model: data.model,
      queue: null, stop_reason: null, cost_usd: null, usage: null, message_id: null, created_at: createdAt,
      started_at: null, ended_at: null,
    })
    this.update({ entries })
    // Messages that are too long for the stream are in the timeline alone.
    if (data.truncated) void this.load()
    else this.begun.add(data.run_id)
    this.arrive()
  }

  /** Show messages that were sent no longer as such once their runs have brought them. */
  arrive() {
    this.update({ sending: this.view.sending.filter(({ runId }) => !this.begun.has(runId)) })
  }

  /** Change how a message is shown that is sent. @param {string} key @param {Partial<Sending>} change */
  mark(key, change) {
    this.update({ sending: this.view.sending.map((one) => (one.key === key ? { ...one, ...change } : one)) })
  }

  /** Load the page before the oldest entry. */
  async loadOlder() {
    const { older } = this.view
    if (older === null) return
    const { rows, next } = await page(`threads/${segment(this.threadId)}/timeline`, { limit: PAGE, before: older })
    // The thread was read again, and what is shown begins elsewhere: messages between would be missing.
    if (this.view.older !== older) return
    const entries = [...this.view.entries]
    const [first] = entries
    const last = rows.at(-1)
    if (first?.type === "run" && last?.type === "run" && last.run_id === first.run_id) {
      // A long run goes over two pages: the older one has its first turns.
      entries[0] = { ...first, turns: [...last.turns, ...first.turns], first_turn: last.first_turn }
      rows.pop()
    }
    this.update({ entries: [...rows, ...entries], older: next })
  }

  /**
   * Send a message, which a run answers. Returns once the service has it; throws if it refuses.
   * @param {import("./outbox.js").Outgoing} outgoing
   */
  async say(outgoing) {
    const { key } = outgoing
    this.begun.clear()
    this.update({ sending: [...this.view.sending, { key, text: textOf(outgoing), isRepeated: false, runId: "" }] })
    const path = `threads/${segment(this.threadId)}/runs`
    let made
    try {
      made = await deliver(this.threadId, path, outgoing, () => this.mark(key, { isRepeated: true }))
    } catch (error) {
      this.update({ sending: this.view.sending.filter((one) => one.key !== key) })
      throw error
    }
    announce(this.threadId)
    this.mark(key, { runId: made.run_id })
    // The stream may have been faster, and is faster than the timeline.
    this.arrive()
    // Runs that wait for the thread are in its timeline, and in its stream only when they start.
    await this.load()
    return made
  }

  /** @param {import("../lib/api.js").Sending} [sending] */
  async retry(sending) {
    await post(`threads/${segment(this.threadId)}:retry`, undefined, sending)
    await this.load()
  }

  /** @param {string} runId @param {import("../lib/api.js").Sending} [sending] */
  async cancel(runId, sending) {
    await post(`runs/${segment(runId)}:cancel`, undefined, sending)
    announce(this.threadId)
    // One that waited for its turn has no event in the stream.
    const run = this.view.entries.find((entry) => entry.type === "run" && entry.run_id === runId)
    if (run?.type === "run" && run.seq === 0) await this.load()
  }

  /**
   * Cancel the run that a message was given to. If it has read the message, no other run answers that: the turn is repeated.
   * @param {string} runId @param {string} fallbackId @param {import("../lib/api.js").Sending} [sending]
   */
  async cancelGiven(runId, fallbackId, sending) {
    await this.cancel(runId, sending)
    let run
    while ((run = await get(`runs/${segment(runId)}`)).phase !== "finished") await networkOr(STOPPED_MS)
    if (run.status !== "cancelled") return
    try {
      await get(`runs/${segment(fallbackId)}`)
    } catch (error) {
      if (!(error instanceof ApiError && error.status === 404)) throw error
      await this.retry(sending).catch((refusal) => {
        // The next run of the thread has begun, and answers the message, too.
        if (!(refusal instanceof ApiError && refusal.code === "runs.thread_busy")) throw refusal
      })
    }
  }
}

/**
 * Return the turns before a page that begins within a run; null if those that are shown do not reach up to it.
 * @param {Entry} shown @param {Entry} first the first entry of the page
 */
function restOf(shown, first) {
  if (first.type !== "run" || first.first_turn === 0) return []
  if (shown.type !== "run" || shown.run_id !== first.run_id) return null
  const length = first.first_turn - shown.first_turn
  return length < 0 || shown.turns.length < length ? null : shown.turns.slice(0, length)
}

/** Return where the messages begin that belong to a run that waits. @param {Entry[]} entries @param {number} at */
function firstOfWaiting(entries, at) {
  while (at > 0 && entries[at - 1].type === "message") at -= 1
  return at
}

/** @param {Entry} entry */
export const isActive = (entry) => entry.type === "run" && !TERMINAL.includes(entry.status) && !waits(entry)
/** @param {Entry} entry */
export const waits = (entry) => entry.type === "run" && entry.seq === 0 && (entry.phase === "scheduled" || (entry.queue !== null && entry.phase === "queued"))
