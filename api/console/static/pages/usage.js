// What the org has used: by day, model, persona's end user and metadata.
import { ApiError, get } from "../lib/api.js"
import { now } from "../lib/clock.js"
import { count, money, short } from "../lib/format.js"
import { classes, html, useEffect, useRef, useState } from "../lib/html.js"
import { reached } from "../lib/reached.js"
import { go } from "../lib/router.js"
import { Empty, Field, Foreign, Head, Loading, Problem, useRead } from "../ui/parts.js"

const DAYS = [7, 30, 90]
/** A report covers no more. */
const MOST_DAYS = 366
const MEASURES = /** @type {const} */ ([["cost_usd", "Cost"], ["runs", "Runs"], ["tokens", "Tokens"]])

/** @param {any} row @param {string} measure */
const valueOf = (row, measure) => (measure === "tokens" ? row.input_tokens + row.output_tokens : row[measure])
/** @param {number} value @param {string} measure */
const shown = (value, measure) => (measure === "cost_usd" ? money(value) : short(value))

/** @param {number} days */
function periodOf(days) {
  const day = (/** @type {number} */ at) => new Date(at).toISOString().slice(0, 10)
  return { from: day(now() - (days - 1) * 86_400_000), to: day(now() + 86_400_000) }
}

/** Rows of the reports by end user and by value of metadata. */
const MOST_PEOPLE = 20
const MOST_VALUES = 100

/** What the page shows of a period, the most important first. */
const REPORTS = /** @type {const} */ ([["total", "me/usage", {}], ["daily", "me/usage/daily", {}], ["models", "me/usage/by-model", {}],
  ["people", "me/usage/by-end-user", { limit: MOST_PEOPLE }]])

/**
 * Read a report, again and again while the organization's reports, or its requests, have to wait.
 * @param {string} path
 * @param {Record<string, string | number>} params
 * @param {AbortSignal} signal
 * @param {(why: string) => void} onWait is called with why it waits, and with "" once it has waited
 */
async function report(path, params, signal, onWait) {
  for (;;) {
    try {
      return await get(path, params, signal)
    } catch (error) {
      if (!(error instanceof ApiError) || error.status !== 429) throw error
      const seconds = error.retryAfter || 1
      const limit = reached(error)
      onWait(limit ? `${limit} The page continues in ${seconds} s.` : `The organization's reports have to wait for ${seconds} s.`)
      await new Promise((resolve) => {
        setTimeout(resolve, 1_000 * seconds)
        signal.addEventListener("abort", resolve, { once: true })
      })
      signal.throwIfAborted()
      onWait("")
    }
  }
}

/** @param {{params: URLSearchParams}} props */
export function Page({ params }) {
  const given = Math.floor(Number(params.get("days")))
  const days = given >= 1 && given <= MOST_DAYS ? given : 30
  const measure = MEASURES.find(([name]) => name === params.get("measure"))?.[0] ?? "cost_usd"
  const key = params.get("key") ?? ""
  const set = (/** @type {Record<string, string>} */ change) => go("/usage", { ...Object.fromEntries(params), ...change }, { replace: true })
  const period = periodOf(days)
  const [data, setData] = useState(/** @type {Record<string, any>} */ ({}))
  const [wait, setWait] = useState("")
  const read = useRead(async (signal) => {
    setData({})
    setWait("")
    // One after the other: an organization has one report at a time, and others may read theirs too.
    for (const [name, path, more] of REPORTS) {
      const found = await report(path, { ...period, ...more }, signal, setWait)
      setData((before) => ({ ...before, [name]: found }))
    }
  }, [days])
  return html`<${Head} title="Usage" actions=${html`<div class="chips" role="group" aria-label="Period">${DAYS.map((one) => html`
      <button type="button" key=${one} class=${classes("chip", one === days && "on")} aria-pressed=${one === days}
        onClick=${() => set({ days: String(one) })}>${one} days</button>`)}</div>`} />
    <div class="page">
      <${Problem} error=${read.error} onRetry=${read.reload} />
      ${data.total && html`
        <dl class="figures">
          ${[["Cost", money(data.total.cost_usd)], ["Runs", count(data.total.runs)], ["Input tokens", short(data.total.input_tokens)],
            ["Read from caches", share(data.total.cache_read_tokens, data.total.input_tokens)], ["Output tokens", short(data.total.output_tokens)],
            [`Cost in ${data.total.this_month.month}`, money(data.total.this_month.cost_usd)]].map(([name, value]) => html`<div key=${name}><dt>${name}</dt><dd>${value}</dd></div>`)}
        </dl>`}
      ${data.daily && html`
        <section class="panel"><header class="panel-head"><h2>By day (UTC)</h2>
          <div class="chips" role="group" aria-label="Measure">${MEASURES.map(([name, label]) => html`<button type="button" key=${name}
            class=${classes("chip", name === measure && "on")} aria-pressed=${name === measure} onClick=${() => set({ measure: name })}>${label}</button>`)}</div></header>
          <${Days} rows=${data.daily} measure=${measure} /></section>`}
      ${data.models && html`
        <div class="panels">
          <section class="panel"><h2>By model</h2><${Shares} rows=${data.models} name="model" measure=${measure} /></section>
          ${data.people && html`
          <section class="panel"><h2>By end user</h2><${Shares} rows=${data.people} name="end_user_id" measure=${measure} none="No end user" most=${MOST_PEOPLE} /></section>
          <section class="panel"><h2>By metadata</h2><${ByMetadata} period=${period} days=${days} initial=${key} measure=${measure} onKey=${(/** @type {string} */ name) => set({ key: name })} /></section>`}
        </div>`}
      <${Wait} why=${wait} />
      ${!data.people && !read.error && html`<${Loading} lines=${8} />`}
    </div>`
}

