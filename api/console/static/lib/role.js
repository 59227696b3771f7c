// The role of the signed-in person, with its permissions. An admin may change it while the page is open: it is read again with
// each new token, and where the service refuses what the page has offered.
import { inTime } from "./in_time.js"
import { bearer, me, renewals } from "./session.js"
import { store } from "./store.js"

const ME = new URL("v1/me", document.baseURI)
/** The least time between two reads: one change has many requests refused. */
const LEAST_MS = 5_000

let readAt = -LEAST_MS
/** @type {ReturnType<typeof setTimeout> | undefined} */
let timer

/** Counts the reads. `me` stays the same object, by which requests know that they are of the person who is signed in. */
export const roleReads = store(0)

/** Read the role again, at once or as soon as the last read is long enough ago. */
export function readRole() {
  timer ??= setTimeout(read, Math.max(0, readAt + LEAST_MS - performance.now()))
}

async function read() {
  timer = undefined
  readAt = performance.now()
  const user = me.get()
  if (user === null) return
  try {
    const response = await inTime(ME, { headers: { Authorization: `Bearer ${await bearer()}` } })
    const found = await response.json()
    if (!response.ok || me.get() !== user) return
    Object.assign(user, found)
    roleReads.set(roleReads.get() + 1)
  } catch {
    // It is read with the next token, or after the next refusal.
  }
}

renewals.subscribe(readRole)
