// A client of AG-UI: commands as JSON lines on stdin, their results as JSON lines on stdout.
import { createInterface } from "node:readline"
import { pathToFileURL } from "node:url"

const client = pathToFileURL(`${process.argv[2]}/@ag-ui/client/dist/index.mjs`)
const { HttpAgent, runHttpRequest, transformHttpEventStream } = await import(client)

// HttpAgent reports a broken connection to its caller, and once more to nobody.
process.on("unhandledRejection", () => {})

// HttpAgent leaves `connect` to its users.
class ConnectingAgent extends HttpAgent {
  connect(input) {
    return transformHttpEventStream(runHttpRequest(() => this.fetch(`${this.connectUrl}`, this.requestInit(input))))
  }
}

const agents = new Map()

async function perform({ op, agent: name, ...how }) {
  if (op === "new") {
    const agent = new ConnectingAgent({ url: how.url, threadId: how.threadId, headers: how.headers })
    agent.connectUrl = how.connectUrl
    agents.set(name, agent)
    return {}
  }
  const agent = agents.get(name)
  if (op === "url") {
    Object.assign(agent, how)
    return {}
  }
  for (const message of how.messages ?? []) agent.addMessage(message)
  const events = []
  const seen = { onEvent: ({ event }) => void events.push(event) }
  const { runId, tools, context, resume } = how
  const call = op === "connect" ? agent.connectAgent.bind(agent) : agent.runAgent.bind(agent)
  let error = null
  try {
    await call({ runId, tools, context, resume }, seen)
  } catch (caught) {
    error = String(caught.message ?? caught)
  }
  return { events, error, messages: agent.messages, interrupts: agent.pendingInterrupts }
}

for await (const line of createInterface({ input: process.stdin })) {
  const result = await perform(JSON.parse(line))
  process.stdout.write(`${JSON.stringify(result)}\n`)
}
