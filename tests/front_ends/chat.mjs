// A chat of the AI SDK without React: the package's own AbstractChat and transports.
//
// node chat.mjs <node_modules> '{"ai": "ai7", "url", "token", "chat", "transport"?, "version"?, "body"?, "automatic"?, "steers"?, "direct"?, "patience"?, "delay"?, "tools"?, "eager"?, "eagerDelay"?}'
//
// With `tools`, their outputs or errors by name, calls are executed as the guide says; with `eager`, outputs by name, as assistant-ui does it,
// after `eagerDelay` milliseconds.
// With `direct`, messages are loaded from there; messages are on their way for `delay` milliseconds. One that `steers` resumes as the guide says.
// Each line of the standard input is a command, {"do": …}; each line of the output says how the chat is after it:
// {messages, status, error, finished, posts, executions}.
import { createInterface } from "node:readline";
import { pathToFileURL } from "node:url";

import { answerResumer, automatic, executorOf, impatientFetch, recoverBy, seen, stopBy, workflowTransport } from "./guide.mjs";

const [modules, setup] = process.argv.slice(2);
const given = JSON.parse(setup);
const load = (path) => import(pathToFileURL(`${modules}/${path}`).href);
const packageOf = (version) => `${version}/dist/index.${version.startsWith("ai7") ? "js" : "mjs"}`;
const ai = await load(packageOf(given.ai));
const headers = { authorization: `Bearer ${given.token}` };
const query = given.version ? `?ai_sdk=${given.version}` : "";
const api = `${given.url}/v1/ui/chat`;
const log = [];
console.error = (...words) => log.push(words.join(" "));

function defaultTransport() {
  const fetch = impatientFetch(given.patience);
  return new ai.DefaultChatTransport({
    api: api + query,
    headers,
    body: given.body,
    // As in the guide.
    prepareSendMessagesRequest: ({ id, messages, trigger, messageId, body }) => ({
      body: { ...body, id, messages: messages.slice(-1), trigger, messageId },
    }),
    fetch: async (url, options) => {
      if (options?.method === "POST") {
        posts += 1;
        await new Promise((resolve) => setTimeout(resolve, given.delay ?? 0));
      }
      return fetch(url, options);
    },
    prepareReconnectToStreamRequest: ({ id }) => ({
      api: `${api}/${encodeURIComponent(id)}/stream${query || "?"}&seen=${seen(chat.messages)}`,
      headers,
    }),
  });
}

async function transportOfWorkflow() {
  const { WorkflowChatTransport } = await load("@ai-sdk/workflow/dist/client.js");
  return workflowTransport(WorkflowChatTransport, { url: api, version: query, headers });
}

class State {
  #status = "ready";
  get status() {
    return this.#status;
  }
  set status(status) {
    this.#status = status;
    setTimeout(rendered);
  }
  error = undefined;
  messages = [];
  pushMessage = (message) => void this.messages.push(message);
  popMessage = () => void this.messages.pop();
  replaceMessage = (index, message) => executeShown((this.messages[index] = message));
  snapshot = (thing) => structuredClone(thing);
}

class Chat extends ai.AbstractChat {}

const sendAutomaticallyWhen = given.automatic
  ? automatic(ai.lastAssistantMessageIsCompleteWithToolCalls)
  : undefined;

let posts = 0;
let executions = 0;
const finished = [];
const toolCalls = [];
const data = [];
const tools = Object.entries(given.tools ?? {}).map(([name, { output, error }]) => [
  name,
  async () => {
    executions += 1;
    if (error) throw error;
    return output;
  },
]);
const { execute, mount } = executorOf(Object.fromEntries(tools));
const chat = new Chat({
  id: given.chat,
  state: new State(),
  transport: given.transport === "workflow" ? await transportOfWorkflow() : defaultTransport(),
  sendAutomaticallyWhen,
  onToolCall: ({ toolCall }) => {
    toolCalls.push(toolCall);
    void execute(toolCall, chat.addToolOutput);
  },
  onData: (part) => void data.push(part.type),
  onFinish: ({ message, ...how }) => void finished.push({ id: message.id, ...how, messages: undefined }),
});

// Executes calls once they have their inputs, whosever they are.
const executed = new Set();
function executeShown({ parts }) {
  for (const { type, state, toolCallId } of parts) {
    const output = given.eager?.[type.replace("tool-", "")];
    if (!output || state !== "input-available" || executed.has(toolCallId)) continue;
    executed.add(toolCallId);
    setTimeout(() => void chat.addToolOutput({ toolCallId, output }), given.eagerDelay);
  }
}

