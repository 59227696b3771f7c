// Small parts that all pages share.
import { ApiError, NetworkError, calledOff, isGone } from "../lib/api.js"
import { exactly, plain, when, words } from "../lib/format.js"
import { classes, html, useEffect, useId, useLayoutEffect, useRef, useState } from "../lib/html.js"
import { reached } from "../lib/reached.js"
import { SignedOut } from "../lib/refusals.js"
import { state as session } from "../lib/session.js"
import { store, useStore } from "../lib/store.js"
import { Icon } from "./icons.js"

/**
 * A button. `busy` is shown, and ignores clicks, also those of Enter in a field of its form: it is not disabled, since it
 * would lose the focus.
 * @param {{kind?: "primary" | "plain" | "quiet" | "danger", icon?: import("./icons.js").IconName, busy?: boolean,
 *   label?: string, children?: any, class?: string, [other: string]: any}} props
 */
export function Button({ kind = "plain", icon, busy = false, label, children, class: more, ...rest }) {
  return html`<button type="button" class=${classes("button", kind, !children && "square", more)}
    aria-label=${label} title=${label} aria-busy=${busy || undefined} aria-disabled=${busy || undefined} ...${rest}
    onClick=${busy ? (/** @type {Event} */ event) => event.preventDefault() : rest.onClick}>
    ${busy ? html`<span class="spinner" aria-hidden="true"></span>` : icon && html`<${Icon} name=${icon} />`}
    ${children && html`<span>${children}</span>`}
  </button>`
}

const TONES = {
  completed: "good", failed: "bad", cancelled: "mute", running: "live", waiting_for_input: "warn", queued: "mute",
  executing: "live", waiting: "warn", cancelling: "warn", finished: "mute", scheduled: "mute", active: "good",
  alive: "good", away: "bad", worker_lost: "bad", silent: "warn", overdue: "warn",
  delivered: "good", pending: "live", dead: "bad", revoked: "bad", suspended: "bad", expired: "mute", disabled: "mute",
}

/** A status as a word with a colour. @param {{status: string, text?: string}} props */
export function Badge({ status, text }) {
  const tone = /** @type {Record<string, string>} */ (TONES)[status] ?? "mute"
  return html`<span class=${classes("badge", tone)}><span class="dot" aria-hidden="true"></span>${text ?? words(status)}</span>`
}

/** Counts up now and then: "just now", and how soon something ends, do not stay true while a page is open. */
const passed = store(0)
const pass = () => document.visibilityState === "visible" && passed.set(passed.get() + 1)
setInterval(pass, 20_000)
document.addEventListener("visibilitychange", pass)

/** A time, with the exact one as its title. @param {{at: string | null | undefined}} props */
export function Time({ at }) {
  useStore(passed)
  return html`<time datetime=${at ?? ""} title=${exactly(at)}>${when(at)}</time>`
}

/** Text of others, in which no character turns the direction around. @param {{text: string, class?: string}} props */
export const Foreign = ({ text, class: name }) => html`<bdi class=${name}>${plain(text)}</bdi>`

/** In the place of an error while a change is sent again. */
export class SentAgain {}

/** @param {{error: unknown, onRetry?: () => void}} props */
export function Problem({ error, onRetry }) {
  if (error === null || error === undefined) return null
  if (error instanceof SentAgain) {
    return html`<p class="note" role="status">No response: it is sent again until you cancel it or leave the page. An attempt may have arrived already.</p>`
  }
  const { text, trace } = explained(error)
  return html`<div class="problem" role="alert">
    <${Icon} name="alert" />
    <div><p>${plain(text)}</p>${trace && html`<p class="faint">Trace <code>${trace}</code></p>`}</div>
    ${onRetry && html`<${Button} onClick=${onRetry}>Try again</${Button}>`}
  </div>`
}

/** Return what a person reads of an error. @param {unknown} error */
export function explained(error) {
  if (error instanceof SignedOut) return { text: "Your session has ended. Sign in again.", trace: "" }
  if (!(error instanceof ApiError)) {
    return { text: error instanceof Error ? error.message : String(error), trace: "" }
  }
  const fields = error.code === "validation.error"
    ? Object.entries(error.details).map(([name, why]) => `${name}: ${[why].flat().join("; ")}`).join(" · ") : ""
  const retry = error.retryAfter > 0 ? ` Try again in ${error.retryAfter} s.` : ""
  const text = fields || (error.code === "budget.exhausted" && exhausted(error)) || reached(error) || error.message
  return { text: text + retry, trace: error.status >= 500 ? error.traceId : "" }
}

