// What each model call of a run had before it, rebuilt from the log: instructions, thread, own turns.
//
// It is no copy of the request, which nobody keeps: the page says what may have differed.
import { fold } from "../chat/fold.js"
import { get, page, segment } from "../lib/api.js"
import { count, json, parts, plain, words } from "../lib/format.js"
import { html, useMemo, useState } from "../lib/html.js"
import { Button, Code, Loading, Problem, useRead } from "../ui/parts.js"
import { begun } from "./replay.js"

/** Pages of the thread that are looked through for the run. */
const PAGES = 5
const PAGE = 50

/** @typedef {{role: string, text: string}} Sent */

/** @param {{run: any, events: any[]}} props */
export function Prompts({ run, events }) {
  const calls = useMemo(() => callsOf(run, events), [run.run_id, events])
  const [open, setOpen] = useState(-1)
  if (calls.length === 0) return null
  return html`<section class="panel"><h2>Model calls <span class="faint">${count(calls.length)}</span></h2>
    <ol class="calls">${calls.map((call, index) => html`<li key=${call.seq}>
      <button type="button" class="fold" aria-expanded=${open === index} onClick=${() => setOpen(open === index ? -1 : index)}>
        <span>Call ${index + 1}</span> <span class="faint">${count(call.usage?.input_tokens)} tokens in, ${count(call.usage?.output_tokens)} out</span></button>
      ${open === index && html`<${Prompt} run=${run} call=${call} />`}</li>`)}</ol></section>`
}

/**
 * Return the finished model calls of a run, each with the turns before it.
 * @param {any} run
 * @param {any[]} events
 */
function callsOf(run, events) {
  /** @type {{seq: number, usage: any, own: Sent[], dropped: number, summary: string}[]} */
  const calls = []
  let entry = /** @type {any} */ (begun(run))
  /** @type {{at: number, sent: Sent}[]} */
  const steered = []
  let dropped = 0
  let summary = ""
  for (const event of events) {
    if (event.type === "message.completed") {
      const own = entry.turns.slice(0, calls.length).flatMap((/** @type {any} */ turn, /** @type {number} */ index) => [
        ...turnOf(turn), ...steered.filter(({ at }) => at === index + 1).map(({ sent }) => sent)])
      const first = steered.filter(({ at }) => at === 0).map(({ sent }) => sent)
      calls.push({ seq: event.seq, usage: event.data.usage, own: [...first, ...own], dropped, summary })
    }
    if (event.type === "run.steered") steered.push({ at: calls.length, sent: { role: "user", text: event.data.content } })
    if (event.type === "context.truncated") dropped = event.data.dropped_messages
    if (event.type === "context.compacted") {
      dropped = event.data.dropped_messages
      summary = event.data.summary ?? ""
    }
    entry = fold(entry, event)
  }
  return calls
}

/** @param {any} turn @returns {Sent[]} */
const turnOf = (turn) => [
  ...(turn.text ? [{ role: "assistant", text: turn.text }] : []),
  ...turn.tool_calls.map((/** @type {any} */ call) => ({ role: `assistant calls ${call.name}`, text: json(call.arguments ?? {}) })),
  ...turn.tool_calls.filter((/** @type {any} */ call) => call.result).map((/** @type {any} */ call) => ({
    role: `${call.result.is_error ? "error" : "result"} of ${call.name}`, text: json(call.result.output) })),
]

/** @param {{run: any, call: ReturnType<typeof callsOf>[number]}} props */
function Prompt({ run, call }) {
  const { data, error, reload } = useRead((signal) => before(run, signal), [run.run_id])
  const [isWhole, setWhole] = useState(false)
  if (data === null) return error ? html`<${Problem} error=${error} onRetry=${reload} />` : html`<${Loading} lines=${3} />`
  const sent = [...data.thread, ...call.own]
  const most = 12
  const hidden = isWhole ? 0 : Math.max(0, sent.length - most)
  return html`<div class="prompt">
    <p class="note">Rebuilt from the log; the request itself is not kept. ${call.dropped > 0 ? `The oldest ${count(call.dropped)} messages were left out of it${call.summary ? ", and a summary stood in their place" : ""}. ` : ""}
      Long results may have been cut in it, and the descriptions of tools are not shown.</p>
    <${Code} label="system" text=${data.instructions || "(none)"} />
    ${call.summary && html`<${Code} label="summary of what came before" text=${call.summary} />`}
    ${!data.isFound && html`<p class="faint">The run is too far back in its thread for the messages before it to be shown.</p>`}
    ${data.isCut && html`<p class="faint">Earlier messages of the thread are not shown.</p>`}
    ${hidden > 0 && html`<${Button} class="small" onClick=${() => setWhole(true)}>Show ${count(hidden)} earlier messages</${Button}>`}
    ${sent.slice(hidden).map((one, index) => html`<${Code} key=${hidden + index} label=${plain(words(one.role))} text=${one.text} />`)}</div>`
}

/**
 * Read what was before the run: its instructions and the thread.
 * @param {any} run
 * @param {AbortSignal} signal
 */
async function before(run, signal) {
  const [persona, thread] = await Promise.all([get(`personas/${segment(run.persona_id)}`, {}, signal), threadBefore(run, signal)])
  const { variables = {}, instructions } = run.overrides ?? {}
  // As the service fills them in: a value is not searched for other names.
  const prompt = (persona.system_prompt ?? "").replace(/\{\{(\w+)\}\}/g, (/** @type {string} */ whole, /** @type {string} */ name) => variables[name] ?? whole)
  return { ...thread, instructions: [prompt, instructions].filter(Boolean).join("\n\n") }
}

/** @param {any} run @param {AbortSignal} signal */
async function threadBefore(run, signal) {
  /** @type {any[]} */
  let entries = []
  let cursor = /** @type {string | null} */ (null)
  for (let number = 0; number < PAGES; number += 1) {
    const { rows, next } = await page(`threads/${segment(run.thread_id)}/timeline`, { limit: PAGE, before: cursor }, signal)
    entries = [...rows, ...entries]
    cursor = next
    const at = entries.findIndex((entry) => entry.type === "run" && entry.run_id === run.run_id)
    if (at >= 10 || (at >= 0 && next === null)) return { isFound: true, isCut: next !== null, thread: entries.slice(0, at).flatMap(sentOf) }
    if (next === null) break
  }
  const at = entries.findIndex((entry) => entry.type === "run" && entry.run_id === run.run_id)
  return { isFound: at >= 0, isCut: cursor !== null, thread: at < 0 ? [] : entries.slice(0, at).flatMap(sentOf) }
}

/** @param {any} entry @returns {Sent[]} */
function sentOf(entry) {
  if (entry.type === "run") return entry.superseded_by === null ? entry.turns.flatMap(turnOf) : []
  return [{ role: entry.role, text: parts(entry.content).map((part) => part.text ?? `[${part.type} ${part.file_id ?? part.url ?? ""}]`).join("\n") }]
}
