// Requests with a limit: a browser waits indefinitely for a connection that has stopped sending data.
import { compare } from "./clock.js"

/** The service answers in less, however busy it is; only uploads take longer. */
const MOST_MS = 30_000
/** What a slow connection carries in a millisecond, and the longest that a body of unknown length may take. */
const LEAST_BYTES = 8
const MOST_BODY_MS = 5 * 60_000
/**
 * One that changes the cookie has more time: where it is given up, a cookie that arrives later is thrown away, and the one
 * before counts as copied.
 */
export const COOKIE_MS = 5 * 60_000

/**
 * Fetch something short; fails if it is not there as a whole in time, or if its signal calls it off before the headers are there.
 * @param {URL} url
 * @param {RequestInit} [options]
 * @param {number} [most] milliseconds
 */
export async function inTime(url, { signal, ...options } = {}, most = MOST_MS) {
  signal?.throwIfAborted()
  const control = new AbortController()
  const stop = () => control.abort()
  signal?.addEventListener("abort", stop)
  const timer = setTimeout(stop, most)
  try {
    const response = await compared(url, { ...options, signal: control.signal })
    // With its headers a cookie is the new one.
    signal?.removeEventListener("abort", stop)
    return new Response(await response.text(), response)
  } finally {
    clearTimeout(timer)
    signal?.removeEventListener("abort", stop)
  }
}

/**
 * Fetch something of any length; fails if its headers are not there in time, or a body, that of the request included, takes
 * longer than on a slow connection. Streams and uploads have no such limit. Its signal calls off the body, too.
 * @param {URL} url
 * @param {RequestInit & {body?: string | FormData}} options
 */
export async function unlessSilent(url, { signal, ...options }) {
  const control = new AbortController()
  const stop = () => control.abort(signal?.reason)
  const giveUp = () => control.abort(new Error("The connection stopped sending data."))
  if (signal?.aborted) stop()
  signal?.addEventListener("abort", stop, { once: true })
  const { body = "" } = options
  const timer = body instanceof FormData ? undefined : setTimeout(giveUp, MOST_MS + new Blob([body]).size / LEAST_BYTES)
  try {
    const response = await compared(url, { ...options, signal: control.signal })
    // After the end of the body this changes nothing.
    if (!response.headers.get("Content-Type")?.startsWith("text/event-stream")) setTimeout(giveUp, bodyMs(response))
    return response
  } finally {
    clearTimeout(timer)
  }
}

/** Fetch something, and compare the service's clock with this one. @param {URL} url @param {RequestInit} options */
async function compared(url, options) {
  const sent = Date.now()
  const response = await fetch(url, options)
  compare(response, sent)
  return response
}

/** Return how long the body of a response may take, in milliseconds. @param {Response} response */
function bodyMs({ headers }) {
  const length = headers.get("Content-Length")
  return length === null ? MOST_BODY_MS : MOST_MS + Number(length) / LEAST_BYTES
}
