// A conversation: what was said, what is being said, and the box to say something.
import { ApiError, get, isGone, patch, removeIfThere, segment } from "../lib/api.js"
import { brief } from "../lib/format.js"
import { classes, html, useEffect, useLayoutEffect, useRef, useState } from "../lib/html.js"
import { go, href } from "../lib/router.js"
import { may, mayWrite } from "../lib/session.js"
import { Button, Dialog, Empty, explained, Field, Foreign, Head, Loading, Problem, useAction, useRead } from "../ui/parts.js"
import { AnsweredBy, useAnswering } from "./answering.js"
import { messageOf } from "./attachments.js"
import { Composer, Stop } from "./composer.js"
import { Conversation, isActive, pauseAfter, waits } from "./conversation.js"
import { Message, Run, Said } from "./entries.js"
import { Place } from "./pending_input.js"

/** Refusals of a message whose persona or route is gone. */
const GONE = ["personas.not_found", "routes.not_found"]

/** Return whether a message was refused for its persona or route, so that another one is to be chosen. A message has no variables. @param {unknown} error */
const isOfAnswering = (error) => error instanceof ApiError
  && (GONE.includes(error.code) || (error.status === 422 && Object.keys(error.details).some((field) => field.startsWith("variables"))))

/** @param {{id: string, onChange: () => void, onDelete: () => void}} props */
export function Chat({ id, onChange, onDelete }) {
  const [view, setView] = useState(/** @type {import("./conversation.js").View | null} */ (null))
  const conversation = useRef(/** @type {Conversation | null} */ (null))
  const thread = useRead((signal) => get(`threads/${segment(id)}`, {}, signal), [id])
  const saying = useAction()
  const stopping = useAction()
  const answering = useAnswering(id, view)
  const [isChoosing, setChoosing] = useState(false)
  useEffect(() => {
    if (isOfAnswering(saying.error)) setChoosing(true)
  }, [saying.error])
  useEffect(() => {
    const made = new Conversation(id, setView)
    conversation.current = made
    setView(made.view)
    void made.load()
    return () => made.close()
  }, [id])
  useEffect(() => {
    if (thread.data) document.title = `${thread.data.title ?? `Thread ${brief(id)}`} · Arkloop Runs`
  }, [thread.data])
  useEffect(() => {
    const seconds = thread.error ? pauseAfter(thread.error) : null
    if (seconds === null) return
    const timer = setTimeout(thread.reload, 1_000 * seconds)
    return () => clearTimeout(timer)
  }, [thread.error])
  const activeRun = view?.entries.findLast(isActive)
  useEffect(() => {
    // The list shows which threads are active.
    if (view?.isLoaded) onChange()
  }, [activeRun?.type === "run" ? activeRun.run_id : "", view?.isLoaded])
  if (thread.error && !thread.data) {
    return html`<${Head} title="Thread" back=${href("/threads")} /><${Problem} error=${thread.error} onRetry=${thread.reload} />`
  }
  if (view === null || !view.isLoaded || conversation.current === null) {
    return html`<div class="chat"><${Head} title=${thread.data?.title ?? "Thread"} back=${href("/threads")} />
      ${view?.error ? html`<${Problem} error=${view.error} />` : html`<${Loading} lines=${5} />`}</div>`
  }
  const talk = conversation.current
  const drawn = talk.drawn
  const active = view.entries.findLast(isActive)
  const shown = view.entries.filter((entry) => entry.type === "message" || entry.superseded_by === null || isActive(entry))
  const last = shown.at(-1)
  const isOwn = mayWrite(thread.data?.created_by_user_id)
  const canRetry = may("data.runs.write") && isOwn
  const canWrite = canRetry && may("data.threads.write")
  const onStop = active?.type === "run" && mayWrite(active.created_by_user_id) && (() => stopping.run((sending) => talk.cancel(active.run_id, sending)))
  const requestOf = (/** @type {any} */ content, /** @type {string} */ onBusy) =>
    ({ message: messageOf(content), ...answering.fields, ...(active ? { on_busy: onBusy } : {}) })
  const say = async (/** @type {import("./outbox.js").Outgoing} */ outgoing) => {
    stopping.clear()
    /** @type {any} */
    let made = null
    answering.keep(outgoing.body, true)
    const isSent = await saying.run(async () => {
      made = await talk.say(outgoing)
      onChange()
    })
    if (isSent) setChoosing(false)
    else answering.keep(outgoing.body, false)
    // The message had arrived before the person chose to stop the agent, which nothing has stopped so far.
    const isToStop = made?.isEarlier && outgoing.body.on_busy === "interrupt"
    const fallback = made?.steer?.fallback_run_id
    if (isToStop && active && active.run_id !== (fallback ?? made.run_id)) {
      // A run that the message was given to may have read it.
      void stopping.run((sending) => fallback && active.run_id === made.run_id
        ? talk.cancelGiven(active.run_id, fallback, sending) : talk.cancel(active.run_id, sending))
    }
    return isSent
  }
  const problems = [view.error ?? saying.error, stopping.error]
  const place = [
    view.connection === "offline", view.limit, ...problems.map((problem) => problem && explained(problem).text), shown.length, view.sending.length, isChoosing,
  ].join()
  return html`<${Place.Provider} value=${place}><div class="chat">
    <${ChatHead} id=${id} thread=${thread.data} isOwn=${isOwn} onChange=${() => { thread.reload(); onChange() }} onDelete=${onDelete} />
    <${Scroll} view=${view} onOlder=${() => talk.loadOlder()}>
      ${shown.length === 0 && view.sending.length === 0 && html`<${Empty} icon="thread" title="Nothing said yet"><p>Write the first message below.</p></${Empty}>`}
      ${shown.map((entry) => drawn.of(entry, canRetry && entry === last, () => entry.type === "message"
        ? html`<${Message} key=${`m${entry.id}`} entry=${entry} />`
        : html`<${Run} key=${`r${entry.run_id}`} run=${entry} canRetry=${canRetry && entry === last} waitsForThread=${waits(entry)}
            onCancel=${(/** @type {import("../lib/api.js").Sending} */ sending) => talk.cancel(entry.run_id, sending)} onRetry=${(/** @type {import("../lib/api.js").Sending} */ sending) => talk.retry(sending)}
            onReply=${() => talk.onReply(entry.pending_input?.request_id)} onStale=${() => void talk.load()} />`))}
      ${view.sending.map((one) => html`<${Said} key=${`s${one.key}`} sending=${one} />`)}
    </${Scroll}>
    ${view.connection === "offline" && html`<p class="connection" role="status">No connection. What happens meanwhile is shown when it is back.</p>`}
    ${view.limit && html`<p class="connection" role="status">${view.limit} What happens meanwhile is shown later.</p>`}
    ${problems.map((problem, index) => html`<${Problem} key=${index} error=${problem} />`)}
    ${canWrite && html`<${Composer} draftKey=${id} isBusy=${saying.isBusy || answering.isWaiting} active=${active} requestOf=${requestOf} onSend=${say} onStop=${onStop}
      placeholder=${active ? "Write while it works" : "Write a message"}>
      <${AnsweredBy} answering=${answering} isOpen=${isChoosing} onToggle=${() => setChoosing(!isChoosing)} /></${Composer}>`}
    ${canRetry && !canWrite && onStop && html`<div class="composer"><div class="composer-buttons"><${Stop} active=${active} onStop=${onStop} /></div></div>`}
  </div></${Place.Provider}>`
}

