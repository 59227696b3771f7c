// One run: where it is, what it did when, and each of its events.
import { announce, pauseAfter } from "../chat/conversation.js"
import { PendingInput, inFull } from "../chat/pending_input.js"
import { useOpenRequest } from "../chat/replies.js"
import { get, post, segment } from "../lib/api.js"
import { parse } from "../lib/exact.js"
import { brief, count, duration, exactly, money, plain, stateOf, words } from "../lib/format.js"
import { html, useEffect, useMemo, useRef, useState } from "../lib/html.js"
import { follow } from "../lib/follow.js"
import { href } from "../lib/router.js"
import { may, mayWrite } from "../lib/session.js"
import { Events } from "../runs/events.js"
import { Prompts } from "../runs/prompts.js"
import { Controls, Scene, useReplay } from "../runs/replay.js"
import { Timeline } from "../runs/timeline.js"
import { Icon } from "../ui/icons.js"
import { Data } from "../ui/json.js"
import { Markdown } from "../ui/markdown.js"
import { Badge, Button, explained, Foreign, Head, Id, Loading, Problem, Time, useAction, useInterval, useRead } from "../ui/parts.js"

const MOST_EVENTS = 20_000
const MOST_ASKED = 1_000
const CHANGES = /^run\.(started|resumed|suspended|waiting|input|completed|failed|cancel)/

/** @param {{id: string}} props */
export function Page({ id }) {
  return html`<${Run} key=${id} id=${id} />`
}

/** @param {{id: string}} props */
function Run({ id }) {
  const run = useRead((signal) => get(`runs/${segment(id)}`, {}, signal), [])
  const { events, total, isEnded, asked, mark, connection, problem } = useEvents(id)
  const action = useAction()
  useOpenRequest(run.data?.pending_input?.request_id)
  const explanation = useExplanation(id, run.data !== null && run.data.phase !== "finished", mark)
  // What the events do not say (usage, queue) is read again where the run changes its state.
  useEffect(() => {
    if (mark > 0) run.reload()
  }, [mark])
  useEffect(() => {
    // No further event would have it read again: the page would show for good that a run is executed which has ended.
    const seconds = run.error ? pauseAfter(run.error) : null
    if (seconds === null) return
    const timer = setTimeout(run.reload, 1_000 * seconds)
    return () => clearTimeout(timer)
  }, [run.error])
  if (run.data === null) {
    return html`<${Head} title=${`Run ${brief(id)}`} back=${href("/runs")} />
      <div class="page">${run.error ? html`<${Problem} error=${run.error} onRetry=${run.reload} />` : html`<${Loading} lines=${8} />`}</div>`
  }
  const data = run.data
  const isActive = data.phase !== "finished"
  const cancel = async (/** @type {import("../lib/api.js").Sending} */ sending) => {
    await post(`runs/${segment(id)}:cancel`, undefined, sending)
    announce(data.thread_id)
    run.reload()
  }
  const dataOf = (/** @type {string} */ type) => asked.filter((event) => event.type === type).map((event) => event.data)
  const actions = html`
    ${may("data.threads.read") && html`<a class="button" href=${href(`/threads/${data.thread_id}`)}>Open thread</a>`}
    ${isActive && may("data.runs.write") && mayWrite(data.created_by_user_id) && html`<${Button} kind="danger" icon="stop" busy=${action.isBusy}
      onClick=${() => action.run(cancel)}>Cancel run</${Button}>`}`
  const problems = [action.error ?? problem, run.error && pauseAfter(run.error) === null ? run.error : null]
  const place = [
    connection.state === "offline", connection.limit, ...problems.map((one) => one && explained(one).text),
    explanation?.sentence, explanation?.next?.at,
  ].join()
  return html`<${Head} title=${`Run ${brief(id)}`} back=${href("/runs")} actions=${actions}>
      <${Badge} status=${stateOf(data)} /></${Head}>
    <div class="page run-page">
      <${Problem} error=${problems[0]} />
      <${Problem} error=${problems[1]} onRetry=${run.reload} />
      ${connection.state === "offline" && html`<p class="note" role="status">No connection; the page continues when it is back.</p>`}
      ${connection.limit && html`<p class="note" role="status">${connection.limit} The page continues by itself.</p>`}
      ${explanation && html`<${Explanation} explanation=${explanation} />`}
      ${data.error && html`<${RunError} run=${data} events=${events} />`}
      ${data.pending_input && html`<${PendingInput} key=${data.pending_input.request_id} runId=${id} createdBy=${data.created_by_user_id} place=${place} onDone=${run.reload} onStale=${run.reload}
        pending=${inFull(data.pending_input, dataOf("tool.call"), dataOf("run.waiting_for_input"))} />`}
      <${Figures} run=${data} />
      <${Recorded} run=${data} events=${events} total=${total} isEnded=${isEnded} isRefused=${problem !== null}>
      ${data.output !== null && html`<section class="panel"><h2>Output</h2>${typeof data.output === "string"
        ? html`<${Markdown} text=${data.output} />` : html`<${Data} value=${data.output} />`}</section>`}
      </${Recorded}>
      ${may("data.threads.read") && html`<${Prompts} run=${data} events=${events} />`}
      <section class="panel"><h2>Details</h2><${Details} run=${data} /></section>
    </div>`
}

