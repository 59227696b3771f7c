// What a run asks a person: to approve a call, to answer a question, to fill in a form.
import { ApiError, post, segment } from "../lib/api.js"
import { isRounded, parse, parseWritten } from "../lib/exact.js"
import { plain } from "../lib/format.js"
import { createContext, html, useContext, useId, useLayoutEffect, useRef, useState } from "../lib/html.js"
import { may, mayWrite } from "../lib/session.js"
import { Icon } from "../ui/icons.js"
import { Data } from "../ui/json.js"
import { safeUrl } from "../ui/markdown.js"
import { Button, Foreign, Problem, Time, useAction } from "../ui/parts.js"
import { countWaiting } from "../waiting.js"
import { forgetReply, useReply } from "./replies.js"

const TOO_LONG = "The arguments are too long for this list: open the run to see them."
const NOT_LOADED = "The arguments are not loaded yet."
/** For how long a box that has just come under the pointer takes no click. */
const NEW_MS = 1_000

/** What a thread shows around its runs, as a text that changes when their boxes may have moved. */
export const Place = createContext("")

/**
 * The box for the open request of a run. It goes when the run's events say that there is an answer,
 * from any person or client; until then it takes no other one after its own.
 * @param {{runId: string, pending: any, createdBy: string, creator?: string, place?: string, isListed?: boolean, onDone?: () => void,
 *   onStale?: () => void}} props `creator` is the name of `createdBy`, whose run it is; `place` changes when the box may have moved; a box that `isListed` gets no arguments that are long; `onStale` is
 *   called if the run waits for something else than is shown
 */
export function PendingInput({ runId, pending, createdBy, creator, place = "", isListed = false, onDone, onStale }) {
  const action = useAction()
  const [isNew, setNew] = useState(true)
  const [isAnswered, setAnswered] = useState(false)
  const around = useContext(Place)
  // Arguments that come later, and calls that need no result any more, move the buttons within the box.
  const size = `${pending.arguments === undefined} ${pending.calls?.map((/** @type {any} */ call) => call.arguments === undefined)}`
  useLayoutEffect(() => {
    setNew(true)
    const timer = setTimeout(() => setNew(false), NEW_MS)
    return () => clearTimeout(timer)
  }, [place, around, size])
  // The click was for what was there before. The keyboard's come from an element that has the focus, and keeps it.
  const onClick = (/** @type {MouseEvent} */ event) => {
    if (!isNew || event.detail === 0) return
    event.preventDefault()
    event.stopPropagation()
  }
  const answer = (/** @type {string | object} */ content) => action.run(async (sending) => {
    const text = typeof content === "string" ? content : JSON.stringify(content)
    // The run's events may say that it is answered before the response does, and this box goes.
    await post(`runs/${segment(runId)}/input`, { content: text, request_id: pending.request_id }, sending).finally(() => void countWaiting()).catch((error) => {
      if (isLate(error)) onStale?.()
      throw error
    })
    setAnswered(true)
    forgetReply(pending.request_id)
    onDone?.()
  })
  const Form = { tool_confirmation: Approval, question: Question, form: Form_, authorization: Authorization, tool_results: Results }[
    /** @type {"question"} */ (pending.kind)] ?? Question
  const isOwn = mayWrite(createdBy)
  const canReply = may("data.runs.write") && isOwn
  return html`<section class="ask" tabindex="-1" aria-label=${`The run waits for ${canReply ? "you" : "a reply"}`}>
    ${canReply ? html`<fieldset aria-label="Reply" disabled=${isAnswered} aria-disabled=${isNew || undefined} onClickCapture=${onClick}>
      <${Form} pending=${pending} runId=${runId} missing=${isListed ? TOO_LONG : NOT_LOADED} answer=${answer} isBusy=${action.isBusy}
        onDone=${onDone} onStale=${onStale} /></fieldset>`
      : html`<p>${plain(pending.prompt)}</p>
        ${!isOwn && html`<p class="faint">Only ${creator ? html`<${Foreign} text=${creator} /> or an admin` : "the member whose run it is, or an admin,"} can answer.</p>`}`}
    ${isAnswered && html`<p class="note" role="status">Your reply was sent.</p>`}
    ${isLate(action.error) ? html`<p class="note" role="alert">This was answered elsewhere, or its time is over.</p>` : html`<${Problem} error=${action.error} />`}
    <p class="faint ask-until" aria-live="off">${expiry(pending.on_expiry)} <${Time} at=${pending.expires_at} /></p>
  </section>`
}