/** @param {{id: string, thread: any, isOwn: boolean, onChange: () => void, onDelete: () => void}} props */
function ChatHead({ id, thread, isOwn, onChange, onDelete }) {
  const [open, setOpen] = useState(/** @type {"" | "rename" | "delete"} */ (""))
  const title = thread?.title ?? `Thread ${brief(id)}`
  const actions = html`
    ${may("data.runs.read") && html`<a class="button quiet" href=${href("/runs", { thread_id: id })}>Runs</a>`}
    ${may("data.threads.write") && isOwn && html`<${Button} kind="quiet" onClick=${() => setOpen("rename")}>Rename</${Button}>
      <${Button} kind="quiet" icon="trash" label="Delete thread" onClick=${() => setOpen("delete")} />`}`
  return html`<${Head} title=${html`<${Foreign} text=${title} />`} back=${href("/threads")} actions=${actions}>
      ${thread?.is_private && html`<span class="tag">Private</span>`}
      ${thread?.end_user_id && html`<span class="tag" title="End user"><${Foreign} text=${thread.end_user_id} /></span>`}</${Head}>
    ${open === "rename" && html`<${Rename} id=${id} title=${thread?.title ?? ""} onDone=${() => { setOpen(""); onChange() }} onGone=${onChange} onClose=${() => setOpen("")} />`}
    ${open === "delete" && html`<${Delete} id=${id} title=${title} onDone=${() => { onDelete(); go("/threads") }} onClose=${() => setOpen("")} />`}`
}

