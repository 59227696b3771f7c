// Follows a run with an SSE client that others wrote, and prints the seq of each event that it is
// given: node follow.mjs <modules> <client> <url> <token>
import { createRequire } from "node:module"

const [modules, client, url, token] = process.argv.slice(2)
const require = createRequire(modules + "/")
const headers = { Authorization: `Bearer ${token}` }

function take(text) {
  const event = JSON.parse(text)
  console.log(event.seq)
  return ["run.completed", "run.failed", "run.cancelled"].includes(event.type)
}

if (client === "fetch-event-source") {
  globalThis.window = globalThis
  globalThis.document = { hidden: false, addEventListener() {}, removeEventListener() {} }
  const { fetchEventSource } = require("@microsoft/fetch-event-source")
  await fetchEventSource(url, {
    headers,
    openWhenHidden: true,
    onmessage: ({ data }) => take(data) && process.exit(0),
  })
  process.exit(3) // it took the end of the stream for the end of the run
} else {
  const { EventSource } = require("eventsource")
  const source = new EventSource(url, {
    fetch: (input, init) => fetch(input, { ...init, headers: { ...init.headers, ...headers } }),
  })
  source.onmessage = ({ data }) => take(data) && process.exit(0)
  source.onerror = () => source.readyState === source.CLOSED && process.exit(3)
}