/**
 * The picture and the list of what was recorded, which can be played again.
 * @param {{run: any, events: any[], total: number, isEnded: boolean, isRefused: boolean, children: any}} props `total` is how many events
 *   have come, of which `events` are the first; `isEnded` once the last one has
 */
function Recorded({ run, events, total, isEnded, isRefused, children }) {
  const [isReplay, setReplay] = useState(false)
  const replay = useReplay(run, events)
  const shown = useMemo(() => (isReplay ? events.slice(0, replay.known) : events), [isReplay, events, replay.known])
  const begin = () => {
    setReplay(true)
    replay.set({ ms: 0, isPlaying: true })
  }
  const end = () => {
    setReplay(false)
    replay.set({ isPlaying: false })
  }
  // A run that has begun, or ended, has events. Without them it would be drawn as queued until its end.
  if (events.length === 0 && (run.started_at || run.phase === "finished")) {
    const missing = isRefused ? html`<p class="faint">The events could not be loaded.</p>` : html`<${Loading} lines=${3} />`
    return html`<section class="panel"><h2>Timeline</h2>${missing}</section>${children}<section class="panel"><h2>Events</h2>${missing}</section>`
  }
  // As in a replay: what is open at the last of them was not open until the end of the run.
  const isCut = total > events.length
  const isLoading = run.phase === "finished" && !isEnded
  const of = isCut && !isReplay ? `, the first ${count(events.length)} of ${count(total)}` : html` <span class="faint">${count(shown.length)}</span>`
  return html`<section class="panel"><header class="panel-head"><h2>Timeline</h2>
      ${isReplay ? html`<${Button} key="end" class="small" icon="close" onClick=${end}>End the replay</${Button}>`
        : events.length > 0 && html`<${Button} key="begin" class="small" icon="play" onClick=${begin}>Replay</${Button}>`}</header>
      ${isReplay && html`<${Controls} replay=${replay} events=${events} />`}
      <${Timeline} run=${run} events=${shown} ms=${isReplay ? replay.ms : isCut || isLoading ? replay.total : null} total=${replay.total} />
      ${isCut && !isReplay && html`<p class="faint">The timeline ends with event ${count(events.length)}.</p>`}</section>
    ${isReplay ? html`<section class="panel"><h2>At this moment</h2><${Scene} run=${run} events=${events} known=${replay.known} /></section>` : children}
    <section class="panel"><h2>Events${!isLoading && of}</h2><${Events} events=${shown} began=${run.created_at} /></section>`
}

/**
 * Follow the run's own stream from its first event, until `isEnded`; of `total` events that have come, the first ones are kept; `mark` is the last one that has changed its state, `asked`
 * are the newest calls and requests, which may be beyond the events that are shown.
 * @param {string} id
 */
function useEvents(id) {
  const [events, setEvents] = useState(/** @type {any[]} */ ([]))
  const [total, setTotal] = useState(0)
  const [isEnded, setEnded] = useState(false)
  const [asked, setAsked] = useState(/** @type {any[]} */ ([]))
  const [mark, setMark] = useState(0)
  const [connection, setConnection] = useState({ state: "connecting", limit: "" })
  const [problem, setProblem] = useState(/** @type {Error | null} */ (null))
  const pending = useRef(/** @type {any[]} */ ([]))
  useEffect(() => {
    let hasEnd = false
    let frame = 0
    const flush = () => {
      frame = 0
      const news = pending.current
      pending.current = []
      // Among all events: those that are too many to be shown have the end of the run.
      const change = news.findLast((event) => CHANGES.test(event.type))
      if (change) setMark(change.seq)
      const asking = news.filter(({ type }) => type === "tool.call" || type === "run.waiting_for_input")
      if (asking.length > 0) setAsked((before) => [...before, ...asking].slice(-MOST_ASKED))
      setEvents((before) => [...before, ...news].slice(0, MOST_EVENTS))
      setTotal((before) => before + news.length)
      setEnded(hasEnd)
    }
    const stop = follow(null, {
      path: (after) => `runs/${segment(id)}/events${after ? `?after_seq=${after}` : ""}`,
      onFrame: ({ data }) => {
        const event = parse(data)
        if (["run.completed", "run.failed", "run.cancelled"].includes(event.type)) hasEnd = true
        pending.current.push(event)
        frame ||= requestAnimationFrame(flush)
      },
      onState: (state, limit = "") => setConnection({ state, limit }),
      onRefused: (error) => {
        setProblem(error)
        return "stop"
      },
      isEnd: () => hasEnd,
    })
    return () => {
      stop()
      cancelAnimationFrame(frame)
    }
  }, [id])
  return { events, total, isEnded, asked, mark, connection, problem }
}

