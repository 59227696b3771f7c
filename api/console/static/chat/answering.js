// Which persona and route answer a message: in a new thread those that a person chooses, later those of the last run.
import { ApiError, all, get, segment } from "../lib/api.js"
import { html, useEffect, useId, useState } from "../lib/html.js"
import { Field, Foreign, Problem, useRead } from "../ui/parts.js"
import { pauseAfter } from "./conversation.js"
import { lastBody, saveBody } from "./outbox.js"

/** @typedef {{persona_id?: string, route_id?: string}} Answering fields of a request; without them, the defaults */

/**
 * The fields in which a persona and a route are chosen; "" is the default.
 * @param {{persona: string, routeId: string, onChange: (changed: {persona?: string, routeId?: string}) => void}} props
 */
export function Choices({ persona, routeId, onChange }) {
  const id = useId()
  const choices = useRead(async (signal) => {
    const [personas, routes] = await Promise.all([keys(signal), get("routes", {}, signal)])
    return { personas, routes }
  }, [])
  /** @type {any[]} */
  const routes = choices.data?.routes ?? []
  return html`<${Problem} error=${choices.error} onRetry=${choices.reload} />
    <${Field} label="Persona" id=${`${id}-persona`}>${(/** @type {string} */ field) => html`<select id=${field} value=${persona}
      onChange=${(/** @type {any} */ event) => onChange({ persona: event.target.value })}>
      <option value="">Default</option>
      ${withChosen(choices.data?.personas ?? [], persona).map((key) => html`<option key=${key} value=${key}>${key}</option>`)}</select>`}</${Field}>
    <${Field} label="Route" id=${`${id}-route`}>${(/** @type {string} */ field) => html`<select id=${field} value=${routeId}
      onChange=${(/** @type {any} */ event) => onChange({ routeId: event.target.value })}>
      <option value="">As the persona says</option>
      ${withChosen(routes.map((route) => route.id), routeId).map((one) => html`<option key=${one} value=${one}>${nameOf(routes, one)}</option>`)}</select>`}</${Field}>`
}

/** Return what can be chosen, with what was chosen before: if it is gone, the field would show what is not sent. @param {string[]} ids @param {string} chosen */
const withChosen = (ids, chosen) => (chosen === "" || ids.includes(chosen) ? ids : [...ids, chosen])

