// A program with @arkloop/client: it creates a run, follows it and says what it saw, as one line.
import { Arkloop, ArkloopError, StreamedText } from "../../clients/typescript/src/index.ts"

const { url, token, body, threadId, patience, holdMs = 0, silenceMs = 30_000 } = JSON.parse(process.argv[2])
const later = globalThis.setTimeout
globalThis.setTimeout = (call, ms, ...given) => later(call, ms === 30_000 ? silenceMs : ms, ...given)
let streams = 0
const counted = (address, options) => {
  if (address.endsWith("/events")) streams += 1
  return fetch(address, options)
}
const arkloop = new Arkloop(url, token, { firstPause: 10, patience, fetch: counted })
const thread = threadId ?? (await arkloop.createThread({ title: "node" })).id
const { run_id: runId } = await arkloop.create({ ...body, thread_id: thread })
const text = new StreamedText()
const seen = []
let streamed = ""
for await (const event of arkloop.follow(runId)) {
  text.add(event)
  if (event.type === "message.delta") streamed = String(text)
  seen.push(event)
  if (seen.length === 1) process.stderr.write("begun\n")
  if (event.type !== "run.waiting_for_input") continue
  process.stderr.write("waiting\n")
  await new Promise((resolve) => later(resolve, holdMs))
  const { kind, request_id: requestId, calls } = event.data
  if (kind === "question") await arkloop.answer(runId, "Rome", requestId)
  else if (kind === "tool_confirmation") {
    await arkloop.approve(runId, requestId, { decision: "edit", arguments: { expression: "6*9" } })
  } else {
    await arkloop.sendToolResults(
      runId,
      calls.map((call) => ({ tool_call_id: call.tool_call_id, output: { city: "Rome" } })),
    )
  }
}
const opened = streams
const rest = []
for await (const event of arkloop.follow(runId, { afterSeq: seen.length })) rest.push(event)
await arkloop.cancel(runId)
const refused = await arkloop.getRun(thread).catch((error) => error)
const code = refused instanceof ArkloopError ? refused.code : null
const run = await arkloop.getRun(runId)
const texts = { text: String(text), streamed, output: run.output }
console.log(JSON.stringify({ runId, thread, seen, rest, ...texts, code, opened }))
