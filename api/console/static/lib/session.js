// The signed-in user: who it is, and the token of each request.
//
// The access token of a log-in is in memory alone; the refresh token is in an HttpOnly cookie that no
// script reads. An API key is in the tab's sessionStorage: it survives a reload, and ends with the tab.
// All tabs share the cookie, and a refresh token that is used twice ends the log-in. So one tab at a
// time exchanges it, under a lock of the browser, and gives the new access token to the others.
import { COOKIE_MS, inTime } from "./in_time.js"
import { comeBack, forgetLink, leaveFor, returnAddress, takeRefusal } from "./provider_login.js"
import { PASSWORD_UNSURE, Refused, SUSPENDED, SignedOut, Suspended, checkOrg, failure, reason, reasons } from "./refusals.js"
import { go } from "./router.js"
import { store } from "./store.js"

/** @typedef {{kind: "login" | "key", token: string}} Credential */
/** @typedef {{id: string, username: string, email: string, org_id: string, org_name: string, role: string,
 *   permissions: string[], orgs: {id: string, name: string, role: string}[]}} Me */

const AUTH = new URL("v1/auth/", document.baseURI)
const KEY = "arkloop.api-key"
const DRAFT = "arkloop.draft."
const LOCK = "arkloop.refresh"
/** A token is exchanged when it has less than this left. */
const MARGIN_MS = 60_000
/** Longer than the clocks of two machines differ: a token that is new counts as new. */
const NEW_MS = 5_000

/** @type {Credential | null} */
let credential = null
let gotAt = 0
/** The page from which somebody has signed out, and its org. @type {{orgId: string, hash: string} | null} */
let left = null
const channel = "BroadcastChannel" in globalThis ? new BroadcastChannel("arkloop.session") : null

/** "unknown" until the first answer, "out", "in", or "expired": the page stays, and asks to sign in again.
 * @type {import("./store.js").Store<"unknown" | "out" | "in" | "expired">} */
export const state = store("unknown")
/** @type {import("./store.js").Store<Me | null>} */
export const me = store(null)
/** Counts the tokens of this person after the first. @type {import("./store.js").Store<number>} */
export const renewals = store(0)
/** Why the last attempt failed: for the sign-in page, or for people who were signed in before and still are. @type {import("./store.js").Store<string>} */
export const notice = store("")
/** Why signing out has failed. The cookie stays then: a reload would sign in again. @type {import("./store.js").Store<string>} */
export const stillSignedIn = store("")

/** The sign-in page shows because the organization is suspended: signing out ends what would be good again once it is resumed.
 * @type {import("./store.js").Store<boolean>} */
export const isSuspended = store(false)

channel?.addEventListener("message", ({ data }) => {
  if (data.type === "signed-out" && (credential?.kind === "login" || state.get() === "expired")) leave("You signed out in another tab.")
  if (data.type === "token") {
    if (credential?.kind === "login" || (credential === null && state.get() === "expired")) accept(data.token)
    else if (credential === null && state.get() === "out") {
      leavePageOfOther(claims(data.token).org)
      location.reload()
    }
  }
})

/** Return what a token says, without verifying it. @param {string} token */
function claims(token) {
  try {
    const part = token.split(".")[1].replaceAll("-", "+").replaceAll("_", "/")
    return JSON.parse(atob(part))
  } catch {
    return {}
  }
}

/** Use a token from now on; false if it is another person's, for whom the page is loaded anew. @param {string} token */
function accept(token) {
  const before = me.get()
  const { sub, org } = claims(token)
  if (before !== null && (sub !== before.id || org !== before.org_id)) {
    // This page, or another tab, has signed in somebody else, or in another org: nothing from before may stay.
    forgetDrafts()
    if (org !== before.org_id) history.replaceState(null, "", addressElsewhere())
    location.reload()
    return false
  }
  if (before === null) leavePageOfOther(org)
  credential = { kind: "login", token }
  gotAt = Date.now()
  if (state.get() === "expired") state.set("in")
  if (before !== null) renewals.set(renewals.get() + 1)
  return true
}

/** Return of the address what another org has, too: an id is of the org before. Links of invitations are of none. */
function addressElsewhere() {
  const [, page = ""] = location.hash.split(/[/?]/)
  return ["join", "reset"].includes(page) ? location.hash : `#/${page}`
}

/** Leave the page from which somebody has signed out, if it is of another org than this one. @param {string} orgId */
function leavePageOfOther(orgId) {
  if (left !== null && left.orgId !== orgId && left.hash === location.hash) go(addressElsewhere().slice(1), {}, { replace: true })
}

/** True while the access token is good for another minute, by the server's clock and this one. */
function isFresh() {
  if (credential === null) return false
  const { exp, iat } = claims(credential.token)
  if (typeof exp !== "number" || typeof iat !== "number") return false
  // The length of its life counts from when it came, so that a wrong clock here does no harm.
  return Date.now() < gotAt + (exp - iat) * 1000 - MARGIN_MS
}