/** Return how a route is shown. @param {any[]} routes @param {string} id */
function nameOf(routes, id) {
  const model = routes.find((route) => route.id === id)?.model ?? id
  return model === id ? id : `${model} (${id})`
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

/** For how long a message waits until the route is known that it names. */
const MOST_WAIT_MS = 4_000

/**
 * Keep which persona and route answer the next message of a thread: those that a person has chosen for it, or those of
 * the last run, which has its persona by name. A route that was the persona's own, or the default, is not named either.
 * @param {string} threadId
 * @param {import("./conversation.js").View | null} view
 */
export function useAnswering(threadId, view) {
  const [chosen, setChosen] = useState(() => {
    const before = lastBody(threadId)
    return /** @type {{fields: Answering, isSent: boolean} | null} */ (before && { fields: fieldsOf(before), isSent: false })
  })
  const last = /** @type {import("./fold.js").RunEntry | undefined} */ (view?.entries.findLast(hasBegun))
  const isEarlier = last === undefined && Boolean(view?.older)
  const mark = [last?.persona_id, last?.route_id, isEarlier].join()
  const known = useRead(async (signal) => ({ mark, ...(await answeringAs(isEarlier ? await lastOf(threadId, signal) : last, signal)) }), [mark])
  const isKnown = known.data?.mark === mark
  const pause = known.error ? pauseAfter(known.error) : 0
  useEffect(() => {
    if (!known.error || pause === null) return
    const timer = setTimeout(known.reload, 1_000 * pause)
    return () => clearTimeout(timer)
  }, [known.error])
  const [late, setLate] = useState("")
  // Without its route a message is sent after some time, without its persona it is not.
  const canWait = last ? last.route_id !== null && late !== mark : isEarlier
  const isWaiting = chosen === null && canWait && !isKnown && pause !== null
  useEffect(() => {
    if (!isWaiting) return
    const timer = setTimeout(() => setLate(mark), MOST_WAIT_MS)
    return () => clearTimeout(timer)
  }, [isWaiting, mark])
  useEffect(() => {
    // The run of the message that was sent has them from now on.
    setChosen((now) => (now?.isSent ? null : now))
  }, [last?.run_id])
  const fields = chosen?.fields ?? (isKnown ? known.data?.fields : undefined) ?? fieldsOf({ persona_id: keyOf(last) })
  return {
    /** What is sent of them is what is shown. */
    fields, isWaiting, persona: fields.persona_id ?? "", routeId: fields.route_id ?? "", routes: known.data?.routes ?? [],
    choose: (/** @type {Answering} */ changed) => {
      setChosen({ fields: changed, isSent: false })
      saveBody(threadId, { message: "", ...changed })
    },
    /** A message keeps them on its way, and if it comes back. @param {any} body @param {boolean} isSent */
    keep: (body, isSent) => setChosen((now) => {
      const fields = fieldsOf(body)
      // Others were chosen meanwhile, for the message after it.
      const isOther = now !== null && !now.isSent && JSON.stringify(now.fields) !== JSON.stringify(fields)
      return isSent && isOther ? now : { fields, isSent }
    }),
  }
}

/** Return the fields of a request that are given. @param {any} body @returns {Answering} */
const fieldsOf = ({ persona_id: persona, route_id: route }) => ({ ...(persona && { persona_id: persona }), ...(route && { route_id: route }) })

/** @typedef {{persona_id: string | null, route_id: string | null}} Answered what a run says of it */

/** Return the key of a run's persona. @param {Answered | undefined} run */
const keyOf = (run) => run?.persona_id?.split("@")[0]

/** Return whether it is a run, and not one for later. @param {import("./conversation.js").Entry} entry */
const hasBegun = (entry) => entry.type === "run" && entry.phase !== "scheduled"

/** Read the last run of a thread whose newest entries are messages alone. @param {string} threadId @param {AbortSignal} signal @returns {Promise<Answered | undefined>} */
async function lastOf(threadId, signal) {
  for (const { run_id: id } of await get(`threads/${segment(threadId)}/runs`, { limit: 10 }, signal)) {
    const run = await get(`runs/${segment(id)}`, {}, signal)
    if (run.phase !== "scheduled") return run
  }
}

/**
 * Read with which fields a message is answered as by a run, and the routes. A route is named if it was chosen for the
 * run, and is still there.
 * @param {Answered | undefined} run
 * @param {AbortSignal} signal
 */
async function answeringAs(run, signal) {
  const [routes, persona] = await Promise.all([get("routes", {}, signal), run?.persona_id && run.route_id ? personaOf(run.persona_id, signal) : /** @type {any} */ ({})])
  const own = persona.route_id ?? routes.find((/** @type {any} */ route) => route.is_default)?.id
  const isChosen = run?.route_id !== own && routes.some((/** @type {any} */ route) => route.id === run?.route_id)
  return { routes, fields: fieldsOf({ persona_id: keyOf(run), route_id: isChosen ? run?.route_id : null }) }
}

/** Read a version of a persona, which may be gone. @param {string} id @param {AbortSignal} signal @returns {Promise<any>} */
const personaOf = (id, signal) => get(`personas/${segment(id)}`, {}, signal).catch((error) => {
  if (error instanceof ApiError && error.status === 404) return {}
  throw error
})

/**
 * Which persona and route answer the next message, and how to choose others.
 * @param {{answering: ReturnType<typeof useAnswering>, isOpen: boolean, onToggle: () => void}} props
 */
export function AnsweredBy({ answering: { persona, routeId, routes, choose }, isOpen, onToggle }) {
  const change = (/** @type {{persona?: string, routeId?: string}} */ changed) =>
    // The route before may be that of the persona before.
    choose(fieldsOf(changed.routeId === undefined ? { persona_id: changed.persona } : { persona_id: persona, route_id: changed.routeId }))
  const model = routes.find((route) => route.id === routeId)?.model ?? routeId
  return html`<div class="answered-by">
    <p class="faint"><span>Persona <b>${persona ? html`<${Foreign} text=${persona} />` : "Default"}</b>${routeId && html`, route <b><${Foreign} text=${model} /></b>`}</span>
      <button type="button" class="link" aria-expanded=${isOpen} onClick=${onToggle}>${isOpen ? "Close" : "Change"}</button></p>
    ${isOpen && html`<div class="answered-by-fields"><${Choices} persona=${persona} routeId=${routeId} onChange=${change} /></div>`}
  </div>`
}
