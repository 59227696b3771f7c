// Requests to `/v1`, with the token of the session.
import { parse } from "./exact.js"
import { unlessSilent } from "./in_time.js"
import { SUSPENDED, SignedOut, Suspended } from "./refusals.js"
import { readRole } from "./role.js"
import { bearer, me, state } from "./session.js"
import { store } from "./store.js"

export const V1 = new URL("v1/", document.baseURI)

/** An error response of the service. */
export class ApiError extends Error {
  /** @param {number} status @param {{code?: string, message?: string, details?: any, trace_id?: string}} body
   * @param {string | null} retryAfter */
  constructor(status, body, retryAfter) {
    super(body.message ?? `HTTP ${status}`)
    this.status = status
    this.code = body.code ?? ""
    this.details = body.details ?? {}
    this.traceId = body.trace_id ?? ""
    this.retryAfter = Number(retryAfter) || 0
  }
}

/** Return whether the service has said that it does not have what is at the request's path, or has no more: a proxy, and a
 * process of another release, say only that they do not know the path. @param {unknown} error */
export const isGone = (error) => error instanceof ApiError && error.code.endsWith(".not_found") && error.code !== "http.not_found"

/** The network, or a proxy, has lost the request or its response, or has stopped sending data. */
export class NetworkError extends Error {
  /** @param {string} [message] */
  constructor(message = "The service cannot be reached.") {
    super(message)
  }
}

/** For how long a change is sent again: after that, nobody expects it to be made any more. */
const MOST_MS = 5 * 60_000
const UNSURE = "The service cannot be reached. An attempt may have arrived: see whether it was carried out before you try again."

/** The number of changes that were called off, and may have been made all the same: what is shown is read again then. */
export const calledOff = store(0)

/** Responses of a proxy that has lost the service, maybe after it carried the request out; those from 520 are Cloudflare's. */
const LOST = [502, 504, 520, 521, 522, 523, 524, 530]

/**
 * Send a request; on an access token that has ended, once more with a new one.
 * @param {string} method
 * @param {string} path below `/v1/`, or a URL
 * @param {{body?: unknown, headers?: Record<string, string>, signal?: AbortSignal, user?: import("./session.js").Me | null}} [options]
 *   `user` is who makes the request
 * @returns {Promise<Response>} a successful one
 */
export async function send(method, path, { body, headers = {}, signal, user = me.get() } = {}) {
  for (let attempt = 0; ; attempt += 1) {
    // While the request failed, or waits for its token, another person may have signed in: the first
    // must not have a token renewed that is the second's.
    if (me.get() !== user) throw new SignedOut()
    const token = await token_(attempt > 0)
    if (me.get() !== user) throw new SignedOut()
    let response
    try {
      response = await unlessSilent(new URL(path, V1), {
        method,
        signal,
        cache: "no-store",
        headers: {
          Authorization: `Bearer ${token}`,
          ...(body === undefined || body instanceof FormData ? {} : { "Content-Type": "application/json" }),
          ...headers,
        },
        body: body === undefined || body instanceof FormData ? body : JSON.stringify(body),
      })
    } catch (error) {
      if (signal?.aborted) throw error
      throw new NetworkError()
    }
    if (response.ok) return response
    if (LOST.includes(response.status)) throw new NetworkError()
    const found = await response.json().catch(() => ({}))
    // The token of a suspended organization is good again once it is resumed.
    if (response.status === 401 && found.code !== SUSPENDED) {
      if (attempt === 0) continue
      // The service's words are for programs.
      found.message = "Your session has ended. Sign in again."
    }
    if (response.status === 403) readRole()
    throw new ApiError(response.status, found, response.headers.get("Retry-After"))
  }
}

/** Read the JSON of a successful response. @param {Response} response @param {AbortSignal} [signal] @returns {Promise<any>} */
export async function bodyOf(response, signal) {
  try {
    return parse(await response.text())
  } catch (error) {
    // The connection was cut, or fell silent, within the body; a cut may look like an orderly end.
    throw signal?.aborted ? error : new NetworkError()
  }
}

/** @param {boolean} renew */
async function token_(renew) {
  try {
    return await bearer(renew)
  } catch (error) {
    if (error instanceof SignedOut) throw error
    if (error instanceof Suspended) throw new ApiError(401, { code: SUSPENDED, message: error.message }, null)
    throw new NetworkError()
  }
}

/** @param {string} path @param {Record<string, string | number | null | undefined>} [params] @param {AbortSignal} [signal] */
export async function get(path, params = {}, signal) {
  return bodyOf(await send("GET", path + query(params), { signal }), signal)
}

/**
 * Read a page of a list.
 * @param {string} path
 * @param {Record<string, string | number | null | undefined>} [params]
 * @param {AbortSignal} [signal]
 * @returns {Promise<{rows: any[], next: string | null}>} `next` is the `before` of the next page
 */
