// What was written and has not arrived. The tab keeps drafts, and each message until the service has it or
// refuses it: a reload sends it again with its key, so that none is lost and none is there twice.
import { ApiError, post } from "../lib/api.js"
import { parts } from "../lib/format.js"
import { draftName } from "../lib/session.js"

/** For 24 hours the service returns its first response to a key; later the message would be a second one. */
const MOST_AGE_MS = 12 * 3_600_000
/** Such a response does not say whether a request before it, whose response was lost, was carried out. */
const UNSURE = [401, 403, 408, 429]

/**
 * @typedef {{key: string, body: any, earlier?: any[], files: import("./attachments.js").Attachment[], at: number,
 *   isRepeated: boolean, isReturned: boolean}} Outgoing
 *   `earlier` are bodies with the same key that may have arrived; in a busy thread the person has chosen something else since
 */

/** Requests in progress by key: a page that is opened again takes part in them. @type {Map<string, {made: Promise<any>, onRetry?: () => void}>} */
const requests = new Map()

const filesName = (/** @type {string} */ name) => `${draftName(name)}.files`
const requestName = (/** @type {string} */ name) => `${draftName(name)}.request`
const outgoingName = (/** @type {string} */ name) => `${draftName(name)}.sending`

/** @param {string} name @returns {Outgoing | null} */
const read = (name) => JSON.parse(sessionStorage.getItem(outgoingName(name)) ?? "null")

/** @param {string} item @param {string} value */
export function store(item, value) {
  try {
    sessionStorage.setItem(item, value)
  } catch {
    // The storage is full: a long message is sent all the same, from memory.
  }
}

/** @param {string} name @param {Outgoing} outgoing */
const write = (name, outgoing) => store(outgoingName(name), JSON.stringify(outgoing))

/** @param {Outgoing} outgoing */
const endOf = (outgoing) => outgoing.at + MOST_AGE_MS

/** @param {Outgoing} outgoing */
const isOld = (outgoing) => Date.now() > endOf(outgoing)

/** Return the text of a message. @param {Outgoing} outgoing @returns {string} */
export const textOf = ({ body: { message } }) => parts(message.content ?? message).map((part) => part.text ?? "").join("")

/** Join a text that comes back with what was written meanwhile. @param {string} text @param {string} now */
export const joined = (text, now) => [text, now].filter(Boolean).join("\n\n")

/** Return the body that is being written, or that of the message that is being sent; null if there is none. @param {string} name @returns {any} */
export const lastBody = (name) => JSON.parse(sessionStorage.getItem(requestName(name)) ?? "null") ?? read(name)?.body ?? null

/** Keep what a body has besides its text and files. @param {string} name @param {any} body */
export const saveBody = (name, body) => store(requestName(name), JSON.stringify(body))

/** Return the text that was being written. @param {string} name */
export function draftOf(name) {
  const found = read(name)
  // Nobody expects a message of yesterday to be sent when a browser restores its tabs.
  if (found !== null && !found.isReturned && isOld(found) && !requests.has(found.key)) giveBack(name, found)
  return sessionStorage.getItem(draftName(name)) ?? ""
}

/** @param {string} name @param {string} text */
export function saveDraft(name, text) {
  if (text) {
    store(draftName(name), text)
    return
  }
  sessionStorage.removeItem(draftName(name))
  sessionStorage.removeItem(requestName(name))
  // Where the text was deleted, the same words are another message later.
  if (read(name)?.isReturned) sessionStorage.removeItem(outgoingName(name))
}

/** Return the files of the text that is being written. @param {string} name @returns {import("./attachments.js").Attachment[]} */
export function filesOf(name) {
  /** @type {import("./attachments.js").Attachment[]} */
  const kept = JSON.parse(sessionStorage.getItem(filesName(name)) ?? "[]")
  return kept.map((one) => ({ ...one, isLoading: false, error: one.file === null ? "lost" : null }))
}

/** Keep the files that are uploaded, and the names of the others, whose content ends with the page. @param {string} name @param {import("./attachments.js").Attachment[]} files */
export function saveFiles(name, files) {
  if (files.length > 0) store(filesName(name), JSON.stringify(files.map(({ key, uploadKey, name: title, file }) => ({ key, uploadKey, name: title, file }))))
  else sessionStorage.removeItem(filesName(name))
}

