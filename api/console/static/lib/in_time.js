// Requests for whose response a whole page waits: a browser waits for a connection that has fallen silent without end.

/** The service answers these in less, however busy it is. */
const MOST_MS = 30_000
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
    const response = await fetch(url, { ...options, signal: control.signal })
    // With its headers a cookie is the new one.
    signal?.removeEventListener("abort", stop)
    return new Response(await response.text(), response)
  } finally {
    clearTimeout(timer)
    signal?.removeEventListener("abort", stop)
  }
}
