// Limits that are reached, in words for people: the messages of the service are for programs.
import { count } from "./format.js"

/** Whose a limit is. @type {Record<string, string>} */
const OWNERS = { org: "The organization's", key: "The API key's" }

/** Return which limit on requests or streams an error names; "" if none. @param {{code?: string, details?: any}} error */
export function reached({ code, details }) {
  const whose = OWNERS[details?.limit ?? details?.scope]
  if (!whose) return ""
  if (code === "rate_limit.exceeded" && details.per_minute) return `${whose} limit of ${count(details.per_minute)} requests per minute is reached.`
  if (code === "streams.limit_exceeded") return `${whose} limit of ${count(details.most)} open ${details.most === 1 ? "stream" : "streams"} is reached.`
  return ""
}
