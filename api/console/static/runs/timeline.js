// A run's time as a picture: queue, model, tools and waiting, one lane each.
import { now as serviceNow } from "../lib/clock.js"
import { duration } from "../lib/format.js"
import { html, useEffect, useMemo, useRef, useState } from "../lib/html.js"
import { plain } from "../lib/format.js"
import { spansOf } from "./spans.js"

const ROW = 30
const BAR = 18
const AXIS = 24
const LABEL = 76
/** Each with what a bar of it is. */
const LANES = /** @type {const} */ ([["Queue", "queue wait"], ["Model", "model call"], ["Tools", "tool call"], ["Waiting", "wait"]])
/** Of each lane. */
const MOST_ROWS = 40

/**
 * With `ms` the run is shown as it was that long after its creation, on the axis of all of it.
 * @param {{run: any, events: any[], ms?: number | null, total?: number}} props
 */
export function Timeline({ run, events, ms = null, total = 0 }) {
  const box = useRef(/** @type {HTMLElement | null} */ (null))
  const [width, setWidth] = useState(800)
  const [now, setNow] = useState(serviceNow)
  const isLive = run.phase !== "finished" && ms === null
  useEffect(() => {
    if (box.current === null) return
    const observer = new ResizeObserver(([entry]) => setWidth(Math.max(280, entry.contentRect.width)))
    observer.observe(box.current)
    return () => observer.disconnect()
  }, [])
  useEffect(() => {
    if (!isLive) return
    const timer = setInterval(() => setNow(serviceNow()), 500)
    return () => clearInterval(timer)
  }, [isLive])
  const from = Date.parse(run.created_at)
  const spans = useMemo(() => (ms === null ? spansOf(run, events, now)
    : spansOf({ ...run, completed_at: null, failed_at: null, cancelled_at: null }, events, from + ms)), [run, events, isLive ? now : 0, ms])
  const { rows, rest } = useMemo(() => rowsOf(spans), [spans])
  const to = ms === null ? Math.max(...spans.map((span) => span.to), from + 1) : from + Math.max(total, 1)
  const x = (/** @type {number} */ at) => LABEL + ((at - from) / (to - from)) * (width - LABEL - 8)
  const height = rows.length * ROW + AXIS + 4
  const sums = sumsOf(spans)
  return html`<div class="timeline" ref=${box}>
    <ul class="legend">${sums.map(([kind, label, ms]) => html`<li key=${kind}><svg width="10" height="10" aria-hidden="true"><rect width="10" height="10" rx="3"
      class=${`span ${kind}`} /></svg>${label} <span class="faint">${duration(ms)}</span></li>`)}</ul>
    <svg width=${width} height=${height} viewBox=${`0 0 ${width} ${height}`} role="img"
      aria-label=${`Timeline of ${duration(to - from)}: ${sums.map(([, label, ms]) => `${label} ${duration(ms)}`).join(", ")}`}>
      ${ticks(to - from, width).map((ms) => html`<g key=${ms}><line class="grid" x1=${x(from + ms)} x2=${x(from + ms)} y1="0" y2=${height - AXIS} />
        <text class="tick" x=${x(from + ms)} y=${height - 7} text-anchor=${ms === 0 ? "start" : "middle"}>${ms === 0 ? "0" : duration(ms)}</text></g>`)}
      ${rows.map((row, index) => html`<g key=${index} transform=${`translate(0 ${index * ROW + 2})`}>
        ${row.isFirst && html`<text class="lane" x="0" y=${BAR / 2 + 9}>${row.lane}</text>`}
        ${row.spans.map((span, at) => {
          const left = x(span.from)
          const wide = Math.max(3, x(span.to) - left)
          const label = `${plain(span.label)} · ${duration(span.to - span.from)}`
          return html`<g key=${at}><title>${label}</title>
            <rect class=${`span ${span.kind}${span.isBad ? " bad" : ""}${span.isOpen ? " open" : ""}`} x=${left} y="6" width=${wide} height=${BAR} rx="4" />
            ${wide > 7 * label.length && html`<text class=${`span-label ${span.kind}`} x=${left + 7} y=${BAR / 2 + 10}>${label}</text>`}</g>`
        })}</g>`)}
      ${ms !== null && html`<line class="moment" x1=${x(from + ms)} x2=${x(from + ms)} y1="0" y2=${height - AXIS} />`}
    </svg>
    ${rest.map(([what, count]) => html`<p class="faint" key=${what}>${count} more ${what}${count === 1 ? " is" : "s are"} not shown.</p>`)}</div>`
}

/**
 * Put spans into rows in which they do not overlap, lane by lane; `rest` is how many of a lane find no row.
 * @param {import("./spans.js").Span[]} spans
 */
function rowsOf(spans) {
  /** @type {{lane: string, isFirst: boolean, spans: import("./spans.js").Span[]}[]} */
  const rows = []
  const rest = /** @type {[string, number][]} */ ([])
  for (const [lane, what] of LANES) {
    /** @type {import("./spans.js").Span[][]} */
    const own = []
    let left = 0
    for (const span of spans.filter((one) => one.lane === lane).sort((a, b) => a.from - b.from)) {
      const free = own.find((row) => row[row.length - 1].to <= span.from)
      if (free) free.push(span)
      else if (own.length < MOST_ROWS) own.push([span])
      else left += 1
    }
    rows.push(...own.map((row, index) => ({ lane, isFirst: index === 0, spans: row })))
    if (left > 0) rest.push([what, left])
  }
  return { rows, rest }
}

/** @param {import("./spans.js").Span[]} spans @returns {[string, string, number][]} */
function sumsOf(spans) {
  const names = /** @type {[string, string][]} */ ([["queue", "Queue"], ["model", "Model"], ["tool", "Tools"], ["wait", "Waiting for people"], ["throttle", "Throttled or retrying"]])
  return names
    .map(([kind, label]) => /** @type {[string, string, number]} */ ([kind, label,
      spans.filter((span) => span.kind === kind).reduce((sum, span) => sum + span.to - span.from, 0)]))
    .filter(([kind, , ms]) => ms > 0 || kind === "model")
}

/** Return where the axis has marks, in ms. @param {number} total @param {number} width */
function ticks(total, width) {
  const wanted = Math.max(2, Math.floor((width - LABEL) / 110))
  const magnitude = 10 ** Math.floor(Math.log10(Math.max(total / wanted, 1)))
  const step = [1, 2, 5, 10].map((factor) => factor * magnitude).find((size) => total / size <= wanted) ?? total
  const marks = []
  for (let at = 0; at <= total - step * 0.35; at += step) marks.push(at)
  return marks
}
