// A client of AG-UI: commands as JSON lines on stdin, their results as JSON lines on stdout.
import { createInterface } from "node:readline"
import { pathToFileURL } from "node:url"

import { agentClass, impatientAguiFetch, sendBy } from "./guide.mjs"

const clientOf = (name) => import(pathToFileURL(`${process.argv[2]}/${name}/dist/index.mjs`))

// HttpAgent reports a broken connection to its caller, and once more to nobody.
process.on("unhandledRejection", () => {})

const agents = new Map()

async function perform({ op, agent: name, ...how }) {
  if (op === "new") {
    const Agent = agentClass(await clientOf(how.client))
    const { url, threadId, headers } = how
    agents.set(name, new Agent({ url, threadId, headers, fetch: impatientAguiFetch(how.patience) }))
    return {}
  }
  const agent = agents.get(name)
  if (op !== "send") for (const message of how.messages ?? []) agent.addMessage(message)
  const events = []
  const { runId, tools, context, resume, abortAt, abortAtNumber = 1 } = how
  const onEvent = ({ event }) => {
    events.push(event)
    if (event.type === abortAt && events.filter(({ type }) => type === abortAt).length === abortAtNumber) agent.abortRun()
  }
  const calls = {
    run: () => agent.runAgent({ runId, tools, context, resume }),
    connect: () => agent.connectAgent(),
    send: () => sendBy(agent, tools, context)(how.messages[0]),
  }
  const seen = agent.subscribe({ onEvent })
  let error = null
  try {
    await calls[op]()
  } catch (caught) {
    error = String(caught.message ?? caught)
  }
  seen.unsubscribe()
  return { events, error, messages: agent.messages, interrupts: agent.pendingInterrupts }
}

for await (const line of createInterface({ input: process.stdin })) {
  const result = await perform(JSON.parse(line))
  process.stdout.write(`${JSON.stringify(result)}\n`)
}