/** @param {{id: string, title: string, onDone: () => void, onGone: () => void, onClose: () => void}} props */
function Rename({ id, title, onDone, onGone, onClose }) {
  const [text, setText] = useState(title)
  const action = useAction()
  const save = async (/** @type {Event} */ event) => {
    event.preventDefault()
    const isDone = await action.run((sending) => patch(`threads/${segment(id)}`, { title: text.trim() || null }, sending).catch((error) => {
      if (isGone(error)) onGone()
      throw error
    }))
    if (isDone) onDone()
  }
  return html`<${Dialog} title="Rename the thread" onClose=${onClose}><form onSubmit=${save}>
    <${Field} label="Title" id="thread-title">${(/** @type {string} */ field) => html`<input id=${field} maxlength="200" autofocus value=${text}
      onInput=${(/** @type {any} */ event) => setText(event.target.value)} />`}</${Field}>
    <${Problem} error=${action.error} />
    <div class="dialog-actions"><${Button} onClick=${onClose}>Cancel</${Button}><${Button} kind="primary" type="submit" busy=${action.isBusy}>Save</${Button}></div>
  </form></${Dialog}>`
}

/** @param {{id: string, title: string, onDone: () => void, onClose: () => void}} props */
function Delete({ id, title, onDone, onClose }) {
  const action = useAction()
  const act = async () => {
    if (await action.run((sending) => removeIfThere(`threads/${segment(id)}`, sending))) onDone()
  }
  return html`<${Dialog} title="Delete the thread?" onClose=${onClose}>
    <p>“<${Foreign} text=${title} />” and its runs can no longer be read, here and through the API.</p>
    <${Problem} error=${action.error} />
    <div class="dialog-actions"><${Button} onClick=${onClose}>Cancel</${Button}><${Button} kind="danger" busy=${action.isBusy} onClick=${act}>Delete</${Button}></div>
  </${Dialog}>`
}

/** Near the end, what is new scrolls into view; further up, the text stays where it is read. */
const NEAR_PX = 120

/** @param {{view: import("./conversation.js").View, onOlder: () => Promise<void>, children: any}} props */
function Scroll({ view, onOlder, children }) {
  const box = useRef(/** @type {HTMLElement | null} */ (null))
  const isAtEnd = useRef(true)
  /** The first part that was there when messages before `older` were asked for, and where.
   * @type {{current: {part: Element, top: number, older: string | null} | null}} */
  const known = useRef(null)
  const placeOf = (/** @type {HTMLElement} */ element, /** @type {Element} */ part) => part.getBoundingClientRect().top + element.scrollTop
  const keep = (/** @type {typeof known.current} */ place) => {
    known.current = place
    // A browser that keeps the place, too, would move it twice; when anything else grows, it does that alone.
    if (box.current) box.current.style.overflowAnchor = place === null ? "" : "none"
  }
  const [isAway, setAway] = useState(false)
  const older = useAction()
  const height = useRef(0)
  const onScroll = () => {
    const element = box.current
    // The browser reports a scroll some time later: what has taken room since, such as a keyboard, is no scroll.
    if (element === null || element.clientHeight !== height.current) return
    isAtEnd.current = element.scrollHeight - element.scrollTop - element.clientHeight < NEAR_PX
    setAway(!isAtEnd.current)
  }
  useLayoutEffect(() => {
    const element = box.current
    if (element === null) return
    const place = known.current
    // They are drawn some time after they are here, together with where the next ones begin.
    if (place !== null && view.older !== place.older) {
      // What was read stays where it is when older messages come above it.
      if (place.part.isConnected) element.scrollTop += placeOf(element, place.part) - place.top
      keep(null)
    } else if (isAtEnd.current) {
      element.scrollTop = element.scrollHeight
    }
  }, [view])
  useLayoutEffect(() => {
    const element = box.current
    if (element === null) return
    const observer = new ResizeObserver(() => {
      height.current = element.clientHeight
      if (isAtEnd.current) element.scrollTop = element.scrollHeight
      onScroll()
    })
    observer.observe(element)
    return () => observer.disconnect()
  }, [])
  const load = () => older.run(async () => {
    const part = box.current?.querySelector(".said, .turn")
    keep(box.current && part ? { part, top: placeOf(box.current, part), older: view.older } : null)
    try {
      await onOlder()
    } catch (error) {
      keep(null)
      throw error
    }
  })
  const toEnd = () => {
    isAtEnd.current = true
    box.current?.scrollTo({ top: box.current.scrollHeight })
  }
  return html`<div class="scroll-frame"><div class="scroll" ref=${box} onScroll=${onScroll} tabindex="0" role="log" aria-label="Conversation">
      <div class="entries">
        ${view.older && html`<${Button} class="more" busy=${older.isBusy} onClick=${load}>Earlier messages</${Button}>`}
        <${Problem} error=${older.error} />${children}</div></div>
    <button type="button" class=${classes("to-end", isAway && "is-shown")} tabindex=${isAway ? 0 : -1} aria-hidden=${!isAway}
      onClick=${toEnd}>Latest</button></div>`
}
