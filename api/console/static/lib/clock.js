// The service's clock, by which times are shown: a browser's may be minutes slow or fast.

/** How much the service's clock is ahead of this one, in milliseconds. */
let ahead = 0

/** Return the time by the service's clock, in milliseconds since 1970. */
export const now = () => Date.now() + ahead

/** Compare the clocks by a response. @param {Response} response @param {number} sent when its request was sent, by this clock */
export function compare({ headers }, sent) {
  const date = Date.parse(headers.get("Date") ?? "")
  // The header has whole seconds. A clock that agrees with it stays as it is.
  const most = date + 1_000 - sent
  if (ahead > most) ahead = most
  // A request may take minutes, its response does not.
  else if (ahead < date - Date.now()) ahead = Math.min(most, date + 1_000 - Date.now())
}