/**
 * Make a message of the draft. If it may have arrived, and is unchanged, it keeps its key.
 * @param {string} name
 * @param {any} body
 * @param {import("./attachments.js").Attachment[]} files
 * @returns {Outgoing}
 */
export function pack(name, body, files) {
  const before = read(name)
  const isSame = before !== null && before.isReturned && !isOld(before) && gist(before.body) === gist(body)
  const made = isSame ? { ...before, ...chosen(before, body), isReturned: false }
    : { key: crypto.randomUUID(), body, files, at: Date.now(), isRepeated: false, isReturned: false }
  write(name, made)
  saveDraft(name, "")
  saveFiles(name, [])
  return made
}

/** Return what makes a message another one: not what the thread was doing, perhaps because it has arrived. @param {any} body */
const gist = ({ on_busy: _, ...rest }) => JSON.stringify(rest)

/**
 * Return the body of a message that may have arrived as it is sent again, with those before it.
 * @param {Outgoing} before
 * @param {any} body
 */
function chosen({ body: last, earlier = [] }, body) {
  // A thread that is busy since, perhaps with this message, makes a choice of nothing that was chosen.
  const isSame = !body.on_busy || body.on_busy === (last.on_busy ?? "enqueue")
  return isSame ? {} : { body, earlier: [last, ...earlier] }
}

/** Return the message that was being sent when the page was left. @param {string} name */
export function left(name) {
  const found = read(name)
  return found === null || found.isReturned ? null : { ...found, isRepeated: true }
}

/**
 * Send a message. Returns the response, with `isEarlier` if the message had arrived before with another choice for a busy
 * thread; throws if the service refuses the message.
 * @param {string} name
 * @param {string} path
 * @param {Outgoing} outgoing
 * @param {() => void} [onRetry]
 * @returns {Promise<any>}
 */
export function deliver(name, path, outgoing, onRetry) {
  const request = requests.get(outgoing.key) ?? { made: request_(name, path, outgoing) }
  request.onRetry = onRetry
  requests.set(outgoing.key, request)
  return request.made
}

/** @param {string} name @param {string} path @param {Outgoing} outgoing */
async function request_(name, path, outgoing) {
  let isRepeated = outgoing.isRepeated
  const onRetry = () => {
    isRepeated = true
    requests.get(outgoing.key)?.onRetry?.()
  }
  try {
    const made = await sent(path, [outgoing.body, ...(outgoing.earlier ?? [])], { key: outgoing.key, onRetry, until: endOf(outgoing) })
    if (isKept(name, outgoing)) sessionStorage.removeItem(outgoingName(name))
    return made
  } catch (error) {
    const isKnown = error instanceof ApiError && error.status < 500 && !(isRepeated && UNSURE.includes(error.status))
    if (isKept(name, outgoing)) {
      giveBack(name, outgoing)
      // Later refusals do not say whether it has arrived, however many there are.
      if (!isKnown) write(name, { ...outgoing, isRepeated: true, isReturned: true })
    }
    throw error
  } finally {
    requests.delete(outgoing.key)
  }
}

/**
 * Send the first of these bodies. If one of the others has arrived with this key, return its response.
 * @param {string} path
 * @param {any[]} bodies
 * @param {import("../lib/api.js").Sending} sending
 * @returns {Promise<any>}
 */
async function sent(path, [body, ...others], sending) {
  try {
    return await post(path, body, sending)
  } catch (error) {
    if (others.length === 0 || !(error instanceof ApiError && error.code === "idempotency.conflict")) throw error
    return { ...(await sent(path, others, sending)), isEarlier: true }
  }
}

/** Return whether it is the last message, of somebody who is still signed in. @param {string} name @param {Outgoing} outgoing */
const isKept = (name, outgoing) => read(name)?.key === outgoing.key

/** Make a message a draft again. @param {string} name @param {Outgoing} outgoing */
function giveBack(name, outgoing) {
  sessionStorage.removeItem(outgoingName(name))
  saveDraft(name, joined(textOf(outgoing), sessionStorage.getItem(draftName(name)) ?? ""))
  saveFiles(name, [...outgoing.files, ...filesOf(name)])
  // A first message has more than a text and files. Its key is not kept here.
  saveBody(name, outgoing.body)
}
