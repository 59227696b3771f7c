// The code of docs/how-to/ai-sdk.md, as pages copy it.
import { readFileSync } from "node:fs";

const text = readFileSync(new URL("../../docs/how-to/ai-sdk.md", import.meta.url), "utf8");
const blocks = [...text.matchAll(/```tsx\n(.*?)\n```/gs)].map(([, code]) => code);

// Returns what the names are in the one block of the guide that has this text, as a function of `given`.
function codeWith(sign, names, given) {
  const [code, ...others] = blocks.filter((block) => block.includes(sign));
  if (!code || others.length) throw new Error(`${others.length + !!code} blocks of the guide have: ${sign}`);
  return new Function(...given, `${code}; return ${names};`);
}

const makeWorkflow = codeWith("new WorkflowChatTransport", "transport", ["WorkflowChatTransport", "url", "version", "headers"]);

// The guide's transport, with more patience: `url` is that of chats.
export function workflowTransport(WorkflowChatTransport, { url, version, headers }) {
  const transport = makeWorkflow(WorkflowChatTransport, url, version, headers);
  return Object.assign(transport, { maxConsecutiveErrors: 1000 });
}