// The guide's effect: executed when the page is there, and after each rendering with another status.
const resumeAnswer = given.steers ? answerResumer() : () => {};
let shownStatus;
function rendered() {
  if (shownStatus === chat.status) return;
  shownStatus = chat.status;
  resumeAnswer(chat);
}

const settled = async () => {
  do await new Promise((resolve) => setTimeout(resolve, 20));
  while (chat.status === "submitted" || chat.status === "streaming");
};

// The guide's WorkflowChatTransport has no fields of its own.
const options = given.transport === "workflow" ? { body: given.body } : {};
const commands = {
  send: ({ text, parts, files, id }) =>
    chat.sendMessage(parts ? { role: "user", parts, id } : { text, files, id }, options),
  // Does not wait for the answer.
  begin: ({ text }) => void chat.sendMessage({ text }, options).catch(() => {}),
  until: async ({ text }) => {
    const said = ({ role, parts } = {}) => (role === "assistant" ? JSON.stringify(parts) : "");
    while (!said(chat.messages.at(-1)).includes(text)) {
      await new Promise((resolve) => setTimeout(resolve, 5));
    }
  },
  settle: settled,
  regenerate: ({ messageId }) => chat.regenerate({ messageId }),
  resume: () => chat.resumeStream(),
  // Does not wait for the answer, either.
  resuming: () => void chat.resumeStream().catch(() => {}),
  recover: async () => {
    const { messages, sendMessage, resumeStream } = chat;
    await recoverBy({ url: api, id: given.chat, headers, messages, sendMessage, resumeStream })();
  },
  stop: () => chat.stop(),
  stopRun: async () => {
    const { stopRun, show } = stopBy({ url: api, id: given.chat, headers, stop: () => chat.stop() });
    show(chat.status);
    const timer = setInterval(() => show(chat.status), 5);
    await stopRun();
    clearInterval(timer);
  },
  approve: (answer) => chat.addToolApprovalResponse(answer),
  output: (answer) => chat.addToolOutput(answer),
  // As React does it, which executes effects twice in development.
  mount: async ({ strictly }) => {
    const useEffect = (effect) => {
      if (strictly) effect()?.();
      effect();
    };
    const resumed = [];
    const resumeStream = () => resumed[resumed.push(chat.resumeStream()) - 1];
    mount(given.chat, () => Object.assign(Object.create(chat), { resumeStream }), useEffect);
    await Promise.all(resumed);
    await settled();
  },
  submit: () => chat.sendMessage(),
  // Does not wait for the answer either.
  submitting: () => void chat.sendMessage().catch(() => {}),
  load: async () => {
    const path = `/v1/ui/chat/${encodeURIComponent(given.chat)}/messages`;
    const response = await fetch((given.direct ?? given.url) + path, { headers });
    chat.messages = await response.json();
    rendered();
  },
  validate: async ({ versions, chunks }) => {
    for (const version of versions) await validate(version, chunks);
  },
  // Throws if a version does not accept the messages.
  valid: async ({ versions }) => {
    for (const version of versions) {
      const { validateUIMessages } = await load(packageOf(version));
      await validateUIMessages({ messages: chat.messages });
    }
  },
  state: () => {},
};

// Reads the chunks by the client's own parser and schema; throws at the first that does not fit.
async function validate(version, chunks) {
  const { DefaultChatTransport } = await load(packageOf(version));
  const body = chunks.map((chunk) => `data: ${JSON.stringify(chunk)}\n\n`).join("");
  const transport = new DefaultChatTransport({ fetch: async () => new Response(body) });
  const stream = await transport.sendMessages({ chatId: "1", messages: [], trigger: "submit-message" });
  let count = 0;
  for await (const _ of stream) count += 1;
  if (count !== chunks.length) throw new Error(`${version}: ${count} of ${chunks.length} chunks`);
}

for await (const line of createInterface({ input: process.stdin })) {
  const command = JSON.parse(line);
  let failure;
  try {
    await commands[command.do](command);
    if (given.automatic && command.do !== "begin") await settled();
  } catch (error) {
    failure = String(error);
  }
  const { messages, status, error } = chat;
  console.log(JSON.stringify({ messages, status, error: failure ?? error?.message, finished, toolCalls, data, posts, executions, log }));
}
