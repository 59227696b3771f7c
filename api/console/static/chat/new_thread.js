// A new conversation: who is to answer, and the first message.
import { ApiError, all, get } from "../lib/api.js"
import { parts } from "../lib/format.js"
import { html, useEffect, useId, useLayoutEffect, useRef, useState } from "../lib/html.js"
import { go, href } from "../lib/router.js"
import { Field, Head, Problem, useAction, useRead } from "../ui/parts.js"
import { messageOf } from "./attachments.js"
import { Composer } from "./composer.js"
import { deliver, lastBody, saveBody } from "./outbox.js"

/** @param {{onMade: () => void}} props */
export function NewThread({ onMade }) {
  const id = useId()
  const choices = useRead(async (signal) => {
    const [personas, routes] = await Promise.all([keys(signal), get("routes", {}, signal)])
    return { personas, routes }
  }, [])
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
  /** @type {any[]} */
  const routes = choices.data?.routes ?? []
  return html`<div class="new-thread">
    <${Head} title="New thread" back=${href("/threads")} />
    <div class="new-thread-fields">
      <${Problem} error=${choices.error} onRetry=${choices.reload} />
      <${Field} label="Title" id=${`${id}-title`}>${(/** @type {string} */ field) => html`<input id=${field} maxlength="200" placeholder="The beginning of the message" value=${title}
        onInput=${(/** @type {any} */ event) => choose({ title: event.target.value })} />`}</${Field}>
      <${Field} label="Persona" id=${`${id}-persona`}>${(/** @type {string} */ field) => html`<select id=${field} value=${persona}
        onChange=${(/** @type {any} */ event) => choose({ persona: event.target.value })}>
        <option value="">Default</option>
        ${withChosen(choices.data?.personas ?? [], persona).map((key) => html`<option key=${key} value=${key}>${key}</option>`)}</select>`}</${Field}>
      <${Field} label="Route" id=${`${id}-route`}>${(/** @type {string} */ field) => html`<select id=${field} value=${routeId}
        onChange=${(/** @type {any} */ event) => choose({ routeId: event.target.value })}>
        <option value="">As the persona says</option>
        ${withChosen(routes.map((route) => route.id), routeId).map((one) => html`<option key=${one} value=${one}>${nameOf(routes, one)}</option>`)}</select>`}</${Field}>
    </div>
    <${Problem} error=${action.error} />
    <${Composer} draftKey="new" isBusy=${action.isBusy} requestOf=${requestOf} onSend=${send} placeholder="Write the first message" />
  </div>`
}

/** Return what can be chosen, with what was chosen before: if it is gone, the field would show what is not sent. @param {string[]} ids @param {string} chosen */
const withChosen = (ids, chosen) => (chosen === "" || ids.includes(chosen) ? ids : [...ids, chosen])

/** Return how a route is shown. @param {any[]} routes @param {string} id */
function nameOf(routes, id) {
  const model = routes.find((route) => route.id === id)?.model ?? id
  return model === id ? id : `${model} (${id})`
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

/** Read the keys of the personas, which may have thousands of versions. @param {AbortSignal} signal @returns {Promise<string[]>} */
async function keys(signal) {
  const newest = await all("personas", signal, { newest: "true" }).catch((error) => {
    // While two releases serve, a process of the one before refuses the filter.
    if (error instanceof ApiError && error.status === 422) return all("personas", signal)
    throw error
  })
  return [...new Set(newest.map((persona) => persona.key))]
}
