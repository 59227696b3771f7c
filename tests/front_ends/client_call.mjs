// A call of @arkloop/client over a `fetch` that plays responses, and what became of it, as one line.
import { Arkloop } from "../../clients/typescript/src/index.ts"

const given = JSON.parse(process.argv[2])
const { call, url = "http://service", token = "token", responses } = given
const { patience = 5_000, firstPause = 10, clockStep = 0, silenceMs = 30_000 } = given
const later = globalThis.setTimeout
globalThis.setTimeout = (call, ms, ...more) => later(call, ms === 30_000 ? silenceMs : ms, ...more)
const now = Date.now
let attempts = 0
const keys = []
const tokens = []
// As the `fetch` of browsers, it is no method of the client.
async function played(address, options) {
  attempts += 1
  if (this !== undefined) throw new TypeError("Illegal invocation")
  tokens.push(options.headers.Authorization)
  keys.push(options.headers["Idempotency-Key"])
  if (responses === undefined) return fetch(address, options)
  const { status, headers, body = "{}" } = responses[Math.min(attempts, responses.length) - 1]
  Date.now = () => now() + clockStep
  return new Response(body, { status, headers })
}
let arkloop = null
const controller = new AbortController()
const seen = []
const follow = async (abortAt) => {
  for await (const event of arkloop.follow("run", { signal: controller.signal })) {
    seen.push(event.seq)
    if (event.seq === abortAt) controller.abort("aborted")
  }
}
const cyclic = {}
cyclic.metadata = cyclic
const calls = {
  get: () => arkloop.getRun("run"),
  create: () => arkloop.create({ message: "Hello" }),
  follow: () => follow(),
  cyclic: () => arkloop.create(cyclic),
  key: () => arkloop.create({}, "ключ"),
  abortAtFirst: () => follow(1),
  abortSoon: () => {
    setTimeout(() => controller.abort("aborted"), 100)
    return follow()
  },
}
let error = null
const begun = performance.now()
try {
  arkloop = new Arkloop(url, token, { patience, firstPause, fetch: played })
  await calls[call]()
} catch (thrown) {
  error = thrown
}
const { name, code, message, details, retryAfter, traceId } = error ?? {}
const thrown = error === null ? null : { name, code, message, details, retryAfter, traceId, reason: String(error) }
console.log(JSON.stringify({ attempts, keys, tokens, ms: performance.now() - begun, seen, thrown }))