export async function page(path, params = {}, signal) {
  const response = await send("GET", path + query(params), { signal })
  return { rows: await bodyOf(response, signal), next: response.headers.get("X-Next-Cursor") }
}

/**
 * Read all pages of a list.
 * @param {string} path
 * @param {AbortSignal} [signal]
 * @param {Record<string, string>} [params]
 * @returns {Promise<any[]>}
 */
export async function all(path, signal, params = {}) {
  /** @type {any[]} */
  const rows = []
  /** @type {string | null} */
  let before = null
  do {
    const found = await page(path, { ...params, limit: 200, before }, signal)
    rows.push(...found.rows)
    before = found.next
  } while (before !== null)
  return rows
}

/**
 * Send a change. If the network or a proxy loses it, it is sent again with the same key, so that it is made once,
 * until the person who makes it signs out, or `signal` calls it off.
 * @param {string} method
 * @param {string} path
 * @param {unknown} [body]
 * @param {Sending} [options]
 *   `key` is that of a request before this one; after `until`, in milliseconds since 1970, it is not sent again
 */
export async function change(method, path, body, { signal, onRetry, key = crypto.randomUUID(), until = Date.now() + MOST_MS } = {}) {
  const headers = method === "POST" ? { "Idempotency-Key": key } : {}
  const user = me.get()
  let isUnsure = false
  for (let pause = 500, isRepeated = false; ; pause = Math.min(2 * pause, 8_000), isRepeated = true) {
    try {
      // The first attempt goes to its end: most arrive, and nobody would know what became of one that was cut off.
      const response = await send(method, path, { body, headers, signal: isRepeated ? signal : undefined, user })
      const made = response.status === 204 ? null : await bodyOf(response)
      signal?.throwIfAborted() // what would follow is not expected any more
      return made
    } catch (error) {
      // The request before was carried out, and only its response was lost.
      if (isRepeated && method === "DELETE" && error instanceof ApiError && error.status === 404) return null
      const isLost = error instanceof NetworkError || (error instanceof ApiError && (error.status === 503 || error.code === "idempotency.in_progress"))
      isUnsure ||= !(error instanceof ApiError) || error.status !== 503
      if (isLost && !signal?.aborted) {
        onRetry?.()
        await networkOr(pause, signal)
      }
      if (signal?.aborted) {
        // One that the service makes now is there a moment later.
        setTimeout(() => calledOff.set(calledOff.get() + 1), 1_000)
        throw error
      }
      if (!isLost) throw error
      // Looked at after the pause: timers sleep with the machine.
      if (Date.now() > until) throw isUnsure ? new NetworkError(UNSURE) : error
    }
  }
}

/**
 * Send a change that must not be sent again, such as one that requires a password: a wrong one counts each time.
 * @param {string} path
 * @param {unknown} body
 * @param {string} unsure what to say, after the reason, where the response is lost
 * @param {AbortSignal} [signal]
 */
export async function postOnce(path, body, unsure, signal) {
  try {
    return await bodyOf(await send("POST", path, { body, signal }), signal)
  } catch (error) {
    throw error instanceof NetworkError ? new NetworkError(`${error.message} ${unsure}`) : error
  }
}

/** @typedef {{signal?: AbortSignal, onRetry?: () => void, key?: string, until?: number}} Sending */

/** @param {string} path @param {unknown} [body] @param {Sending} [options] */
export const post = (path, body, options) => change("POST", path, body, options)
/** @param {string} path @param {unknown} body @param {Sending} [options] */
export const patch = (path, body, options) => change("PATCH", path, body, options)
/** @param {string} path @param {unknown} body @param {Sending} [options] */
export const put = (path, body, options) => change("PUT", path, body, options)
/** @param {string} path @param {Sending} [options] */
export const remove = (path, options) => change("DELETE", path, undefined, options)
/** Delete something that has a page of its own: what is gone already need not be deleted. @param {string} path @param {Sending} [options] */
export const removeIfThere = (path, options) => remove(path, options).catch((error) => {
  if (!isGone(error)) throw error
})

/** @param {Record<string, string | number | null | undefined>} params */
function query(params) {
  const given = Object.entries(params).filter(([, value]) => value !== null && value !== undefined && value !== "")
  if (given.length === 0) return ""
  return `?${new URLSearchParams(given.map(([name, value]) => [name, String(value)]))}`
}

/**
 * Wait for some time, or until the network is back, or somebody has signed in again, or `signal` ends it.
 * @param {number} ms
 * @param {AbortSignal} [signal]
 */
export function networkOr(ms, signal) {
  return new Promise((resolve) => {
    const done = () => {
      clearTimeout(timer)
      stop()
      removeEventListener("online", done)
      signal?.removeEventListener("abort", done)
      resolve(undefined)
    }
    const timer = setTimeout(done, ms)
    const stop = state.subscribe(done)
    addEventListener("online", done)
    signal?.addEventListener("abort", done)
  })
}

/** A path segment. @param {string} text */
export const segment = (text) => encodeURIComponent(text)
