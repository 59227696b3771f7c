// A stream that is followed for as long as a page shows it, over cut connections, sleep and new tokens.
import { ApiError, NetworkError, networkOr, send } from "./api.js"
import { reached } from "./reached.js"
import { SignedOut } from "./refusals.js"
import { frames } from "./sse.js"

/** The service pings after 10 s in which nothing was sent: a connection that is silent for longer than this is dead. */
const SILENCE_MS = 25_000
const MOST_PAUSE_MS = 10_000
/** A tab that is hidden for longer leaves its connection to others: over HTTP/1.1, all tabs have six. */
const HIDDEN_MS = 5_000

/**
 * @typedef {object} Followed
 * @property {(cursor: string | null) => string} path the request that continues after a cursor
 * @property {(frame: {id: string, data: string}) => void} onFrame
 * @property {(state: "connecting" | "live" | "offline" | "limited" | "failing" | "ended", why?: string) => void} onState
 *   `why` says which limit is reached, how the service fails, or why there is no access
 * @property {(error: ApiError) => "again" | "stop"} onRefused what to do about a refusal; 5xx and 401 responses are retried
 *   without asking
 * @property {() => boolean} [isEnd] true if a clean end of the response is the end of all
 */

const isHidden = () => document.visibilityState === "hidden"

/**
 * Follow a stream from a cursor, while the page is seen. Returns a function that ends it.
 * @param {string | null} cursor
 * @param {Followed} followed
 */
export function follow(cursor, followed) {
  let isStopped = false
  let lastByte = Date.now()
  /** @type {AbortController | null} */
  let connection = null
  const cut = () => connection?.abort()
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  let hiding
  /** Continues once the page is seen. */
  let wake = () => {}
  const watchdog = setInterval(() => {
    if (connection !== null && Date.now() - lastByte > SILENCE_MS) cut()
  }, 5_000)
  // After a sleep the timers above are late: what is silent since before is cut at once.
  const onVisible = () => {
    clearTimeout(hiding)
    if (isHidden()) {
      hiding = setTimeout(cut, HIDDEN_MS)
      return
    }
    if (Date.now() - lastByte > SILENCE_MS) cut()
    wake()
  }
  const onOffline = () => {
    followed.onState("offline")
    cut()
  }
  document.addEventListener("visibilitychange", onVisible)
  addEventListener("online", onVisible)
  addEventListener("offline", onOffline)

  const run = async () => {
    let failures = 0
    while (!isStopped) {
      if (isHidden()) {
        await new Promise((resolve) => (wake = () => resolve(undefined)))
        continue
      }
      let leastPause = 0
      connection = new AbortController()
      lastByte = Date.now()
      try {
        const response = await send("GET", followed.path(cursor), {
          signal: connection.signal, headers: { Accept: "text/event-stream" },
        })
        if (response.status === 204 || response.body === null) break
        failures = 0
        followed.onState("live")
        for await (const frame of frames(response.body, () => (lastByte = Date.now()))) {
          if (isStopped) return
          followed.onFrame(frame)
          cursor = frame.id
        }
        if (followed.isEnd?.() ?? false) break
      } catch (error) {
        if (isStopped) return
        if (connection.signal.aborted && isHidden()) continue
        const isLimited = error instanceof ApiError && error.status === 429
        // An organization is resumed, and people sign in again.
        const isPassing = error instanceof ApiError && (error.status >= 500 || error.status === 401)
        if (isLimited) {
          followed.onState("limited", reached(error) || error.message)
          leastPause = 1_000 * error.retryAfter
        } else if (error instanceof SignedOut) {
          followed.onState("offline")
        } else if (error instanceof ApiError && !isPassing) {
          if (followed.onRefused(error) === "stop") return
        } else if (error instanceof NetworkError && !navigator.onLine) followed.onState("offline")
        failures += 1
        if (failures > 1 && !isLimited) {
          if (isPassing) followed.onState("failing", failureOf(error))
          else followed.onState("offline")
        }
      } finally {
        connection = null
      }
      if (isStopped) return
      const pause = Math.min(250 * 2 ** failures, MOST_PAUSE_MS)
      await networkOr(Math.max(leastPause, pause * (0.5 + Math.random())))
    }
    if (!isStopped) followed.onState("ended")
  }
  void run()

  return () => {
    isStopped = true
    clearInterval(watchdog)
    clearTimeout(hiding)
    document.removeEventListener("visibilitychange", onVisible)
    removeEventListener("online", onVisible)
    removeEventListener("offline", onOffline)
    cut()
    wake()
  }
}

/** Return why there is no access, or the failure's status with the trace id for the operator. @param {ApiError} error */
const failureOf = ({ status, message, traceId }) => status === 401 ? message : `The service fails (HTTP ${status}${traceId && `, trace ${traceId}`}).`
