// Files of a message: chosen, dropped or pasted, uploaded before it is sent with them.
import { ApiError, NetworkError, bodyOf, get, segment, send } from "../lib/api.js"
import { plain } from "../lib/format.js"
import { html, useLayoutEffect, useRef, useState } from "../lib/html.js"
import { me } from "../lib/session.js"
import { Icon } from "../ui/icons.js"
import { Button, Foreign, Problem, explained, useAction, useRead } from "../ui/parts.js"

/** What the service takes, for the dialog that chooses; it looks at the content itself. */
const ACCEPTED = "image/png,image/jpeg,image/gif,image/webp,application/pdf,text/*,.md,.csv,.json,.log"
/** How long an upload waits for others of the organization to end, in milliseconds. */
const PATIENCE = 15_000

/**
 * Uploads of files that are attached, by their idempotency keys: a page that is opened again takes part in them.
 * @type {Map<string, {file: File, made: Promise<any>, controller: AbortController}>}
 */
const uploads = new Map()

/**
 * @typedef {{key: number, uploadKey: string, name: string, file: any, isLoading: boolean, error: unknown, retry?: () => void}} Attachment
 *   `file` is null until it is uploaded; `retry` uploads it again, unless its content was lost with the page before
 */

/**
 * Keep the files of a message that is being written, which begins with some.
 * @param {() => Attachment[]} first
 * @returns {{list: Attachment[], add: (files: Iterable<File>) => void, remove: (key: number) => void, clear: () => void,
 *   restore: (list: Attachment[]) => void, isUploaded: boolean}} `isUploaded` is true if the message can have all of them
 */
export function useAttachments(first) {
  // Files that were kept have the keys of another page.
  const [list, setList] = useState(() => first().map((one, index) => taken({ ...one, key: index + 1 })))
  const keys = useRef(list.length)
  const last = useRef(Promise.resolve())
  const change = (/** @type {number} */ key, /** @type {Partial<Attachment>} */ news) =>
    setList((before) => before.map((one) => (one.key === key ? { ...one, ...news } : one)))
  const follow = (/** @type {{key: number, uploadKey: string}} */ { key, uploadKey }) => uploads.get(uploadKey)?.made.then(
    (stored) => change(key, { file: stored, isLoading: false }),
    (error) => change(key, { error, isLoading: false }),
  )
  const start = (/** @type {{key: number, uploadKey: string}} */ one, /** @type {File} */ file) => {
    change(one.key, { isLoading: true, error: null })
    // One after the other: the service takes few uploads of an org at a time.
    last.current = begin(file, one.uploadKey, last.current).catch(() => {})
    void follow(one)
  }
  /** Return a file with its upload, if that was begun before the page was left. @param {Attachment} one @returns {Attachment} */
  function taken(one) {
    const known = one.file === null ? uploads.get(one.uploadKey) : undefined
    return known === undefined ? one : { ...one, isLoading: true, error: null, retry: () => start(one, known.file) }
  }
  useLayoutEffect(() => {
    const before = list.filter((one) => one.isLoading)
    last.current = Promise.allSettled(before.map(follow)).then(() => {})
  }, [])
  const add = (/** @type {Iterable<File>} */ files) => {
    for (const file of files) {
      const one = { key: (keys.current += 1), uploadKey: crypto.randomUUID() }
      setList((before) => [...before, { ...one, name: file.name, file: null, isLoading: true, error: null, retry: () => start(one, file) }])
      start(one, file)
    }
  }
  return {
    list, add,
    remove: (key) => {
      list.filter((one) => one.key === key).forEach(end)
      setList((before) => before.filter((one) => one.key !== key))
    },
    clear: () => {
      list.forEach(end)
      setList([])
    },
    restore: (earlier) => {
      const again = earlier.map((one) => ({ ...one, key: (keys.current += 1) }))
      setList((before) => [...again, ...before])
    },
    isUploaded: list.every((one) => one.file !== null),
  }
}

/**
 * Upload a file after those before it, until it is removed: also while its page is left.
 * @param {File} file
 * @param {string} key of the request, the same in all attempts: one may have arrived
 * @param {Promise<void>} before
 */
function begin(file, key, before) {
  const controller = new AbortController()
  const user = me.get()
  const made = before.then(() => upload(file, key, user, controller.signal))
  uploads.set(key, { file, made, controller })
  return made
}

/** End the upload of a file: one that hangs must not hold up the others. @param {Attachment} one */
function end({ uploadKey }) {
  uploads.get(uploadKey)?.controller.abort()
  uploads.delete(uploadKey)
}

/**
 * Upload a file, again while the service takes no upload at the moment, unless it is removed.
 * @param {File} file
 * @param {string} key of the request, the same in all attempts: one may have arrived
 * @param {import("../lib/session.js").Me | null} user who has attached it
 * @param {AbortSignal} signal
 */
