// The code of docs/how-to/ai-sdk.md and ag-ui.md, as pages copy it.
import { readFileSync } from "node:fs";

// Returns a function that returns the one block of the guide that has a text.
function blocksOf(guide, language) {
  const text = readFileSync(new URL(`../../docs/how-to/${guide}`, import.meta.url), "utf8");
  const blocks = [...text.matchAll(new RegExp(`\`\`\`${language}\\n(.*?)\\n\`\`\``, "gs"))].map(([, code]) => code);
  return (sign) => {
    const [code, ...others] = blocks.filter((block) => block.includes(sign));
    if (!code || others.length) throw new Error(`${others.length + !!code} blocks of the guide have: ${sign}`);
    return code;
  };
}

const blockWith = blocksOf("ai-sdk.md", "tsx");
const aguiBlockWith = blocksOf("ag-ui.md", "js");

const ofReload = new Function(`${blockWith("function seen(")}; return { isEnded, isOpen, seen };`)();
export const { isEnded, seen } = ofReload;

// Returns the guide's `sendAutomaticallyWhen`, which names a function of the package.
export function automatic(lastAssistantMessageIsCompleteWithToolCalls) {
  const names = { ...ofReload, lastAssistantMessageIsCompleteWithToolCalls };
  const code = `return { ${blockWith("sendAutomaticallyWhen: (")} }.sendAutomaticallyWhen;`;
  return new Function(...Object.keys(names), code)(...Object.values(names));
}

// Returns the guide's WorkflowChatTransport, with more patience; `url` is that of chats.
export function workflowTransport(WorkflowChatTransport, { url, version, headers }) {
  const code = `${blockWith("new WorkflowChatTransport")}; return transport;`;
  const make = new Function("WorkflowChatTransport", "url", "version", "headers", code);
  return Object.assign(make(WorkflowChatTransport, url, version, headers), { maxConsecutiveErrors: 1000 });
}

// Returns a guide's `fetch` for connections that fall silent, with less patience if that is given in milliseconds.
function fetchOf(code, patience = 30_000) {
  return new Function(`${code.replace("30_000", patience)}; return impatientFetch;`)();
}

export const impatientFetch = (patience) => fetchOf(blockWith("function impatientFetch("), patience);
export const impatientAguiFetch = (patience) => fetchOf(aguiBlockWith("function impatientFetch("), patience);

// Returns the guide's `recover`, whose names are those of a chat.
export function recoverBy(names) {
  return new Function(...Object.keys(names), `${blockWith("function recover(")}; return recover;`)(...Object.values(names));
}

// Returns the guide's `stopRun`, and a function for what the page does with each status.
export function stopBy(names) {
  const code = `${blockWith("function stopRun(")}; return { stopRun, show: (status) => { now = status; } };`;
  return new Function(...Object.keys(names), code)(...Object.values(names));
}

// Returns the guide's functions that execute the calls of tools, which are those of the page, and one that mounts the page with a chat.
export function executorOf(tools) {
  const code = `${blockWith("function executeOpen(").replace(/^const tools = .*$/m, "")}
    function mount(id, useChat, useEffect) {
      let initial, transport, sendAutomaticallyWhen;
      ${blockWith("= useChat({\n  id, messages: initial")}
    }
    return { execute, mount };`;
  return new Function("tools", "isOpen", "shown", code)(tools, ofReload.isOpen, []);
}

// Returns the guide's `resumeAnswer`.
export function answerResumer() {
  return new Function(`${blockWith("function resumeAnswer(")}; return resumeAnswer;`)();
}

// Returns the guide's class of agents, which names exports of the package `@ag-ui/client`.
export function agentClass(client) {
  const code = aguiBlockWith("class Agent ").replace(/^import .*$/m, "");
  const names = ["HttpAgent", "runHttpRequest", "transformHttpEventStream"];
  return new Function(...names, `${code}; return Agent;`)(...names.map((name) => client[name]));
}

// Returns the guide's `send` of an agent.
export function sendBy(agent, tools, context) {
  const code = `${aguiBlockWith("async function send(")}; return send;`;
  return new Function("agent", "tools", "context", code)(agent, tools, context);
}
