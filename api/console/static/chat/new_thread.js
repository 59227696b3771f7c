// A new conversation: who is to answer, and the first message.
import { parts } from "../lib/format.js"
import { html, useEffect, useId, useLayoutEffect, useRef, useState } from "../lib/html.js"
import { go, href } from "../lib/router.js"
import { Field, Head, Problem, useAction } from "../ui/parts.js"
import { Choices } from "./answering.js"
import { messageOf } from "./attachments.js"
import { Composer } from "./composer.js"
import { deliver, lastBody, saveBody } from "./outbox.js"

/** @param {{onMade: () => void}} props */
export function NewThread({ onMade }) {
  const id = useId()
  // A message that is being written, is here again, or is still being sent, has them already.
  const [before] = useState(() => lastBody("new"))
  const [persona, setPersona] = useState(before?.persona_id ?? "")
  const [routeId, setRoute] = useState(before?.route_id ?? "")
  const [title, setTitle] = useState(() => (before === null ? "" : titleGiven(before)))
  /** Take what the person has changed, and keep it with the text. @param {{title?: string, persona?: string, routeId?: string}} changed */
  const choose = (changed) => {
    const chosen = { title, persona, routeId, ...changed }
    setTitle(chosen.title)
    setPersona(chosen.persona)
    setRoute(chosen.routeId)
    saveBody("new", { thread: { title: chosen.title }, message: "", persona_id: chosen.persona || null, route_id: chosen.routeId || null })
  }
  const action = useAction()
  const isOpen = useRef(true)
  useEffect(() => {
    document.title = "New thread · Arkloop Runs"
  }, [])
  // Not a plain effect, which ends after the browser's next frame: the message may arrive before.
  useLayoutEffect(() => () => {
    isOpen.current = false
  }, [])
  const requestOf = (/** @type {any} */ message) => ({
    thread: { title: title.trim() || titleOf(message) }, message: messageOf(message), persona_id: persona || null, route_id: routeId || null,
  })
  const send = (/** @type {import("./outbox.js").Outgoing} */ outgoing) => action.run(async () => {
    const made = await deliver("new", "runs", outgoing)
    onMade()
    // It may arrive hours later, when the person is in the middle of something else.
    if (isOpen.current) go(`/threads/${made.thread_id}`)
  })
  return html`<div class="new-thread">
    <${Head} title="New thread" back=${href("/threads")} />
    <div class="new-thread-fields">
      <${Field} label="Title" id=${`${id}-title`}>${(/** @type {string} */ field) => html`<input id=${field} maxlength="200" placeholder="The beginning of the message" value=${title}
        onInput=${(/** @type {any} */ event) => choose({ title: event.target.value })} />`}</${Field}>
      <${Choices} persona=${persona} routeId=${routeId} onChange=${choose} />
    </div>
    <${Problem} error=${action.error} />
    <${Composer} draftKey="new" isBusy=${action.isBusy} requestOf=${requestOf} onSend=${send} placeholder="Write the first message" />
  </div>`
}

/** Return the beginning of a message, where a word ends. @param {any} message */
function titleOf(message) {
  const text = parts(message).map((part) => part.text ?? "").join(" ").trim() || "Files"
  const line = text.replace(/\s+/g, " ").trim()
  // By characters: half of an emoji is not valid, and the service would refuse the message.
  const characters = [...line]
  return characters.length <= 60 ? line : `${characters.slice(0, 60).join("").replace(/ \S*$/, "")} …`
}

/** Return the title that a person has given a thread; "" if it is the beginning of the message. @param {any} request */
function titleGiven({ thread, message }) {
  return thread.title === titleOf(message.content ?? message) ? "" : thread.title
}
