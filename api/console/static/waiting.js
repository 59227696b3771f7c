// The number of runs that wait for a person, for the navigation.
import { page } from "./lib/api.js"
import { may, state } from "./lib/session.js"
import { store } from "./lib/store.js"

const SECONDS = 15

export const waitingCount = store(0)

/** Count them now. */
export async function countWaiting() {
  if (state.get() !== "in" || !may("data.runs.read")) return
  try {
    const { rows } = await page("runs", { status: "waiting_for_input", limit: 50 })
    waitingCount.set(rows.length)
  } catch {
    // The next count comes soon.
  }
}

const countIfSeen = () => document.visibilityState === "visible" && void countWaiting()
setInterval(countIfSeen, SECONDS * 1000)
document.addEventListener("visibilitychange", countIfSeen)
state.subscribe(countIfSeen)