/** @param {{why: string}} props */
const Wait = ({ why }) => why && html`<p class="faint" role="status">${why}</p>`

/** @param {number} part @param {number} whole */
const share = (part, whole) => (whole > 0 ? `${Math.round((100 * part) / whole)} %` : "–")

const HEIGHT = 200
const AXIS = 24
const LEFT = 52
/** Wide enough for a character of the axis. */
const DIGIT = 7

/** Bars, one a day. @param {{rows: any[], measure: string}} props */
function Days({ rows, measure }) {
  const box = useRef(/** @type {HTMLElement | null} */ (null))
  const [width, setWidth] = useState(900)
  const [at, setAt] = useState(/** @type {number | null} */ (null))
  useEffect(() => {
    if (box.current === null) return
    const observer = new ResizeObserver(([entry]) => setWidth(Math.max(260, entry.contentRect.width)))
    observer.observe(box.current)
    return () => observer.disconnect()
  }, [])
  const values = rows.map((row) => valueOf(row, measure))
  const top = niceTop(Math.max(...values, 0))
  const parts = [0, 0.5, 1].map((part) => ({ value: part * top, text: shown(part * top, measure) }))
  // Small costs have many decimals.
  const left = Math.max(LEFT, 12 + DIGIT * Math.max(...parts.map((part) => part.text.length)))
  const step = (width - left) / rows.length
  const y = (/** @type {number} */ value) => HEIGHT - AXIS - (value / top) * (HEIGHT - AXIS - 14)
  const every = Math.ceil(rows.length / Math.max(2, Math.floor((width - left) / 64)))
  const chosen = at === null ? null : rows[at]
  return html`<div class="chart" ref=${box}>
    <p class="chart-at" aria-hidden="true">${chosen ? html`<b>${label(chosen.date)}</b> ${money(chosen.cost_usd)} · ${count(chosen.runs)} runs
      · ${short(chosen.input_tokens + chosen.output_tokens)} tokens` : html`<span class="faint">Point at a day to see its numbers</span>`}</p>
    <svg width=${width} height=${HEIGHT} viewBox=${`0 0 ${width} ${HEIGHT}`} role="img" onPointerLeave=${() => setAt(null)}
      aria-label=${`By day (UTC), from ${label(rows[0]?.date ?? "")} to ${label(rows.at(-1)?.date ?? "")}: at most ${shown(Math.max(...values, 0), measure)} a day`}>
      ${parts.map(({ value, text }) => html`<g key=${value}><line class="grid" x1=${left} x2=${width} y1=${y(value)} y2=${y(value)} />
        <text class="tick" x=${left - 8} y=${y(value) + 4} text-anchor="end">${text}</text></g>`)}
      ${rows.map((row, index) => html`<g key=${row.date} onPointerEnter=${() => setAt(index)}>
        <rect class="hit" x=${left + index * step} y="0" width=${step} height=${HEIGHT - AXIS} />
        <rect class=${classes("bar", index === at && "on")} x=${left + index * step + step * 0.14} width=${Math.max(1, step * 0.72)}
          y=${values[index] > 0 ? Math.min(y(values[index]), HEIGHT - AXIS - 2) : HEIGHT - AXIS}
          height=${values[index] > 0 ? Math.max(2, HEIGHT - AXIS - y(values[index])) : 0} rx="2" />
        ${index % every === 0 && html`<text class="tick" x=${left + (index + 0.5) * step} y=${HEIGHT - 7} text-anchor="middle">${label(row.date)}</text>`}</g>`)}
    </svg>
    <table class="sr"><caption>By day (UTC)</caption><thead><tr><th scope="col">Day</th><th scope="col">Cost</th><th scope="col">Runs</th></tr></thead>
      <tbody>${rows.map((row) => html`<tr key=${row.date}><td>${row.date}</td><td>${money(row.cost_usd)}</td><td>${row.runs}</td></tr>`)}</tbody></table>
  </div>`
}

