// Refusals of a log-in, as errors and in words for people.
import { reached } from "./reached.js"

/** Nobody is signed in: the page asks people to sign in again. */
export class SignedOut extends Error {}

/** The code of errors while the organization is suspended. */
export const SUSPENDED = "org.suspended"

/** What to say, after the reason, where the response to a new password is lost. */
export const PASSWORD_UNSURE = "The password may have been changed: try to sign in with the new one."

/** The organization is suspended: the log-in, or the key, is good again once it is resumed. */
export class Suspended extends Error {}

/** The service has refused a request, and says why. */
export class Refused extends Error {
  /** @param {any} error @param {Response} response */
  constructor(error, response) {
    super(said(error, response))
    this.retryAfter = Number(response.headers.get("Retry-After")) || 0
  }
}

/** Throw `Suspended` if that is why a request was refused. @param {Response} response */
export async function checkOrg(response) {
  const found = await response.json().catch(() => ({}))
  if (found.code === SUSPENDED) throw new Suspended(reason(found, response))
}

/** Return the error to throw for a response: one without a message is of a proxy that has lost the service. @param {Response} response */
export async function failure(response) {
  const found = await response.json().catch(() => null)
  return found?.message ? new Refused(found, response) : new TypeError(`HTTP ${response.status}`)
}

/**
 * Return what is wrong, by field; "" is all of it.
 * @param {{message?: string, details?: Record<string, any>}} error
 * @param {Response} response
 * @returns {Record<string, string>}
 */
export function reasons(error, response) {
  const details = response.status === 422 ? Object.entries(error.details ?? {}) : []
  if (details.length === 0) return { "": reason(/** @type {any} */ (error), response) }
  return Object.fromEntries(details.map(([name, why]) => [name, [why].flat().join("; ")]))
}

/** Return what is wrong, and when to try again. @param {{message?: string, details?: Record<string, string[]>}} error @param {Response} response */
export function reason(error, response) {
  const retry = response.headers.get("Retry-After")
  return `${said(error, response)}${retry ? ` Try again in ${retry} s.` : ""}`
}

/** @param {{code?: string, message?: string, details?: Record<string, string[]>}} error @param {Response} response */
function said(error, response) {
  const fields = Object.values(error.details ?? {}).flat().filter((why) => typeof why === "string")
  if (response.status === 422 && fields.length > 0) return fields.join("; ")
  return reached(error) || (error.message ?? response.statusText)
}
