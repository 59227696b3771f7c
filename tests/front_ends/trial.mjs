// Pages of the AI SDK that lose their connection again and again.
//
// node trial.mjs <node_modules>
//
// A line of the standard input is a trial, {number, url, direct, token, chat, ai, version,
// transport, text}: a page at `url` sends the text, and resumes or reloads whenever its connection
// is cut. A line of the output is its result: {number, faults, resumes, reloads}. The answer must be
// the one of a page at `direct`, which is not cut.
import { createInterface } from "node:readline";
import { pathToFileURL } from "node:url";

import { isEnded, seen, workflowTransport } from "./guide.mjs";

const modules = process.argv[2];
const load = (path) => import(pathToFileURL(`${modules}/${path}`).href);
const packages = {
  ai6: await load("ai6/dist/index.mjs"),
  ai7: await load("ai7/dist/index.js"),
};
const { WorkflowChatTransport } = await load("@ai-sdk/workflow/dist/client.js");
const SECONDS = 240;
console.error = () => {};
console.warn = () => {};

class State {
  status = "ready";
  error = undefined;
  messages = [];
  pushMessage = (message) => void this.messages.push(message);
  popMessage = () => void this.messages.pop();
  replaceMessage = (index, message) => void (this.messages[index] = message);
  snapshot = (thing) => structuredClone(thing);
}

function open(trial, url, { isUndisturbed } = {}) {
  const ai = packages[trial.ai];
  const headers = { authorization: `Bearer ${trial.token}`, "X-AI-SDK-Version": trial.version };
  const api = `${url}/v1/ui/chat`;
  const transport =
    trial.transport === "workflow" && !isUndisturbed
      ? workflowTransport(WorkflowChatTransport, { url: api, version: `?ai_sdk=${trial.version}`, headers })
      : new ai.DefaultChatTransport({
          api,
          headers,
          prepareReconnectToStreamRequest: ({ id }) => ({
            api: `${api}/${id}/stream?seen=${seen(page.messages)}`,
            headers,
          }),
        });
  class Chat extends ai.AbstractChat {}
  const page = new Chat({ id: trial.chat, state: new State(), transport });
  return page;
}

const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
const isDone = ({ messages, status }) =>
  status === "ready" && isEnded(messages.at(-1));

// The message without the order of its fields, and without ids of parts, which `ai` 6 does not keep.
const plain = (value) =>
  JSON.stringify(value, (key, one) =>
    one === null || typeof one !== "object" || Array.isArray(one)
      ? one
      : Object.fromEntries(
          Object.entries(one)
            .filter(([name]) => name !== "id" || one.type !== "reasoning")
            .sort(([a], [b]) => (a < b ? -1 : 1)),
        ),
  );

async function stored(trial, url) {
  const headers = { authorization: `Bearer ${trial.token}` };
  const response = await fetch(`${url}/v1/ui/chat/${trial.chat}/messages`, { headers });
  if (!response.ok) throw new Error(await response.text());
  return response.json();
}

// Returns a page that was sent the whole answer at once, and the stored messages. Its server may
// be killed, too: then it tries again.
async function undisturbed(trial, message) {
  for (;;) {
    const page = open(trial, trial.direct, { isUndisturbed: true });
    page.messages = [message];
    await page.resumeStream();
    if (isDone(page)) {
      try {
        return [page, await stored(trial, trial.direct)];
      } catch {
        // The server is down.
      }
    }
    await pause(200);
  }
}

async function play(trial) {
  const message = { id: `message-${trial.number}`, role: "user", parts: [{ type: "text", text: trial.text }] };
  const result = { number: trial.number, faults: [], resumes: 0, reloads: 0 };
  const deadline = Date.now() + SECONDS * 1000;
  let page = open(trial, trial.url);
  await page.sendMessage(message);
  while (!isDone(page) && Date.now() < deadline) {
    const hasBegun = page.messages.at(-1)?.role === "assistant";
    if (page.status === "error" && hasBegun) {
      result.resumes += 1;
      await page.resumeStream();
      if (page.status !== "error" && !isDone(page)) result.faults.push("a part of the answer was resumed");
      if (page.status === "error" || isDone(page)) continue;
    }
    // The page has nothing to resume: reload.
    result.reloads += 1;
    await pause(50);
    try {
      const messages = await stored(trial, trial.url);
      page = open(trial, trial.url);
      page.messages = messages;
      if (!messages.length) await page.sendMessage(message);
      else if (!isDone(page)) await page.resumeStream();
    } catch {
      continue;
    }
  }
  const [whole, kept] = await undisturbed(trial, message);
  const [got, replayed, loaded] = [page, whole, { messages: kept }].map(({ messages }) => plain(messages.at(-1)));
  if (!isDone(page)) result.faults.push(`not done: ${page.status} ${page.error}`);
  // A client without `reset-step` keeps void text until its page is loaded again.
  if (got !== replayed && (trial.ai !== "ai6" || got !== loaded)) {
    result.faults.push(`differs: ${got} is not ${replayed}`);
  }
  if (trial.ai === "ai7" && replayed !== loaded) result.faults.push(`${replayed} is not ${loaded}`);
  const roles = kept.map(({ role }) => role).join();
  if (roles !== "user,assistant") result.faults.push(`the thread has ${roles}`);
  if (page.messages.length !== 2) result.faults.push(`the page has ${page.messages.length} messages`);
  return result;
}

const running = new Set();
for await (const line of createInterface({ input: process.stdin })) {
  const trial = JSON.parse(line);
  const one = play(trial)
    .catch((error) => ({ number: trial.number, faults: [String(error?.stack ?? error)], resumes: 0, reloads: 0 }))
    .then((result) => console.log(JSON.stringify(result)));
  running.add(one);
  one.then(() => running.delete(one));
}
await Promise.all(running);
