// What a person writes for a run that waits. The tab keeps it, as it keeps drafts, until the run has its reply.
import { useLayoutEffect, useRef, useState } from "../lib/html.js"
import { draftName } from "../lib/session.js"
import { store } from "./outbox.js"

const replyName = (/** @type {string} */ requestId) => draftName(`reply.${requestId}`)

/** Forget what was written for a request. @param {string} requestId */
export const forgetReply = (requestId) => sessionStorage.removeItem(replyName(requestId))

/**
 * Return what is written for a request, and how to change it: it is here again after a reload, and in another box.
 * @template T
 * @param {string} requestId
 * @param {() => T} first
 * @returns {[T, (changed: T | ((now: T) => T)) => void]}
 */
export function useReply(requestId, first) {
  const [value, setValue] = useState(() => JSON.parse(sessionStorage.getItem(replyName(requestId)) ?? "null") ?? first())
  const now = useRef(/** @type {T} */ (value))
  const write = (/** @type {T | ((now: T) => T)} */ changed) => {
    now.current = changed instanceof Function ? changed(now.current) : changed
    setValue(now.current)
    const text = JSON.stringify(now.current)
    // A full storage takes no reply, and would give back the one before in its place.
    forgetReply(requestId)
    if (text !== JSON.stringify(first())) store(replyName(requestId), text)
  }
  return [value, write]
}

/** Forget what was written for a request of a run once another one, or none, is open. @param {string | undefined} requestId */
export function useOpenRequest(requestId) {
  const before = useRef(requestId)
  useLayoutEffect(() => {
    if (before.current && before.current !== requestId) forgetReply(before.current)
    before.current = requestId
  }, [requestId])
}
