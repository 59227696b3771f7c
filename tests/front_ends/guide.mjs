// The code of docs/how-to/ai-sdk.md, as pages copy it.
import { readFileSync } from "node:fs";

const text = readFileSync(new URL("../../docs/how-to/ai-sdk.md", import.meta.url), "utf8");
const blocks = [...text.matchAll(/```tsx\n(.*?)\n```/gs)].map(([, code]) => code);

// Returns the one block of the guide that has this text.
function blockWith(sign) {
  const [code, ...others] = blocks.filter((block) => block.includes(sign));
  if (!code || others.length) throw new Error(`${others.length + !!code} blocks of the guide have: ${sign}`);
  return code;
}

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
