// Numbers, times and names as people read them.
import { now } from "./clock.js"

const number = new Intl.NumberFormat("en")
const compact = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 })
const dateTime = new Intl.DateTimeFormat("en-GB", { dateStyle: "medium", timeStyle: "short" })
const timeOnly = new Intl.DateTimeFormat("en-GB", { timeStyle: "short" })
const dayMonth = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short" })
const exact = new Intl.DateTimeFormat("en-GB", { dateStyle: "medium", timeStyle: "long" })

/** @param {number | null | undefined} value */
export const count = (value) => (value == null ? "–" : number.format(value))
/** @param {number | null | undefined} value */
export const short = (value) => (value == null ? "–" : compact.format(value))

/** Show USD with as many decimals as it needs. @param {number | null | undefined} usd */
export function money(usd) {
  if (usd == null) return "–"
  if (usd === 0) return "$0"
  if (usd >= 1) return `$${usd.toLocaleString("en", { minimumFractionDigits: 2, maximumFractionDigits: 2 })}`
  // Tenths of a cent only where there are some.
  if (usd >= 0.01) return `$${usd.toFixed(3).replace(/0$/, "")}`
  return `$${usd.toFixed(8).replace(/0+$/, "")}`
}

/** @param {number | null | undefined} ms */
export function duration(ms) {
  if (ms == null) return "–"
  if (ms < 999.5) return `${Math.round(ms)} ms`
  if (ms < 59_500) return `${(ms / 1_000).toFixed(ms < 9_950 ? 1 : 0)} s`
  // Rounded before it is divided: else there are 60 seconds left of a minute.
  const seconds = Math.round(ms / 1_000)
  if (seconds < 3_600) return `${Math.floor(seconds / 60)} min ${seconds % 60} s`
  const minutes = Math.round(ms / 60_000)
  if (minutes < 2_880) return `${Math.floor(minutes / 60)} h ${minutes % 60} min`
  return `${Math.round(ms / 86_400_000)} days`
}

/** Show a time by how long ago it was, or how soon it comes, else by its date. @param {string | null | undefined} text */
export function when(text) {
  if (!text) return "–"
  const then = new Date(text)
  const ago = now() - then.getTime()
  if (ago < -3_600_000) return dateTime.format(then)
  const minutes = Math.round(-ago / 60_000)
  if (ago < -59_000) return minutes < 60 ? `in ${minutes} min` : "in 1 h"
  if (ago < 0) return `in ${Math.ceil(-ago / 1_000)} s`
  if (ago < 60_000) return "just now"
  if (ago < 3_600_000) return `${Math.floor(ago / 60_000)} min ago`
  if (new Date(now()).toDateString() === then.toDateString()) return timeOnly.format(then)
  if (ago < 300 * 86_400_000) return `${dayMonth.format(then)}, ${timeOnly.format(then)}`
  return dateTime.format(then)
}

/** @param {string | null | undefined} text */
export const exactly = (text) => (text ? exact.format(new Date(text)) : "")

/** The first characters of an id, enough to tell those of a page apart. @param {string} id */
export const brief = (id) => `…${id.slice(-8)}`

/** @param {string} word */
export const words = (word) => word.replaceAll("_", " ").replaceAll(".", ": ")

/**
 * The word for what a run does: its phase, or how it ended or that it waits for input, which its status says. During a
 * deployment, rows of the earlier release have no phase.
 * @param {{status: string, phase?: string, queue?: object | null}} run
 */
export function stateOf({ status, phase, queue }) {
  if (phase === undefined) return queue ? "queued" : status
  return phase === "finished" || (phase === "waiting" && status === "waiting_for_input") ? status : phase
}

/** Invisible controls that turn text around: shown as a sign, so that no name or command pretends to be
 * another. */
const DIRECTION = /[\u202A-\u202E\u2066-\u2069\u200E\u200F\u061C]/g
/** @param {string} text */
export const plain = (text) => text.replace(DIRECTION, "\uFFFD")

/** @param {unknown} value */
export const json = (value) => (typeof value === "string" ? value : JSON.stringify(value, null, 2))

/**
 * Return the text of a message, and what else it has.
 * @param {string | {type: string, text?: string, file_id?: string, url?: string}[]} content
 */
export function parts(content) {
  return typeof content === "string" ? [{ type: "text", text: content }] : content
}