/** Exchange the cookie for an access token; null if there is no log-in. Throws `Suspended`, `Refused`, or if the network fails. */
async function refresh() {
  const before = credential?.token
  const exchange = async () => {
    // Another tab may have done it while this one waited for the lock.
    if (credential?.kind === "login" && credential.token !== before && isFresh()) return credential.token
    // Another request may have found that the log-in has ended. Signing in again waits for the lock, too.
    if (before !== undefined && credential === null) return null
    // With keepalive the new cookie arrives even if this page is left meanwhile. The lock is not held for ever.
    const response = await inTime(new URL("refresh", AUTH), { method: "POST", keepalive: true }, COOKIE_MS)
    if (response.status === 401) await checkOrg(response)
    if (response.status === 401 || response.status === 403) return null
    if (!response.ok) throw await failure(response)
    const { access_token: token } = await response.json()
    const isSame = accept(token)
    channel?.postMessage({ type: "token", token })
    // Requests of the person before are not made with it.
    if (!isSame) throw new SignedOut()
    return token
  }
  return navigator.locks ? navigator.locks.request(LOCK, exchange) : exchange()
}

/**
 * Return the token for the next request.
 * @param {boolean} [renew] the last one was refused
 * @returns {Promise<string>}
 */
export async function bearer(renew = false) {
  if (credential?.kind === "key") {
    if (renew) leave("This API key is not valid any more.")
    else return credential.token
    throw new SignedOut()
  }
  if (credential === null && state.get() !== "unknown") throw new SignedOut()
  if (credential !== null && isFresh() && !(renew && Math.abs(Date.now() - gotAt) > NEW_MS)) return credential.token
  const token = await refresh()
  if (token !== null) return token
  credential = null
  if (state.get() === "in") state.set("expired")
  throw new SignedOut()
}

/** Find out who is signed in, when the page begins. */
export async function restore() {
  const key = sessionStorage.getItem(KEY)
  if (key !== null) credential = { kind: "key", token: key }
  await begin()
}

/** Read who is signed in, until the service says it. A log-in counts before: it must not be made again. */
async function begin() {
  notice.set("")
  state.set("unknown")
  let trying = ""
  for (let pause = 500; ; pause = Math.min(2 * pause, 8_000)) {
    try {
      await bearer()
      await readMe()
      return
    } catch (error) {
      if (error instanceof Suspended) {
        // The cookie, or the key, stays where the next load of the page finds it.
        if (credential?.kind !== "key") credential = null
        notice.set(error.message)
        isSuspended.set(true)
      }
      if (error instanceof SignedOut || error instanceof Suspended) {
        // Nothing is tried again now; a key that is refused has a notice of its own.
        notice.set(takeRefusal(null) || (notice.get() === trying ? "" : notice.get()))
        state.set("out")
        return
      }
      const seconds = error instanceof Refused ? error.retryAfter : 0
      const why = error instanceof Refused ? error.message : "The service cannot be reached."
      trying = `${why} Trying again ${seconds > 0 ? `in ${seconds} s.` : "…"}`
      notice.set(trying)
      await new Promise((resolve) => setTimeout(resolve, 1_000 * seconds || pause))
    }
  }
}

async function readMe() {
  let response = await inTime(new URL("../me", AUTH), { headers: { Authorization: `Bearer ${await bearer()}` } })
  if (response.status === 401) {
    await checkOrg(response)
    response = await inTime(new URL("../me", AUTH), { headers: { Authorization: `Bearer ${await bearer(true)}` } })
  }
  if (!response.ok) throw await failure(response)
  const user = await response.json()
  me.set(user)
  notice.set(takeRefusal(user.org_id))
  comeBack(user.org_id)
  state.set("in")
}

/** Send a log-in, until `signal` calls it off; all tabs wait for it. @param {string} path @param {unknown} body @param {AbortSignal} signal */
const entering = (path, body, signal) => inTime(new URL(path, AUTH), {
  method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), signal,
}, COOKIE_MS)

/**
 * Sign in with a password. Returns why it failed, "" if it did not.
 * @param {string} login
 * @param {string} password
 * @param {string | null} orgId
 * @param {AbortSignal} signal calls it off
 */
export async function logIn(login, password, orgId, signal) {
  const enter = () => entering("login", { login, password, ...(orgId ? { org_id: orgId } : {}) }, signal)
  // No other tab exchanges the cookie while it is replaced.
  const response = navigator.locks ? await navigator.locks.request(LOCK, enter) : await enter()
  const found = await response.json()
  if (!response.ok) return reason(found, response)
  sessionStorage.removeItem(KEY)
  accept(found.access_token)
  channel?.postMessage({ type: "token", token: found.access_token })
  if (me.get() === null) void begin()
  return ""
}

/**
 * Accept an invitation, with a new account or one that exists. Returns what is wrong, by field; "" is all of it.
 * @param {string} invitation
 * @param {Record<string, string>} values
 * @param {boolean} isKnown
 * @param {AbortSignal} signal calls it off
 * @returns {Promise<Record<string, string>>}
 */