/**
 * Return why a run is where it is, as the service explains it; null if it has ended.
 * @param {string} id
 * @param {boolean} isActive
 * @param {number} mark
 */
function useExplanation(id, isActive, mark) {
  const found = useRead(async (signal) => (isActive ? get(`runs/${segment(id)}:explain`, {}, signal) : null), [mark, isActive])
  useInterval(() => isActive && found.refresh(), 3_000, [isActive])
  return isActive ? found.data : null
}

/** @param {{explanation: any}} props */
function Explanation({ explanation: { sentence, next } }) {
  return html`<div class="note explanation"><${Icon} name="clock" /><div><p><${Foreign} text=${sentence} /></p>
    ${next?.at && html`<p class="faint">Next: ${words(next.action)}, <${Time} at=${next.at} /></p>`}</div></div>`
}

/** @param {{run: any, events: any[]}} props */
function RunError({ run, events }) {
  const causes = events.filter((event) => ["run.retrying", "run.fallback", "run.throttled", "message.reset"].includes(event.type))
  return html`<div class="problem" role="note"><${Icon} name="alert" /><div>
    <p><strong>${plain(run.error.message)}</strong></p>
    <p><code>${run.error.code}</code> · ${run.error.retryable ? "A retry may succeed" : "A retry will not help without a change"}</p>
    ${causes.length > 0 && html`<ul class="causes">${causes.slice(-8).map((event) => html`<li key=${event.seq}>
      <time title=${exactly(event.created_at)}>+${duration(Date.parse(event.created_at) - Date.parse(run.created_at))}</time>${" "}
      ${words(event.type)}: <code>${plain(String(event.data.reason ?? event.data.code ?? ""))}</code></li>`)}</ul>`}
    <p class="faint">Trace <code>${run.trace_id}</code></p></div></div>`
}

/** @param {{run: any}} props */
function Figures({ run }) {
  const end = run.completed_at ?? run.failed_at ?? run.cancelled_at
  const total = end ? Date.parse(end) - Date.parse(run.created_at) : null
  // No event comes while a run waits, so that it is not read again.
  const readAt = useMemo(() => Date.now(), [run])
  const [now, setNow] = useState(readAt)
  const isWaiting = run.phase === "waiting"
  useInterval(() => isWaiting && setNow(Date.now()), 1_000, [isWaiting])
  const waited = run.waiting_ms + (isWaiting ? Math.max(0, now - readAt) : 0)
  const figures = [
    ["Duration", duration(total)],
    ["Queued", duration(run.queue_ms)],
    ["Waited", duration(waited)],
    ["Steps", count(run.steps)],
    ["Input tokens", count(run.usage?.input_tokens)],
    ["Output tokens", count(run.usage?.output_tokens)],
    ["Cost", money(run.cost_usd)],
  ]
  return html`<dl class="figures">${figures.map(([name, value]) => html`<div key=${name}><dt>${name}</dt><dd>${value}</dd></div>`)}</dl>`
}

/** @param {{run: any}} props */
function Details({ run }) {
  const metadata = Object.entries(run.metadata ?? {})
  const thread = html`<code>${run.thread_id}</code>`
  const rows = [
    ["Run", html`<${Id} id=${run.run_id} />`],
    ["Thread", may("data.threads.read") ? html`<a href=${href(`/threads/${run.thread_id}`)}>${thread}</a>` : thread],
    run.parent_run_id && ["Parent run", html`<a href=${href(`/runs/${run.parent_run_id}`)}><code>${run.parent_run_id}</code></a>`],
    run.superseded_by && ["Cancelled for", html`<a href=${href(`/runs/${run.superseded_by}`)}><code>${run.superseded_by}</code></a>`],
    ["Sub-runs", html`<a href=${href("/runs", { parent_run_id: run.run_id })}>Show</a>`],
    ["Persona", html`<${Foreign} text=${run.persona_id ?? "–"} />`],
    ["Route and model", html`<code>${run.route_id}</code> · <${Foreign} text=${run.model ?? ""} />`],
    run.end_user_id && ["End user", html`<${Foreign} text=${run.end_user_id} />`],
    ["Created", exactly(run.created_at)],
    run.started_at && ["Started", exactly(run.started_at)],
    ["Attempt", count(run.attempt)],
    run.stop_reason && ["Stop reason", words(run.stop_reason)],
    ["Usage", run.usage?.source ?? "–"],
    ["Trace", html`<${Id} id=${run.trace_id} />`],
    metadata.length > 0 && ["Metadata", metadata.map(([name, value]) => html`<span key=${name} class="tag">${plain(name)}=${plain(String(value))}</span> `)],
  ].filter(Boolean)
  return html`<dl class="details">${rows.map(([name, value]) => html`<div key=${name}><dt>${name}</dt><dd>${value}</dd></div>`)}</dl>
    ${run.overrides && html`<${Data} value=${run.overrides} label="Overrides" />`}`
}