async function upload(file, key, user, signal) {
  const body = new FormData()
  body.append("file", file, file.name)
  const headers = { "Idempotency-Key": key }
  const until = Date.now() + PATIENCE
  for (;;) {
    signal.throwIfAborted()
    try {
      return await bodyOf(await send("POST", "files", { body, headers, signal, user }), signal)
    } catch (error) {
      const pause = error instanceof ApiError && isCrowded(error) ? 1000 * error.retryAfter : Infinity
      if (Date.now() + pause > until) throw error
      await new Promise((resolve) => {
        setTimeout(resolve, pause)
        signal.addEventListener("abort", resolve)
      })
    }
  }
}

/**
 * Return whether there are too many uploads, and the service says when to come back. The limit on requests in a
 * minute is another one: each try would count for it.
 * @param {ApiError} error
 */
const isCrowded = ({ status, retryAfter, details }) => (status === 429 || status === 503) && retryAfter > 0 && !details.per_minute

/**
 * Return whether what is pasted is text, although it has files: Office puts a picture beside what is copied. Only text has
 * a form with a layout as well; file managers put the name of a file beside it, and browsers an `<img>` beside a picture.
 * @param {DataTransfer | null} data
 */
export const isText = (data) => data !== null && data.getData("text/plain").trim() !== ""
  && (data.types.includes("text/html") || data.types.includes("text/rtf"))
  && [...data.files].every((file) => file.type.startsWith("image/"))

/** Return the content of a message: its text, or its parts. @param {string} text @param {Attachment[]} list of files that are uploaded */
export function contentOf(text, list) {
  if (list.length === 0) return text
  return [
    ...(text ? [{ type: "text", text }] : []),
    ...list.map(({ file }) => ({ type: file.media_type.startsWith("image/") ? "image" : "file", file_id: file.id })),
  ]
}

/** Return a message as requests have it. @param {any} content */
export const messageOf = (content) => (typeof content === "string" ? content : { content })

/** The button that chooses files. @param {{onFiles: (files: Iterable<File>) => void}} props */
export function Attach({ onFiles }) {
  const input = useRef(/** @type {HTMLInputElement | null} */ (null))
  const choose = (/** @type {any} */ event) => {
    onFiles([...event.target.files])
    event.target.value = ""
  }
  return html`<input ref=${input} type="file" multiple hidden accept=${ACCEPTED} onChange=${choose} aria-label="Files" />
    <${Button} kind="quiet" icon="attach" label="Attach files" onClick=${() => input.current?.click()} />`
}

/** @param {{list: Attachment[], onRemove: (key: number) => void}} props */
export const Attached = ({ list, onRemove }) => list.length === 0 ? null : html`<ul class="attached" aria-label="Attached files">${list.map((one) => html`
  <li key=${one.key} class=${one.error ? "bad" : undefined}><${Icon} name=${one.error ? "alert" : "attach"} />
    <span class="attached-name"><${Foreign} text=${one.name} />${one.isLoading ? html` <span class="faint" role="status">uploading …</span>` : ""}
      ${one.error ? html` <span role="alert">${one.error instanceof Error ? plain(reasonOf(one.error)) : "was not uploaded"}</span>` : ""}</span>
    ${one.error && one.retry && html`<${Button} class="small" label=${`Try again: ${one.name}`} onClick=${one.retry}>Try again</${Button}>`}
    <${Button} kind="quiet" class="small" icon="close" label=${`Remove ${one.name}`} onClick=${() => onRemove(one.key)} /></li>`)}</ul>
  ${list.some((one) => one.error) && html`<p class="attached-hint">Remove the files that were not uploaded, or try again: the message is sent with all that are listed.</p>`}`

/** Return why a file was refused: the only field is the file. @param {Error & {code?: string, details?: Record<string, any>}} error */
const reasonOf = (error) => (error.code === "validation.error" && Object.values(error.details ?? {}).flat().join("; ")) || explained(error).text

/** A file that a message refers to, by its name, to be saved. @param {{part: {type: string, file_id?: string, url?: string}}} props */
export function FileOf({ part }) {
  const id = part.file_id ?? ""
  const { data } = useRead(async (signal) => (id ? get(`files/${segment(id)}`, {}, signal) : null), [id])
  const action = useAction()
  const save = () => action.run(async () => {
    const response = await send("GET", `files/${segment(id)}/content`)
    const link = document.createElement("a")
    const content = await response.blob().catch(() => {
      throw new NetworkError()
    })
    link.href = URL.createObjectURL(content)
    link.download = data?.name ?? id
    link.click()
    setTimeout(() => URL.revokeObjectURL(link.href), 60_000)
  })
  return html`<p class="file"><${Icon} name="attach" /><span class="sr">${part.type === "image" ? "Image" : "File"} </span>
    ${id ? html`<button type="button" class="link" onClick=${save}><${Foreign} text=${data?.name ?? `file …${id.slice(-8)}`} /></button>`
      : html`<code>${plain(part.url ?? "")}</code>`}</p><${Problem} error=${action.error} />`
}