export async function join(invitation, values, isKnown, signal) {
  const { login = "", email = "", password = "" } = values
  const body = isKnown ? { login: login.trim(), password, invitation } : { login: login.trim(), email: email.trim(), password, invitation }
  const enter = () => entering(isKnown ? "login" : "register", body, signal)
  const response = navigator.locks ? await navigator.locks.request(LOCK, enter) : await enter()
  const found = await response.json()
  if (!response.ok) return reasons(found, response)
  sessionStorage.removeItem(KEY)
  accept(found.access_token)
  channel?.postMessage({ type: "token", token: found.access_token })
  void begin()
  return {}
}

/** Set a new password by the token of a link. Returns what is wrong, by field. @param {string} token @param {string} password */
export async function setPassword(token, password) {
  try {
    const response = await inTime(new URL("password-reset", AUTH), {
      method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ token, password }),
    })
    return response.ok ? {} : reasons(await response.json(), response)
  } catch {
    return { "": `The service cannot be reached. ${PASSWORD_UNSURE}` }
  }
}

const WRONG_KEY = "This API key is not valid."

/** Sign in with an API key. Returns why it failed, "" if it did not. @param {string} key @param {AbortSignal} signal */
export async function useKey(key, signal) {
  // A browser sends no other characters in a header, such as the "…" of the list of keys.
  if (!/^[\x21-\x7e]+$/.test(key)) return WRONG_KEY
  const response = await inTime(new URL("../me", AUTH), { signal, headers: { Authorization: `Bearer ${key}` } })
  if (!response.ok) {
    const found = await response.json()
    const isWrong = response.status === 401 && found.code !== SUSPENDED
    return isWrong ? WRONG_KEY : reason(found, response)
  }
  const user = await response.json()
  leavePageOfOther(user.org_id)
  credential = { kind: "key", token: key }
  sessionStorage.setItem(KEY, key)
  me.set(user)
  notice.set("")
  state.set("in")
  return ""
}

/** Log in at the identity provider of an org, which leads back here. Returns why it failed. @param {string} orgId @param {AbortSignal} signal */
export async function beginAtProvider(orgId, signal) {
  const response = await entering("oidc/begin", { org_id: orgId, return_to: returnAddress() }, signal)
  const found = await response.json()
  if (!response.ok) return reason(found, response)
  signal.throwIfAborted()
  leavePageOfOther(orgId)
  // Where somebody is signed in, the address is of an org that is left.
  leaveFor(orgId, found.authorization_url, me.get() === null ? location.hash : "")
  return ""
}

export const isKey = () => credential?.kind === "key"

/** End the log-in, for all tabs. If the service does not end it, this page stays signed in and says so. */
export const logOut = () => end("")

/** End the log-in in an org that the person has left: signing in again would be refused. */
export const leaveOrg = () => end("You have left the organization.")

/** @param {string} why */
async function end(why) {
  if (credential?.kind !== "key") {
    try {
      const response = await endLogIn()
      if (response !== null && !response.ok) {
        stillSignedIn.set(reason(await response.json().catch(() => ({})), response))
        return
      }
    } catch (error) {
      stillSignedIn.set(error instanceof Suspended || error instanceof Refused ? error.message : "The service cannot be reached.")
      return
    }
    channel?.postMessage({ type: "signed-out" })
  }
  leave(why)
}

/** Ask the service to end the log-in; null if there is none. Throws as `refresh` does. */
async function endLogIn() {
  const end = (/** @type {string} */ token) => inTime(new URL("logout", AUTH), {
    method: "POST", headers: token ? { Authorization: `Bearer ${token}` } : {},
  })
  const token = await bearer().catch(() => "")
  const response = token ? await end(token) : null
  if (response !== null && response.status !== 401) return response
  // The token is refused, or none can be had, as in a suspended organization. The cookie may be in force.
  const byCookie = await end("")
  if (byCookie.status !== 401) return byCookie
  // It is not, or the service is of a release that asks for a token.
  const renewed = await refresh()
  return renewed === null ? null : end(renewed)
}

/** @param {string} why */
function leave(why) {
  const user = me.get()
  if (user !== null) left = { orgId: user.org_id, hash: location.hash }
  credential = null
  forgetLink()
  sessionStorage.removeItem(KEY)
  forgetDrafts()
  notice.set(why)
  stillSignedIn.set("")
  isSuspended.set(false)
  me.set(null)
  state.set("out")
}

/**
 * The name in the tab's sessionStorage of a message that is not sent yet. Other people do not see it, and it is not sent
 * in another org of the same person.
 * @param {string} what
 */
export const draftName = (what) => `${DRAFT}${me.get()?.org_id}.${me.get()?.id}.${what}`

function forgetDrafts() {
  for (const name of Object.keys(sessionStorage)) if (name.startsWith(DRAFT)) sessionStorage.removeItem(name)
}

/** @param {string} permission */
export const may = (permission) => me.get()?.permissions.includes(permission) ?? false

/**
 * Return whether the service lets this person change a thread or run of `createdBy`: without `admin`, their own alone.
 * @param {string | undefined} createdBy
 */
export const mayWrite = (createdBy) => may("admin") || me.get()?.id === createdBy