/** Return whether a reply was refused because the run does not wait for it any more. @param {unknown} error */
const isLate = (error) => error instanceof ApiError && ["input.stale", "runs.not_waiting", "runs.not_active"].includes(error.code)

/** Return what happens at a request's time; null: that is not known yet. @param {"continue" | undefined | null} then */
const expiry = (then) => then === null ? "The time to answer ends" : `Without an answer the run ${then === "continue" ? "continues" : "ends"}`

/**
 * Return an open request with the arguments that the run's row leaves out because they are long.
 * @param {any} pending
 * @param {{tool_call_id: string, name: string, arguments?: any}[]} calls those of the run
 * @param {any[]} requests what the run has asked, as its events have it
 */
export function inFull(pending, calls, requests) {
  if (pending.calls) {
    // Those to use: a person who approved a call may have edited the ones of its event.
    const asked = requests.findLast(({ request_id: id }) => id === pending.request_id)?.calls ?? []
    const own = (/** @type {any} */ call) => asked.find((/** @type {any} */ one) => one.tool_call_id === call.tool_call_id)
    return { ...pending, calls: pending.calls.map((/** @type {any} */ call) => ({ ...call, arguments: call.arguments ?? own(call)?.arguments })) }
  }
  if (!pending.tool_call_id || pending.arguments !== undefined) return pending
  const call = calls.findLast((one) => one.tool_call_id === pending.tool_call_id)
  return call ? { ...pending, tool_name: call.name, arguments: call.arguments } : pending
}

/**
 * @typedef {{pending: any, runId: string, missing: string, answer: (content: string | object) => Promise<boolean>, isBusy: boolean,
 *   onDone?: () => void, onStale?: () => void}} FormProps `missing` stands in place of arguments that are not there
 */

/** @param {FormProps} props */
function Approval({ pending, missing, answer, isBusy }) {
  const id = useId()
  const [{ mode, text }, write] = useReply(pending.request_id, () => ({ mode: /** @type {"" | "edit" | "deny"} */ (""), text: "" }))
  const [wrong, setWrong] = useState("")
  const before = useRef(mode)
  // The button that had the focus is gone: the keyboard continues in the field, or where the field was opened.
  useLayoutEffect(() => {
    if (mode !== before.current) document.getElementById(mode ? `${id}-${mode}` : `${id}-to-${before.current}`)?.focus()
    before.current = mode
  }, [mode])
  const name = pending.tool_name ?? "a tool"
  const isUnclear = isRounded(pending.arguments)
  const why = whyAgain(pending)
  const edit = () => {
    write({ mode: "edit", text: JSON.stringify(pending.arguments ?? {}, null, 2) })
    setWrong("")
  }
  const setText = (/** @type {any} */ event) => write({ mode, text: event.target.value })
  const back = () => write({ mode: "", text: "" })
  const submitEdit = () => {
    let given
    try {
      given = parseWritten(text)
    } catch (error) {
      setWrong(`This ${/** @type {Error} */ (error).message}`)
      return
    }
    if (given === null || typeof given !== "object" || Array.isArray(given)) setWrong("Arguments are a JSON object.")
    else void answer({ decision: "edit", arguments: given })
  }
  return html`<h2><${Icon} name="alert" />Approve the call of <code>${plain(name)}</code>?</h2>
    ${why && html`<p class="note" role="note"><${Foreign} text=${why} /></p>`}
    ${mode === "edit" ? html`
      <label for=${`${id}-edit`}>Arguments, as JSON</label>
      <textarea id=${`${id}-edit`} class="mono" rows=${Math.min(14, text.split("\n").length + 1)} spellcheck=${false} value=${text}
        aria-invalid=${wrong !== ""} onInput=${setText}></textarea>
      ${wrong && html`<p class="field-error" role="alert">${wrong}</p>`}
      <div key="edit" class="ask-actions"><${Button} kind="primary" busy=${isBusy} onClick=${submitEdit}>Call with these arguments</${Button}>
        <${Button} onClick=${back}>Back</${Button}></div>`
    : mode === "deny" ? html`
      <label for=${`${id}-deny`}>Reason for the model (optional)</label>
      <input id=${`${id}-deny`} value=${text} maxlength="2000" onInput=${setText} />
      <div key="deny" class="ask-actions"><${Button} kind="danger" busy=${isBusy}
          onClick=${() => answer({ decision: "deny", ...(text.trim() ? { reason: text.trim() } : {}) })}>Deny the call</${Button}>
        <${Button} onClick=${back}>Back</${Button}></div>`
    : html`
      ${pending.arguments === undefined ? html`<p class="faint">${missing}</p>`
        : html`<${Data} label="Arguments" value=${pending.arguments} />`}
      ${isUnclear && html`<p class="note" role="alert">This browser rounds integers of more than 15 digits: what you see may not be what the tool gets.
        A newer browser shows and edits them.</p>`}
      <div key="begin" class="ask-actions"><${Button} kind="primary" icon="check" busy=${isBusy} disabled=${pending.arguments === undefined}
          onClick=${() => answer({ decision: "approve" })}>Approve</${Button}>
        <${Button} id=${`${id}-to-edit`} disabled=${isBusy || isUnclear || pending.arguments === undefined} onClick=${edit}>Edit …</${Button}>
        <${Button} id=${`${id}-to-deny`} disabled=${isBusy} onClick=${() => write({ mode: "deny", text: "" })}>Deny …</${Button}></div>`}`
}