/** Whose a budget is. @type {Record<string, string>} */
const OWNERS = { org: "the organization", api_key: "the API key", end_user: "the end user", persona: "the persona" }

/** Return what is used up, and who can change that; "" if this page does not know it. @param {ApiError} error */
function exhausted({ details, retryAfter }) {
  const scope = String(details.scope).split(":")[0]
  // With a time to try again, there is enough once active runs have ended.
  if (scope === "credits") {
    return retryAfter > 0 ? "Active runs have reserved the credits that the organization has left."
      : "The organization has no credits left; the operator grants them."
  }
  if (!OWNERS[scope]) return ""
  return retryAfter > 0 ? `Active runs have reserved the rest of the monthly budget of ${OWNERS[scope]}.`
    : `The monthly budget of ${OWNERS[scope]} is used up; an admin can raise it.`
}

/** @param {{lines?: number}} props */
export const Loading = ({ lines = 4 }) => html`<div class="loading" role="status" aria-label="Loading">
  ${Array.from({ length: lines }, (_, index) => html`<div class="bone" key=${index}></div>`)}</div>`

/** @param {{icon: import("./icons.js").IconName, title: string, children?: any}} props */
export const Empty = ({ icon, title, children }) => html`<div class="empty">
  <span class="empty-icon"><${Icon} name=${icon} /></span><h2>${title}</h2><div>${children}</div></div>`

/** A text that is copied by its button. @param {{text: string, label?: string}} props */
export function Copy({ text, label = "Copy" }) {
  const [isDone, setDone] = useState(false)
  const copy = async () => {
    await navigator.clipboard.writeText(text)
    setDone(true)
    setTimeout(() => setDone(false), 1_500)
  }
  return html`<${Button} kind="quiet" class="small" icon=${isDone ? "check" : "copy"} label=${isDone ? "Copied" : label} onClick=${copy} />`
}

/** An id: short to read, whole to copy. @param {{id: string}} props */
export const Id = ({ id }) => html`<span class="id"><code title=${id}>${id}</code><${Copy} text=${id} label="Copy id" /></span>`

/**
 * A block of code or data with a button to copy it; `whole` is what is copied where only a part of it is shown.
 * @param {{text: string, whole?: string, label?: string, lang?: string}} props
 */
export const Code = ({ text, whole = text, label, lang }) => html`<div class="code">
  <div class="code-head"><span>${label ?? lang ?? ""}</span><${Copy} text=${whole} /></div>
  <pre tabindex="0"><code>${plain(text)}</code></pre></div>`

/** A field with its label. @param {{label: string, hint?: any, error?: string, children: (id: string) => any, id: string}} props */
export const Field = ({ label, hint, error, children, id }) => html`<div class="field">
  <label for=${id}>${label}</label>${children(id)}
  ${hint && html`<p class="hint" id=${`${id}-hint`}>${hint}</p>`}
  ${error && html`<p class="field-error" role="alert" id=${`${id}-error`}>${error}</p>`}</div>`

/** @param {{title: string, children?: any, actions?: any, back?: string}} props */
export const Head = ({ title, children, actions, back }) => html`<header class="head">
  <div class="head-title">
    ${back && html`<a class="button quiet square" href=${back} aria-label="Back" title="Back"><${Icon} name="back" /></a>`}
    <h1>${title}</h1>${children}
  </div>
  ${actions && html`<div class="actions">${actions}</div>`}
</header>`

/**
 * A dialog that is open for as long as it is rendered; a required one is closed by its own buttons alone.
 * @param {{title: string, onClose: () => void, children: any, isRequired?: boolean}} props
 */
export function Dialog({ title, onClose, children, isRequired = false }) {
  const element = useRef(/** @type {HTMLDialogElement | null} */ (null))
  const id = useId()
  useEffect(() => {
    const before = /** @type {HTMLElement | null} */ (document.activeElement)
    element.current?.showModal()
    // A dialog that is removed gives the focus to nothing: who uses the keyboard continues where it was, or in the page.
    return () => queueMicrotask(() => {
      if (document.activeElement !== document.body) return
      if (before?.isConnected && before !== document.body) before.focus()
      else document.getElementById("main")?.focus({ preventScroll: true })
    })
  }, [])
  const onCancel = (/** @type {Event} */ event) => {
    event.preventDefault()
    if (!isRequired) onClose()
  }
  // Chromium lets a page prevent no second `cancel` in a row: another Esc closes the dialog.
  const onClosed = () => {
    if (!isRequired) onClose()
    else if (element.current?.isConnected) element.current.showModal()
  }
  return html`<dialog class="dialog" ref=${element} aria-labelledby=${id} closedby=${isRequired ? "none" : undefined}
    onCancel=${onCancel} onClose=${onClosed}>
    <header><h2 id=${id}>${title}</h2>
      ${!isRequired && html`<${Button} kind="quiet" icon="close" label="Close" onClick=${onClose} />`}</header>
    ${children}
  </dialog>`
}

