// The number of runs that wait for a reply of this person, for the navigation.
import { page } from "./lib/api.js"
import { order } from "./lib/order.js"
import { may, mayWrite, state } from "./lib/session.js"
import { store } from "./lib/store.js"

const SECONDS = 15

export const waitingCount = store(0)
const begin = order()

/** Count them now. */
export async function countWaiting() {
  if (state.get() !== "in" || !may("data.runs.read")) return
  if (!may("data.runs.write")) return waitingCount.set(0)
  const isInTime = begin()
  try {
    // Those of others, which do not count, may be newer.
    const { rows } = await page("runs", { status: "waiting_for_input", limit: may("admin") ? 50 : 200 })
    if (isInTime()) waitingCount.set(rows.filter((row) => mayWrite(row.created_by_user_id)).length)
  } catch {
    // The next count comes soon.
  }
}

const countIfSeen = () => document.visibilityState === "visible" && void countWaiting()
setInterval(countIfSeen, SECONDS * 1000)
document.addEventListener("visibilitychange", countIfSeen)
state.subscribe(countIfSeen)