/** Return what the prompt says beside the question that the heading has: why the reply before was not taken. @param {any} pending */
const whyAgain = ({ prompt, tool_name: name }) => (prompt ?? "").replace(`Allow the call of ${name}?`, "").trim()

/** @param {FormProps} props */
function Question({ pending, answer, isBusy }) {
  const id = useId()
  const [text, setText] = useReply(pending.request_id, () => "")
  const submit = (/** @type {Event} */ event) => {
    event.preventDefault()
    if (text.trim()) void answer(text)
  }
  return html`<h2 class="question"><${Foreign} text=${pending.prompt} /></h2>
    ${pending.options?.length > 0 && html`<div class="ask-actions">${pending.options.map((/** @type {string} */ option) => html`
      <${Button} key=${option} disabled=${isBusy} onClick=${() => answer(option)}><${Foreign} text=${option} /></${Button}>`)}</div>`}
    <form class="ask-form" onSubmit=${submit}><label class="sr" for=${`${id}-answer`}>Your answer</label>
      <input id=${`${id}-answer`} value=${text} placeholder="Your answer" onInput=${(/** @type {any} */ event) => setText(event.target.value)} />
      <${Button} kind="primary" type="submit" busy=${isBusy} disabled=${!text.trim()}>Answer</${Button}></form>`
}

/** @param {FormProps} props */
function Form_({ pending, answer, isBusy }) {
  const id = useId()
  const fields = Object.entries(/** @type {Record<string, any>} */ (pending.schema?.properties ?? {}))
  const isRequired = (/** @type {string} */ name) => pending.schema?.required?.includes(name) ?? false
  // An optional field that is sent, even an empty one, is an answer of the person's.
  const first = fields.filter(([name, field]) => isRequired(name) || field.default !== undefined)
  const others = fields.filter((field) => !first.includes(field))
  const [text, setText] = useReply(pending.request_id, () =>
    JSON.stringify(Object.fromEntries(first.map(([name, field]) => [name, field.default ?? null])), null, 2))
  const [wrong, setWrong] = useState("")
  const accept = () => {
    try {
      const content = parseWritten(text)
      const empty = first.filter(([name, { type }]) => content?.[name] === null && isRequired(name) && type && ![type].flat().includes("null"))
      setWrong(empty.length > 0 ? `Required, and not filled in yet: ${empty.map(([name]) => plain(name)).join(", ")}` : "")
      if (empty.length === 0) void answer({ action: "accept", content })
    } catch (error) {
      setWrong(`This ${/** @type {Error} */ (error).message}`)
    }
  }
  return html`<h2 class="question"><${Foreign} text=${pending.prompt} /></h2>
    <${Data} label="Schema of the answer" value=${pending.schema ?? {}} />
    <label for=${`${id}-form`}>Answer, as JSON</label>
    <textarea id=${`${id}-form`} class="mono" rows="5" spellcheck=${false} value=${text} aria-invalid=${wrong !== ""}
      aria-describedby=${others.length > 0 ? `${id}-others` : undefined}
      onInput=${(/** @type {any} */ event) => setText(event.target.value)}></textarea>
    ${others.length > 0 && html`<p class="hint" id=${`${id}-others`}>Optional fields, sent only if you add them: ${
      others.map(([name], index) => html`${index > 0 && ", "}<code key=${name}>${plain(name)}</code>`)}</p>`}
    ${wrong && html`<p class="field-error" role="alert">${wrong}</p>`}
    <div class="ask-actions"><${Button} kind="primary" busy=${isBusy} onClick=${accept}>Send</${Button}>
      <${Button} disabled=${isBusy} onClick=${() => answer({ action: "decline" })}>Decline</${Button}></div>`
}

