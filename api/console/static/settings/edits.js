// What a form has changed, which is all that is sent: others may have changed the rest since the page was loaded.
import { change, patch } from "../lib/api.js"
import { plain } from "../lib/format.js"
import { FieldError } from "./fields.js"

/** @typedef {Record<string, any>} Fields */

/** Return those fields that differ from what the form began with. @param {Fields} fields @param {Fields} before @returns {Fields} */
export const changed = (fields, before) =>
  Object.fromEntries(Object.entries(fields).filter(([name, value]) => JSON.stringify(value) !== JSON.stringify(before[name])))

/** Read something as it is now, before a change of it; this is sent again as the change is. @param {string} path @param {import("../lib/api.js").Sending} sending */
export const current = (path, sending) => change("GET", path, undefined, sending)

/**
 * Save what a form has changed; what is left out is kept.
 *
 * A secret goes to no address that the person has not seen: it is refused if somebody else has changed one of the fields `to`,
 * which say where it goes, and is sent along with them, for the case that this happens now.
 * @param {string} path
 * @param {{fields: Fields, before: Fields, secret?: Fields, to?: string[]}} form
 * @param {import("../lib/api.js").Sending} sending
 */
export async function save(path, { fields, before, secret = {}, to = [] }, sending) {
  const changes = changed(fields, before)
  if (Object.keys(secret).length > 0) {
    const now = await current(path, sending)
    for (const name of to) {
      if (!Object.hasOwn(changes, name) && (now[name] ?? null) !== (before[name] ?? null)) {
        throw new FieldError(name, `was changed to ${plain(String(now[name] ?? "none"))} since this page was loaded, and nothing is saved. Reload the page, and see whether the secret may go there.`)
      }
      changes[name] = fields[name]
    }
  }
  if (Object.keys({ ...changes, ...secret }).length > 0) await patch(path, { ...changes, ...secret }, sending)
}
