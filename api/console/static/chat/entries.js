// Messages and runs of a conversation.
import { count, duration, exactly, json, money, parts, plain, words } from "../lib/format.js"
import { classes, html, useState } from "../lib/html.js"
import { href } from "../lib/router.js"
import { roleReads } from "../lib/role.js"
import { may, mayWrite } from "../lib/session.js"
import { useStore } from "../lib/store.js"
import { Icon } from "../ui/icons.js"
import { Data, parsed } from "../ui/json.js"
import { Markdown } from "../ui/markdown.js"
import { Button, Foreign, Problem, useAction } from "../ui/parts.js"
import { FileOf } from "./attachments.js"
import { Answered, PendingInput, inFull } from "./pending_input.js"
import { useOpenRequest } from "./replies.js"

/** @param {{entry: import("./conversation.js").MessageEntry}} props */
export function Message({ entry }) {
  if (entry.role === "assistant") {
    return html`<article class="run" aria-label="Assistant"><${Markdown} text=${textOf(entry.content)} />
      ${entry.partial && html`<p class="faint">Incomplete</p>`}</article>`
  }
  const { earlier, own } = withoutEarlier(entry)
  return html`<article class="said" aria-label="User" title=${exactly(entry.created_at)}>
    ${earlier && html`<${Folded} label="Earlier conversation" text=${earlier} />`}
    ${own.map((part, index) => part.type === "text"
      ? html`<${SaidText} key=${index} text=${plain(part.text ?? "")} />`
      : html`<${FileOf} key=${index} part=${part} />`)}
  </article>`
}

const EARLIER = /^<earlier_conversation>\n([^]*?)\n<\/earlier_conversation>\n(?:\n|$)/

/** Return the parts of a message, and apart from them the conversation that a client has sent in front of its text.
 * @param {import("./conversation.js").MessageEntry} entry */
function withoutEarlier(entry) {
  const all = parts(entry.content)
  const first = all.find((part) => part.type === "text")
  const found = Number(entry.metadata?.["responses.earlier_lines"]) > 0 && EARLIER.exec(first?.text ?? "")
  if (!first || !found) return { earlier: "", own: all }
  const text = first.text?.slice(found[0].length)
  return { earlier: found[1] ?? "", own: all.flatMap((part) => part !== first ? [part] : text ? [{ ...part, text }] : []) }
}

/** A message that is on its way, or has arrived and is not read back yet. @param {{sending: import("./conversation.js").Sending}} props */
export const Said = ({ sending: { text, isRepeated, runId } }) => html`<article class="said sending" aria-label="User">
  <${SaidText} text=${plain(text)} />
  <p class="faint" role="status">${runId ? "Sent" : isRepeated ? "No connection: it is sent again …" : "Sending …"}</p></article>`

const MOST_SHOWN = 1_200

/** A message; of a long one its beginning, until a click. @param {{text: string}} props */
function SaidText({ text }) {
  const [isWhole, setWhole] = useState(false)
  const isLong = text.length > 1.3 * MOST_SHOWN
  return html`<p class="said-text">${isLong && !isWhole ? `${text.slice(0, MOST_SHOWN)} …` : text}</p>
    ${isLong && html`<button type="button" class="link" onClick=${() => setWhole(!isWhole)}>
      ${isWhole ? "Show less" : `Show all ${count(text.length)} characters`}</button>`}`
}

/** @param {any} content */
const textOf = (content) => parts(content).map((part) => part.text ?? "").join("")

/**
 * @param {{run: import("./fold.js").RunEntry, canRetry: boolean, waitsForThread: boolean, onCancel: (sending: import("../lib/api.js").Sending) => Promise<void>,
 *   onRetry: (sending: import("../lib/api.js").Sending) => Promise<void>, onReply: () => void, onStale: () => void}} props
 *   `onReply` is called after a reply, and `onStale` if the stream does not say what the run waits for
 */
