// A login at an identity provider: the way to its page, and back.
import { go } from "./router.js"

const ORG = "arkloop.org"
const LEFT = "arkloop.left"

/** Return the org whose identity provider was used last in this browser. */
export const lastOrg = () => localStorage.getItem(ORG) ?? ""

/** Return the address of the console, to which identity providers lead back. */
export function returnAddress() {
  const page = new URL(location.href)
  page.hash = ""
  page.search = ""
  return page.href
}

/**
 * Leave for the identity provider of an org.
 * @param {string} orgId
 * @param {string} url
 * @param {string} [hash] the page to show after the return, by its address within the console
 */
export function leaveFor(orgId, url, hash = "") {
  localStorage.setItem(ORG, orgId)
  const [, page = ""] = hash.split(/[/?]/)
  // The tab keeps it: nobody else can name the page to which a login leads.
  if (["", "sign-in", "join", "reset"].includes(page)) sessionStorage.removeItem(LEFT)
  else sessionStorage.setItem(LEFT, JSON.stringify({ orgId, hash }))
  location.assign(url)
}

/**
 * Show the page that was left for a provider, once, unless another one is open or somebody is signed in to another org.
 * @param {string | null} orgId null while nobody is signed in
 */
export function comeBack(orgId) {
  const left = JSON.parse(sessionStorage.getItem(LEFT) ?? "null")
  sessionStorage.removeItem(LEFT)
  if (left === null || location.hash !== "" || (orgId !== null && orgId !== left.orgId)) return
  go(left.hash.slice(1), {}, { replace: true })
}

/** What a provider's page has brought back, in words. @type {Record<string, string>} */
const REFUSALS = {
  "auth.login_state_invalid": "That login has expired, was completed before, or belongs to another tab or browser. Try again.",
  "auth.link_required":
    "An account of your organization has your address, and what it gives access to may be somebody else's. If it is yours, sign in with the password, and link your identity provider under Log-ins. If it is not, ask an owner of your organization.",
  "auth.link_refused": "Your identity provider knows you by another address than this account has, or as another user. Nothing has changed.",
  "auth.login_refused": "Your identity provider, or your organization, does not let you in.",
  "identity_providers.client_refused":
    "Your identity provider refuses this service. An owner of your organization must check the client id and secret.",
  "identity_providers.secret_unreadable":
    "This service cannot read the secret that it shares with your identity provider. Ask its operator.",
  "identity_providers.unavailable": "Your identity provider does not respond. Try again later.",
}

/** For people who are signed in to another of their organizations, where its provider cannot be linked. */
const CHANGE_FIRST =
  "Your account in that organization may be somebody else's. If it is yours, change to that organization with your password first, and link its identity provider under Log-ins there."

/** The org whose provider is to be linked to an account first: its owner signs in there. @type {string | null} */
let orgToLink = null
export const linkedFirst = () => orgToLink
export const forgetLink = () => (orgToLink = null)

/**
 * Return why a login at a provider has failed, once, if this page was opened by one; else "".
 * @param {string | null} orgId that of the person who is signed in
 */
export function takeRefusal(orgId) {
  const code = new URLSearchParams(location.search).get("error")
  if (code === null) return ""
  history.replaceState(null, "", location.pathname + location.hash)
  // The sign-in page has the address of the page that was left, as before: the next attempt leads there.
  comeBack(orgId)
  if (code === "auth.link_required") {
    orgToLink = lastOrg()
    if (orgId !== null && orgId !== orgToLink) return CHANGE_FIRST
  }
  return REFUSALS[code] ?? "The login has failed. Try again."
}
