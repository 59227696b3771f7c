// What a run did when, from its events: spans of time in lanes.

/** A `run.throttled` is repeated at the latest after this time while the run waits. */
const REPEAT_MS = 30_000
/** What says nothing about whether a pause is over. */
const SILENT = ["run.cost", "run.settings_dropped", "tool.progress"]

/** @typedef {{lane: string, kind: "queue" | "model" | "tool" | "wait" | "throttle", label: string, from: number, to: number,
 *   isOpen?: boolean, isBad?: boolean}} Span */

/**
 * Return the spans of a run; an open one ends at `now`.
 * @param {any} run
 * @param {any[]} events
 * @param {number} now
 * @returns {Span[]}
 */
export function spansOf(run, events, now) {
  /** @type {Span[]} */
  const spans = []
  const created = Date.parse(run.created_at)
  const end = Date.parse(run.completed_at ?? run.failed_at ?? run.cancelled_at ?? "") || now
  /** @type {Map<string, Span>} */
  const calls = new Map()
  let model = /** @type {Span | null} */ (null)
  let wait = /** @type {Span | null} */ (null)
  /** True while a person is asked before the calls of a turn: none of those that are open has begun. */
  let isBeforeCalls = false
  /** The call within which a person is asked: it has ended, and is made again with the reply. */
  let asking = /** @type {string | null} */ (null)
  let pause = /** @type {{span: Span, until: number} | null} */ (null)
  let queue = /** @type {Span | null} */ ({ lane: "Queue", kind: "queue", label: "Queued", from: created, to: end, isOpen: true })
  const lasting = /** @type {Span[]} */ ([queue])
  const open = (/** @type {Omit<Span, "to">} */ span) => {
    const made = { ...span, to: end, isOpen: true }
    spans.push(made)
    return made
  }
  const close = (/** @type {Span | null} */ span, /** @type {number} */ at) => {
    if (span?.isOpen) Object.assign(span, { to: at, isOpen: false })
    return null
  }
  const think = (/** @type {number} */ at) => {
    model ??= open({ lane: "Model", kind: "model", label: run.model ?? "Model", from: at })
  }
  const openCalls = () => [...calls.values()].filter((call) => call.isOpen)
  const begin = (/** @type {number} */ at) => {
    if (isBeforeCalls) for (const call of openCalls()) call.from = at
    isBeforeCalls = false
    const call = asking === null ? undefined : calls.get(asking)
    if (asking !== null && call !== undefined) calls.set(asking, open({ lane: call.lane, kind: call.kind, label: call.label, from: at }))
    asking = null
  }
  const drop = () => {
    if (isBeforeCalls) for (const call of openCalls()) spans.splice(spans.indexOf(call), 1)
  }
  /** The next attempt has no event of its own: what follows says when the pause was over. */
  const hold = (/** @type {number} */ at, /** @type {string} */ label, /** @type {number} */ until) => {
    model = close(model, at)
    pause = { span: pause?.span ?? open({ lane: "Waiting", kind: "throttle", label, from: at }), until }
  }
  const release = (/** @type {number} */ at) => {
    if (pause === null) return
    const over = Math.min(at, pause.until)
    close(pause.span, over)
    pause = null
    if (over < at) think(over)
  }
  for (const { type, data, created_at: createdAt } of events) {
    const at = Date.parse(createdAt)
    const isRepeated = type === "run.throttled" && pause?.span.label === `throttled: ${data.reason}` && at <= pause.until
    if (!isRepeated && !SILENT.includes(type)) release(at)
    switch (type) {
      case "run.started":
      case "run.resumed":
        queue = close(queue, at)
        model = close(model, at)
        wait = close(wait, at)
        begin(at)
        if (openCalls().length === 0) think(at)
        break
      case "message.completed":
        model = close(model, at)
        break
      case "tool.call":
        calls.set(data.tool_call_id, open({ lane: "Tools", kind: "tool", label: data.name, from: at }))
        break
      case "tool.result": {
        const call = calls.get(data.tool_call_id)
        if (call !== undefined) {
          // The call waited for its turn or an approval before; its own time is what it reports.
          if (data.duration_ms != null) call.from = Math.max(call.from, at - data.duration_ms)
          call.isBad = data.is_error
          close(call, at)
        }
        if (openCalls().length === 0) think(at)
        break
      }
      case "run.waiting_for_input":
        model = close(model, at)
        wait = close(wait, at)
        isBeforeCalls = ["tool_confirmation", "question"].includes(data.kind)
        if (["form", "authorization"].includes(data.kind) && calls.get(data.tool_call_id)?.isOpen) {
          asking = data.tool_call_id
          close(calls.get(data.tool_call_id) ?? null, at)
        }
        wait = open({ lane: "Waiting", kind: "wait", label: data.kind.replaceAll("_", " "), from: at })
        break
      case "run.input_received":
        wait = close(wait, at)
        begin(at)
        break
      case "run.throttled":
        // Attempts in between that fail, too, have no event until it is repeated.
        hold(at, `throttled: ${data.reason}`, at + Math.max((data.seconds ?? 0) * 1000, REPEAT_MS))
        break
      case "run.retrying":
        hold(at, `retry after ${data.code}`, at + (data.seconds ?? 0) * 1000)
        break
      case "run.fallback":
        think(at)
        break
      case "run.completed":
      case "run.failed":
      case "run.cancelled":
        queue = close(queue, at)
        model = close(model, at)
        wait = close(wait, at)
        drop()
        for (const call of calls.values()) close(call, at)
        break
      default:
        if (type.startsWith("message.")) think(at)
    }
  }
  if (pause !== null && pause.until < end) release(end)
  if (wait !== null) drop()
  return [...lasting, ...spans].map((span) => ({ ...span, to: Math.max(span.to, span.from) })).filter((span) => span.to > span.from || span.kind !== "queue")
}
