// A run as it was at any moment of it: its events played again, at any speed.
import { Turn } from "../chat/entries.js"
import { fold } from "../chat/fold.js"
import { count, duration, plain, stateOf, words } from "../lib/format.js"
import { html, useEffect, useId, useMemo, useRef, useState } from "../lib/html.js"
import { Badge, Button } from "../ui/parts.js"

const SPEEDS = /** @type {[number, string][]} */ ([[0.5, "Half speed"], [1, "As it was"], [4, "4 times as fast"], [16, "16 times as fast"], [64, "64 times as fast"]])
/** What of a pause without events is played, in ms of the spectator. */
const PAUSE_MS = 1_200

/** @typedef {{ms: number, total: number, known: number, isPlaying: boolean, speed: number, skips: boolean,
 *   set: (change: Partial<{ms: number, isPlaying: boolean, speed: number, skips: boolean}>) => void}} Replay */

/**
 * Play the events of a run; `known` of them have happened at `ms` after its creation.
 * @param {any} run
 * @param {any[]} events
 * @returns {Replay}
 */
export function useReplay(run, events) {
  const [state, setState] = useState({ ms: 0, isPlaying: false, speed: 1, skips: true })
  const offsets = useMemo(() => offsetsOf(run, events), [run.created_at, events])
  const total = offsets.at(-1) ?? 0
  const known = useMemo(() => after(offsets, state.ms), [offsets, state.ms])
  const latest = useRef({ offsets, total })
  latest.current = { offsets, total }
  useEffect(() => {
    if (!state.isPlaying) return
    let before = performance.now()
    let frame = requestAnimationFrame(function advance(now) {
      const passed = now - before
      before = now
      setState((old) => {
        const { offsets: all, total: end } = latest.current
        let ms = old.ms + passed * old.speed
        const next = all[after(all, old.ms)] ?? end
        if (old.skips) ms = Math.max(ms, next - PAUSE_MS * old.speed)
        return { ...old, ms: Math.min(ms, end), isPlaying: ms < end }
      })
      frame = requestAnimationFrame(advance)
    })
    return () => cancelAnimationFrame(frame)
  }, [state.isPlaying])
  return { ...state, total, known, set: (change) => setState((old) => ({ ...old, ...change })) }
}

/** Return when each event happened, in ms from the creation on; never before the one before it. @param {any} run @param {any[]} events */
function offsetsOf(run, events) {
  let last = 0
  return events.map((event) => (last = Math.max(last, Date.parse(event.created_at) - Date.parse(run.created_at))))
}

/** Return how many of the sorted numbers are at most this one. @param {number[]} sorted @param {number} value */
function after(sorted, value) {
  let low = 0
  let high = sorted.length
  while (low < high) {
    const middle = (low + high) >> 1
    if (sorted[middle] <= value) low = middle + 1
    else high = middle
  }
  return low
}

/** @param {{replay: Replay, events: any[]}} props */
export function Controls({ replay, events }) {
  const id = useId()
  const { ms, total, isPlaying, set } = replay
  const isOver = ms >= total
  const play = () => set(isPlaying ? { isPlaying: false } : { isPlaying: true, ms: isOver ? 0 : ms })
  const last = events[replay.known - 1]
  return html`<div class="replay-bar">
    <${Button} kind="primary" icon=${isPlaying ? "pause" : "play"} onClick=${play}>${isPlaying ? "Pause" : isOver ? "Play again" : "Play"}</${Button}>
    <label class="sr" for=${id}>Moment of the run</label>
    <input id=${id} type="range" min="0" max=${Math.max(1, Math.round(total))} step="1" value=${Math.round(ms)}
      aria-valuetext=${`${duration(ms)} of ${duration(total)}`} onInput=${(/** @type {any} */ event) => set({ ms: Number(event.target.value), isPlaying: false })} />
    <span class="replay-time">${duration(ms)} <span class="faint">of ${duration(total)}</span></span>
    <label class="sr" for=${`${id}-speed`}>Speed</label>
    <select id=${`${id}-speed`} class="small" value=${String(replay.speed)} onChange=${(/** @type {any} */ event) => set({ speed: Number(event.target.value) })}>
      ${SPEEDS.map(([value, text]) => html`<option key=${value} value=${String(value)}>${text}</option>`)}</select>
    <label class="check"><input type="checkbox" checked=${replay.skips} onChange=${(/** @type {any} */ event) => set({ skips: event.target.checked })} />Shorten pauses</label>
  </div>
  <p class="faint">Event ${count(replay.known)} of ${count(events.length)}${last ? html`: <code>${last.type}</code>` : ""}</p>`
}

/** What people saw of the run at that moment. @param {{run: any, events: any[], known: number}} props */
export function Scene({ run, events, known }) {
  const kept = useRef(/** @type {{entry: any, known: number}} */ ({ entry: begun(run), known: 0 }))
  // Forwards only the news are folded; backwards everything is, from the beginning on.
  if (known < kept.current.known) kept.current = { entry: begun(run), known: 0 }
  let { entry } = kept.current
  for (const event of events.slice(kept.current.known, known)) entry = fold(entry, event)
  kept.current = { entry, known }
  const pending = entry.pending_input
  return html`<div class="scene run" aria-label="The run at this moment" role="group">
    <p><${Badge} status=${known === 0 ? "queued" : stateOf(entry)} /></p>
    ${entry.turns.map((/** @type {any} */ turn, /** @type {number} */ index) => html`<${Turn} key=${index} turn=${turn} run=${entry}
      isLive=${entry.ended_at === null && index === entry.turns.length - 1} />`)}
    ${pending && html`<p class="note">Waits for ${words(pending.kind)}: ${plain(String(pending.prompt ?? ""))}</p>`}
    ${entry.error && html`<p class="note">${plain(entry.error.message)}</p>`}</div>`
}

/** Return the entry of a run of which no event is known. @param {any} run */
export const begun = (run) => ({
  type: "run", run_id: run.run_id, status: "running", phase: "queued", seq: 0, first_turn: 0, turns: [], pending_input: null,
  error: null, superseded_by: null, created_by_user_id: run.created_by_user_id, persona_id: run.persona_id, model: run.model, queue: null, stop_reason: null, cost_usd: null,
  usage: null, message_id: null, created_at: run.created_at, started_at: null, ended_at: null,
})