export function Run({ run, canRetry, waitsForThread, onCancel, onRetry, onReply, onStale }) {
  const action = useAction()
  // The element of an entry is kept, and what it offers depends on the role.
  useStore(roleReads)
  useOpenRequest(run.pending_input?.request_id)
  const isLive = run.ended_at === null && run.phase !== "waiting"
  const isEmpty = run.turns.length === 0
  const progress = run.turns.flatMap((turn) => turn.tool_calls).filter((call) => call.progress).length
  return html`<article class="run" aria-label="Assistant" data-run=${run.run_id}>
    ${run.first_turn > 0 && html`<p class="faint">${count(run.first_turn)} earlier turns are above.</p>`}
    ${run.turns.map((turn, index) => html`<${Turn} key=${run.first_turn + index} turn=${turn} run=${run}
      isLive=${isLive && index === run.turns.length - 1} />`)}
    ${isEmpty && !waitsForThread && isLive && html`<p class="thinking" role="status"><span class="pulse"></span>${run.started_at ? "Thinking" : "Queued"}</p>`}
    ${waitsForThread && html`<p class="queued"><${Icon} name="clock" />
      <span>${run.phase === "scheduled" ? "Scheduled for later" : "Waits for the answer before"}${run.queue?.position ? `, place ${run.queue.position}` : ""}</span>
      ${may("data.runs.write") && mayWrite(run.created_by_user_id) && html`<button type="button" class="link" onClick=${() => action.run(onCancel)}>Cancel</button>`}</p>`}
    ${run.phase === "cancelling" && html`<p class="thinking" role="status"><span class="pulse"></span>Cancelling</p>`}
    ${run.pending_input && html`<${PendingInput} key=${run.pending_input.request_id} runId=${run.run_id} pending=${withArguments(run)}
      createdBy=${run.created_by_user_id} place=${String(progress)}
      onDone=${run.pending_input.kind === "tool_results" ? onStale : onReply} onStale=${onStale} />`}
    ${run.status === "failed" && html`<${Failure} run=${run} />`}
    ${run.status === "cancelled" && html`<p class="ending">Cancelled</p>`}
    ${run.status === "completed" && run.stop_reason && run.stop_reason !== "stop" && html`<p class="ending">Ended early: ${words(run.stop_reason)}</p>`}
    ${!waitsForThread && html`<footer class="run-foot">
      <a href=${href(`/runs/${run.run_id}`)}>${run.persona_id ? html`<${Foreign} text=${run.persona_id} />` : "Run"}</a>
      ${run.model && html`<span><${Foreign} text=${run.model} /></span>`}
      ${run.ended_at && html`<span>${duration(Date.parse(run.ended_at) - Date.parse(run.created_at))}</span>`}
      ${run.cost_usd !== null && run.cost_usd > 0 && html`<span>${money(run.cost_usd)}</span>`}
      ${canRetry && run.ended_at && html`<${Button} kind="quiet" class="small" icon="retry" busy=${action.isBusy}
        onClick=${() => action.run(onRetry)}>Retry</${Button}>`}
    </footer>`}
    <${Problem} error=${action.error} />
  </article>`
}

/** Return what the run asks, with all arguments. @param {import("./fold.js").RunEntry} run */
const withArguments = ({ pending_input: pending, turns }) =>
  inFull(pending, turns.flatMap((turn) => turn.tool_calls), turns.flatMap((turn) => turn.questions))

/** @param {{run: import("./fold.js").RunEntry}} props */
const Failure = ({ run }) => html`<div class="problem" role="note"><${Icon} name="alert" />
  <div><p>${plain(run.error?.message ?? "The run failed.")}</p><p class="faint"><code>${run.error?.code ?? ""}</code></p></div></div>`