/** @param {number} value */
function niceTop(value) {
  if (value <= 0) return 1
  const magnitude = 10 ** Math.floor(Math.log10(value))
  return ([1, 2, 2.5, 5, 10].find((factor) => factor * magnitude >= value) ?? 10) * magnitude
}

const dayMonth = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short", timeZone: "UTC" })
/** @param {string} date */
const label = (date) => (date ? dayMonth.format(new Date(date)) : "")

/** Rows with a bar each; of `most` rows, there may be cheaper ones. @param {{rows: any[], name: string, measure: string, none?: string, most?: number}} props */
function Shares({ rows, name, measure, none = "None", most: limit = Infinity }) {
  if (rows.length === 0) return html`<p class="faint">Nothing in this period.</p>`
  const sorted = [...rows].sort((a, b) => valueOf(b, measure) - valueOf(a, measure))
  const most = Math.max(...sorted.map((row) => valueOf(row, measure)), 1e-9)
  return html`${rows.length >= limit && html`<p class="faint">The ${limit} most expensive.</p>`}<ul class="shares">${sorted.map((row) => html`<li key=${row[name] ?? ""}>
    <span class="share-name">${row[name] === null ? html`<span class="faint">${none}</span>` : html`<${Foreign} text=${row[name]} />`}</span>
    <span class="number">${shown(valueOf(row, measure), measure)}</span>
    <svg class="share-bar" height="4" width="100%" aria-hidden="true"><rect class="track" width="100%" height="4" rx="2" />
      <rect class="bar" width=${`${(100 * valueOf(row, measure)) / most}%`} height="4" rx="2" /></svg></li>`)}</ul>`
}

/** @param {{period: any, days: number, initial: string, measure: string, onKey: (key: string) => void}} props */
function ByMetadata({ period, days, initial, measure, onKey }) {
  const [text, setText] = useState(initial)
  const submit = (/** @type {Event} */ event) => {
    event.preventDefault()
    onKey(text.trim())
  }
  // Of another key or period nothing stays, not even until its own values are there: reports may have to wait.
  return html`<form onSubmit=${submit}><${Field} label="Key" id="metadata-key">${(/** @type {string} */ field) => html`<input id=${field} class="small" placeholder="team"
      value=${text} onInput=${(/** @type {any} */ event) => setText(event.target.value)} />`}</${Field}></form>
    ${initial ? html`<${Values} key=${`${days} ${initial}`} period=${period} name=${initial} measure=${measure} />`
      : html`<${Empty} icon="usage" title="">Enter a key of your runs' metadata to compare its values.</${Empty}>`}`
}

/** @param {{period: any, name: string, measure: string}} props */
function Values({ period, name, measure }) {
  const [wait, setWait] = useState("")
  const read = useRead(async (signal) => {
    setWait("")
    return report("me/usage/by-metadata", { ...period, key: name, limit: MOST_VALUES }, signal, setWait)
  }, [])
  return html`<${Problem} error=${read.error} onRetry=${read.reload} />
    <${Wait} why=${wait} />
    ${read.data && html`<${Shares} rows=${read.data} name="value" measure=${measure} none="Without this key" most=${MOST_VALUES} />`}`
}