/** After how long without an end a request has been lost, for pages that read again by themselves. */
const LOST_MS = 30_000

/**
 * Keep what a request returns until the service does not have it any more; it is sent again when `keys` change, or a change
 * was called off that may have been made.
 * @template T
 * @param {(signal: AbortSignal) => Promise<T>} read
 * @param {unknown[]} keys
 * @returns {{data: T | null, error: unknown, reload: () => void, refresh: () => void, isLoading: boolean}}
 *   `reload` is for what was changed; `refresh` is for timers, and lets a request that is under way end
 */
export function useRead(read, keys) {
  const [state, setState] = useState({ data: /** @type {any} */ (null), error: /** @type {unknown} */ (null), isLoading: true })
  const [turn, setTurn] = useState(0)
  const changes = useStore(calledOff)
  const began = useRef(/** @type {number | null} */ (null))
  useEffect(() => {
    const control = new AbortController()
    began.current = Date.now()
    setState((before) => ({ ...before, isLoading: true }))
    const end = (/** @type {(before: typeof state) => typeof state} */ taken) => {
      if (control.signal.aborted) return
      began.current = null
      setState(taken)
    }
    read(control.signal).then(
      (data) => end(() => ({ data, error: null, isLoading: false })),
      (error) => end((before) => ({ data: isGone(error) ? null : before.data, error, isLoading: false })),
    )
    return () => control.abort()
  }, [...keys, turn, changes])
  const reload = () => {
    // At once: the effect comes after the browser's next frame, and what is shown before may rely on it.
    setState((before) => ({ ...before, isLoading: true }))
    setTurn((before) => before + 1)
  }
  const refresh = () => {
    const isLost = began.current !== null && Date.now() - began.current > LOST_MS
    if (isLost) setState((before) => ({ ...before, error: new NetworkError() }))
    if (isLost || began.current === null) reload()
  }
  useNextSession(state.error, reload)
  return { ...state, reload, refresh }
}

/**
 * Read again after a new sign-in if the ended session was the error.
 * @param {unknown} error why it was not read
 * @param {() => void} reload
 */
export function useNextSession(error, reload) {
  const now = useStore(session)
  useEffect(() => {
    if (now === "in" && error instanceof SignedOut) reload()
  }, [now])
}

/**
 * Return what changes of a component are sent with: they are called off with it.
 * @param {(error: unknown) => void} show is called with what to say while one is sent again
 * @returns {import("../lib/api.js").Sending}
 */
export function useSending(show) {
  const [control] = useState(() => new AbortController())
  // An effect that is no layout effect ends up to 35 ms after the component is gone: time for another attempt.
  useLayoutEffect(() => () => control.abort(), [])
  return { signal: control.signal, onRetry: () => show(new SentAgain()) }
}

/**
 * Run something that may fail, and know whether it runs.
 * @returns {{isBusy: boolean, error: unknown, run: (action: (sending: import("../lib/api.js").Sending) => Promise<unknown>) => Promise<boolean>,
 *   clear: () => void}}
 */
export function useAction() {
  const [state, setState] = useState({ isBusy: false, error: /** @type {unknown} */ (null) })
  const sending = useSending((error) => setState({ isBusy: true, error }))
  const run = async (/** @type {(sending: import("../lib/api.js").Sending) => Promise<unknown>} */ action) => {
    setState({ isBusy: true, error: null })
    try {
      await action(sending)
      setState({ isBusy: false, error: null })
      return true
    } catch (error) {
      setState({ isBusy: false, error })
      return false
    }
  }
  const clear = () => setState({ isBusy: false, error: null })
  useNextSession(state.error, clear)
  return { ...state, run, clear }
}

/** Call something now and then while the page is looked at. @param {() => void} call @param {number} ms @param {unknown[]} keys */
export function useInterval(call, ms, keys) {
  useEffect(() => {
    const tick = () => document.visibilityState === "visible" && call()
    const timer = setInterval(tick, ms)
    document.addEventListener("visibilitychange", tick)
    return () => {
      clearInterval(timer)
      document.removeEventListener("visibilitychange", tick)
    }
  }, keys)
}