/** @param {{turn: import("./fold.js").Turn, run: import("./fold.js").RunEntry, isLive: boolean}} props */
export function Turn({ turn, run, isLive }) {
  const isWriting = isLive && turn.message_id === null
  const questions = turn.questions.filter((question) => question.answer !== null)
  const asksAgain = (/** @type {any} */ question) => question.kind === "tool_confirmation"
    && turn.questions.findLast(({ kind, tool_call_id: call }) => kind === question.kind && call === question.tool_call_id) !== question
  const asked = run.pending_input?.tool_call_id
  // Only these are asked before all calls of the turn; the others of one that asks for a form, or waits for its result, are made.
  const isBeforeCalls = asked && ["tool_confirmation", "question"].includes(run.pending_input.kind)
  return html`<div class=${classes("turn", isWriting && "writing")}>
    ${turn.reasoning && html`<${Folded} label=${isWriting && turn.text === "" ? "Reasoning …" : "Reasoning"} text=${turn.reasoning} />`}
    ${turn.text && html`<${Markdown} text=${turn.text} isLive=${isWriting} />`}
    ${turn.tool_calls.map((call) => html`<${Call} key=${call.tool_call_id} call=${call}
      asked=${asked === call.tool_call_id ? run.pending_input.kind : ""} hasTurn=${!isBeforeCalls} isOver=${run.ended_at !== null} />`)}
    ${questions.map((question) => html`<${Answered} key=${question.request_id} question=${question} isAskedAgain=${asksAgain(question)} />`)}
  </div>`
}

/** @param {{label: string, text: string}} props */
function Folded({ label, text }) {
  const [isOpen, setOpen] = useState(false)
  return html`<div class="folded"><button type="button" class="fold" aria-expanded=${isOpen} onClick=${() => setOpen(!isOpen)}>
      <${Icon} name="chevron" />${label}</button>
    ${isOpen && html`<div class="folded-text">${plain(text)}</div>`}</div>`
}

/** `hasTurn` is false while the run asks a person before another call. @param {{call: import("./fold.js").Call, asked: string, hasTurn: boolean, isOver: boolean}} props */
function Call({ call, asked, hasTurn, isOver }) {
  const [isOpen, setOpen] = useState(false)
  const result = call.result
  const state = call.arguments_text !== undefined ? ["live", "writing"]
    : asked ? ["warn", asked === "tool_confirmation" ? "waits for approval" : "waits for an answer"]
    : result === null || result === undefined ? (isOver ? ["mute", "no result"] : hasTurn ? ["live", "running"] : ["mute", "waits its turn"])
    : result.is_error ? ["bad", "failed"] : ["good", "done"]
  const progress = call.progress
  return html`<div class="call">
    <button type="button" class="call-head" aria-expanded=${isOpen} onClick=${() => setOpen(!isOpen)}>
      <${Icon} name="chevron" /><code class="call-name">${plain(call.name)}</code>
      <span class="call-gist">${gist(call)}</span>
      ${result?.duration_ms !== undefined && html`<span class="faint">${duration(result.duration_ms)}</span>`}
      <span class=${`badge ${state[0]}`}><span class="dot" aria-hidden="true"></span>${state[1]}</span>
    </button>
    ${progress && html`<div class="progress">
      <progress value=${progress.progress} max=${progress.total ?? undefined} aria-label="Progress"></progress>
      <span class="faint">${plain(progress.message ?? "")}</span></div>`}
    ${isOpen && html`<div class="call-body">
      <${Data} label="Arguments" value=${call.arguments_text ?? call.arguments} />
      ${result && html`<${Data} label=${result.is_error ? "Error" : "Result"} value=${typeof result.output === "string" ? parsed(result.output) : result.output} />`}
      ${result?.characters && html`<p class="faint">Truncated: the result contained ${count(result.characters)} characters; the middle is not shown.</p>`}
      ${result?.files && html`<p class="faint">${result.files.length} files</p>`}
      ${call.sub_run && html`<p><a href=${href(`/runs/${call.sub_run.run_id}`)}>Sub-run of ${plain(call.sub_run.persona_id ?? "")}</a></p>`}
    </div>`}
  </div>`
}

/** Return the arguments in one line. @param {import("./fold.js").Call} call */
function gist(call) {
  const value = call.arguments_text ?? call.arguments
  if (value === undefined || value === null) return ""
  if (typeof value !== "object") return plain(String(value)).slice(0, 120)
  const values = Object.values(value)
  const text = values.length === 1 ? json(values[0]) : JSON.stringify(value)
  return plain(String(text)).replace(/\s+/g, " ").slice(0, 120)
}