/** @param {FormProps} props */
function Authorization({ pending, answer, isBusy }) {
  const url = safeUrl(pending.url ?? "")
  return html`<h2 class="question"><${Foreign} text=${pending.prompt} /></h2>
    <p>${url?.startsWith("http") ? html`<a class="button primary" href=${url} target="_blank" rel="noopener noreferrer"><${Icon} name="open" />
      <span>Open ${plain(new URL(url).host)}</span></a>` : html`<code>${plain(pending.url ?? "")}</code>`}</p>
    <div class="ask-actions"><${Button} disabled=${isBusy} onClick=${() => answer({ action: "accept" })}>I have done it</${Button}>
      <${Button} disabled=${isBusy} onClick=${() => answer({ action: "decline" })}>Decline</${Button}></div>`
}

/** @param {FormProps} props */
function Results({ pending, runId, missing, isBusy, onDone, onStale }) {
  const id = useId()
  const [outputs, setOutputs] = useReply(pending.request_id, () => /** @type {Record<string, string>} */ ({}))
  const action = useAction()
  /** @type {{tool_call_id: string, name: string, arguments?: any}[]} */
  const calls = pending.calls ?? []
  const results = calls.filter((call) => outputs[call.tool_call_id])
    .map((call) => ({ tool_call_id: call.tool_call_id, output: outputs[call.tool_call_id] }))
  const send = () => action.run(async (sending) => {
    try {
      await post(`runs/${segment(runId)}/tool-results`, results, sending)
    } catch (error) {
      if (error instanceof ApiError && error.status === 409) onStale?.()
      throw error instanceof ApiError && error.code === "tool_results.conflict" ? new Error(takenBefore(calls, error)) : error
    }
    // The others may have been written meanwhile.
    const sent = results.map((result) => result.tool_call_id)
    setOutputs((now) => Object.fromEntries(Object.entries(now).filter(([callId]) => !sent.includes(callId))))
    onDone?.()
  })
  return html`<h2><${Icon} name="clock" />Waits for results of the client's tools</h2>
    <p class="faint">The program that declared these tools sends them. You may send results in its place.</p>
    ${calls.map((call, index) => html`<div key=${call.tool_call_id} class="field">
      ${call.arguments === undefined ? html`<p class="faint">${missing}</p>` : html`<${Data} label=${call.name} value=${call.arguments} />`}
      <label for=${`${id}-${index}`}>Result of ${plain(call.name)}</label>
      <textarea id=${`${id}-${index}`} rows="2" value=${outputs[call.tool_call_id] ?? ""}
        onInput=${(/** @type {any} */ event) => setOutputs({ ...outputs, [call.tool_call_id]: event.target.value })}></textarea></div>`)}
    <${Problem} error=${action.error} />
    <div class="ask-actions"><${Button} kind="primary" busy=${isBusy || action.isBusy} disabled=${results.length === 0} onClick=${send}>Send results</${Button}></div>`
}

/** Return why none of the results was taken. @param {{tool_call_id: string, name: string}[]} calls @param {ApiError} error */
function takenBefore(calls, { details }) {
  const names = calls.filter((call) => details.tool_call_ids?.includes(call.tool_call_id)).map((call) => call.name)
  return `${names.join(", ")} already ${names.length > 1 ? "have other results" : "has another result"}, so none of these was sent. Send the others again.`
}

/** A question that has its answer; `isAskedAgain` if that did not settle the call. @param {{question: any, isAskedAgain: boolean}} props */
export function Answered({ question, isAskedAgain }) {
  const { verb, text } = spoken(question, isAskedAgain)
  return html`<p class="answered"><${Icon} name="check" /><span>${question.kind === "tool_confirmation" ? "" : html`<${Foreign} text=${question.prompt} /> `}
    <b>${verb}</b> ${text && html`<${Foreign} text=${text} class="reply" />`}</span></p>`
}

/** Return how a question was answered, in words. @param {any} question @param {boolean} isAskedAgain */
function spoken(question, isAskedAgain) {
  const { kind, answer } = question
  if (kind === "question") return { verb: "", text: answer }
  let given
  try {
    given = parse(answer)
  } catch {
    return { verb: "", text: answer }
  }
  const edited = isAskedAgain ? "Edited" : "Approved with other arguments"
  const verb = { approve: "Approved", deny: "Denied", edit: edited, accept: "Accepted", decline: "Declined", cancel: "Cancelled" }[
    /** @type {"approve"} */ (given?.decision ?? given?.action)]
  if (!verb) return { verb: "", text: answer }
  return { verb, text: given.reason ?? (given.arguments ? JSON.stringify(given.arguments) : "") }
}
