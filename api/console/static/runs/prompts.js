// The requests of a run's model calls, as their vendors received them.
import { get, segment } from "../lib/api.js"
import { count, json, plain, words } from "../lib/format.js"
import { html, useState } from "../lib/html.js"
import { Data, parsed } from "../ui/json.js"
import { Button, Code, Foreign, Loading, Problem, Time, useRead } from "../ui/parts.js"

/** Messages that are shown at first. */
const MOST = 12
const PURPOSES = /** @type {Record<string, string>} */ ({ summary: "summary", last_answer: "last answer" })

/** @param {{run: any, events: any[]}} props */
export function Prompts({ run, events }) {
  // An event follows each prompt; those that end a call are enough.
  const calls = events.filter((event) => ["run.cost", "message.reset", "run.retrying"].includes(event.type)).length
  const { data, error, reload } = useRead((signal) => get(`runs/${segment(run.run_id)}/prompts`, {}, signal), [run.run_id, calls, run.phase])
  const [open, setOpen] = useState(0)
  if (data === null) return error ? html`<${Problem} error=${error} onRetry=${reload} />` : null
  return html`<section class="panel"><h2>Prompts as sent <span class="faint">${count(data.length)}</span></h2>
    ${data.length === 0 && html`<p class="faint">None are stored of this run${run.phase === "finished" ? "" : " yet"}.</p>`}
    <ol class="calls">${data.map((/** @type {any} */ one) => html`<li key=${one.number}>
      <button type="button" class="fold" aria-expanded=${open === one.number} onClick=${() => setOpen(open === one.number ? 0 : one.number)}>
        <span>Step ${one.step}${PURPOSES[one.purpose] ? `, ${PURPOSES[one.purpose]}` : ""}${one.try_number > 1 ? `, try ${one.try_number}` : ""}</span>
        <span class="faint"><${Foreign} text=${`${one.provider} · ${one.model}`} /> · ${count(one.bytes)} bytes · <${Time} at=${one.sent_at} /></span></button>
      ${open === one.number && html`<${Prompt} runId=${run.run_id} number=${one.number} />`}</li>`)}</ol></section>`
}

/** @param {{runId: string, number: number}} props */
function Prompt({ runId, number }) {
  const { data, error, reload } = useRead((signal) => get(`runs/${segment(runId)}/prompts`, { number }, signal), [runId, number])
  const [isRaw, setRaw] = useState(false)
  if (data === null) return error ? html`<${Problem} error=${error} onRetry=${reload} />` : html`<${Loading} lines=${3} />`
  const body = data[0]?.body ?? null
  if (body === null) return html`<p class="note">There is no body: it was too long, or it, or one that it is based on, was lost.</p>`
  const value = parsed(body)
  const isObject = value !== null && typeof value === "object"
  return html`<div class="prompt">
    ${isObject && html`<${Button} class="small" onClick=${() => setRaw(!isRaw)}>${isRaw ? "Show its parts" : "Show the body as sent"}</${Button}>`}
    ${isRaw || !isObject ? html`<${Data} value=${body} label="body" />` : html`<${Parts} body=${value} />`}</div>`
}

/** The parts of a body, whichever API it is for. @param {{body: any}} props */
function Parts({ body }) {
  const [isWhole, setWhole] = useState(false)
  const { instructions, system, messages, input, tools, ...parameters } = body
  const sent = [messages ?? input ?? []].flat()
  const hidden = isWhole ? 0 : Math.max(0, sent.length - MOST)
  return html`${[instructions, system].filter(Boolean).map((text) => html`<${Data} value=${textOf(text)} label="system" />`)}
    ${hidden > 0 && html`<${Button} class="small" onClick=${() => setWhole(true)}>Show ${count(hidden)} earlier messages</${Button}>`}
    ${sent.slice(hidden).map((one, index) => html`<${Data} key=${hidden + index} label=${labelOf(one)} value=${saidIn(one)} />`)}
    ${tools && html`<${Data} label="tools" value=${tools} />`}
    <${Code} label="parameters" text=${json(parameters)} />`
}

/** @param {any} one */
const labelOf = (one) => plain(words([one?.role ?? one?.type ?? "message", one?.name].filter(Boolean).join(" ")))

/** @param {any} one */
function saidIn(one) {
  if (one === null || typeof one !== "object") return String(one)
  const { role, type, content, output, ...rest } = one
  const others = Object.keys(rest).length > 0 ? [json(rest)] : []
  return [textOf(content), textOf(output), ...others].filter(Boolean).join("\n")
}

/** Return the text of what is a text, or a list of parts. @param {any} content @returns {string} */
function textOf(content) {
  if (content === null || content === undefined) return ""
  if (!Array.isArray(content)) return /** @type {string} */ (json(content))
  return content.map((part) => (typeof part?.text === "string" ? part.text : json(part))).join("\n")
}
