// The service as the page calls it: a token from the page's own backend, and a chat's addresses.
import { DefaultChatTransport } from "ai";

const VERSION = "7.0.173"; // of the package `ai`
const MOST_KEPT_ALIVE = 16_000; // characters, of the 64 KiB that browsers send for pages that were left
// The service sends something at least every 10 s: what is silent for this long is lost.
const SILENCE_MILLISECONDS = 30_000;
let token = null;

const inTime = () => AbortSignal.timeout(SILENCE_MILLISECONDS);

// Requests a new token when less than a minute of the last one is left.
async function currentToken() {
  if (!token || Date.parse(token.expires_at) - Date.now() < 60_000) {
    const response = await fetch("/token", { method: "POST", signal: inTime() });
    if (!response.ok) throw new Error("The page got no token.");
    token = await response.json();
  }
  return token;
}

// The service has refused a message, and would refuse it again; the text says why.
export class Refusal extends Error {}

// These say nothing about the message: the token has expired, the network is slow, or the service is busy for a while.
const isForNow = ({ status, headers }) =>
  [401, 408].includes(status) || (status === 429 && headers.has("Retry-After"));

async function errorOf(response) {
  const { status } = response;
  if (status === 401) token = null; // the next request gets a new one
  if (status < 400 || status >= 500 || isForNow(response)) return new Error(`HTTP ${status}`);
  const { code, message, details } = await response.json().catch(() => ({}));
  const reasons = code === "validation.error" ? Object.values(details).flat() : [message ?? `HTTP ${status}`];
  return new Refusal(reasons.join("; "));
}

async function request(path, options = {}) {
  const { url, token } = await currentToken();
  const headers = { Authorization: `Bearer ${token}` };
  const response = await fetch(`${url}/v1${path}`, { ...options, headers, signal: inTime() });
  if (!response.ok) throw await errorOf(response);
  return response.json();
}

const ofChat = (chatId) => `/ui/chat/${encodeURIComponent(chatId)}`;
export const stored = (chatId) => request(`${ofChat(chatId)}/messages?limit=200`);
// A stop that names the run never ends the answer after it. Before an answer has begun, the page does not know its run.
export const stopRun = (chatId, runId) =>
  request(runId ? `/runs/${runId}:cancel` : `${ofChat(chatId)}/stop`, { method: "POST", keepalive: true });

// Has the service keep a message until the active run has ended. Its answer is read by a resume.
export async function enqueue(chatId, message) {
  const { url, token } = await currentToken();
  const reading = new AbortController();
  const body = JSON.stringify({ id: chatId, messages: [message], trigger: "submit-message", on_busy: "enqueue" });
  const response = await fetch(`${url}/v1/ui/chat?ai_sdk=${VERSION}`, {
    method: "POST",
    headers: { Authorization: `Bearer ${token}` },
    body,
    keepalive: body.length < MOST_KEPT_ALIVE, // it arrives also if the page is left meanwhile
    signal: AbortSignal.any([reading.signal, inTime()]),
  });
  if (!response.ok) throw await errorOf(response);
  reading.abort();
}

// A fetch that fails when its connection has fallen silent; a browser waits without end.
async function impatientFetch(address, options) {
  const silence = new AbortController();
  let timer;
  const heard = () => {
    clearTimeout(timer);
    timer = setTimeout(() => silence.abort(new Error("The connection fell silent.")), SILENCE_MILLISECONDS);
  };
  heard();
  const signal = AbortSignal.any([silence.signal, options.signal ?? silence.signal]);
  const response = await fetch(address, { ...options, signal });
  const transform = (bytes, reader) => { heard(); reader.enqueue(bytes); };
  return new Response(response.body?.pipeThrough(new TransformStream({ transform })), response);
}

export const transport = new DefaultChatTransport({
  fetch: impatientFetch,
  prepareSendMessagesRequest: async ({ id, messages, trigger, messageId }) => {
    const { url, token } = await currentToken();
    return {
      api: `${url}/v1/ui/chat?ai_sdk=${VERSION}`,
      headers: { Authorization: `Bearer ${token}` },
      // The service has the conversation: it takes the newest message alone.
      body: { id, messages: messages.slice(-2), trigger, messageId },
    };
  },
  prepareReconnectToStreamRequest: async ({ id }) => {
    const { url, token } = await currentToken();
    return {
      api: `${url}/v1/ui/chat/${encodeURIComponent(id)}/stream?ai_sdk=${VERSION}`,
      headers: { Authorization: `Bearer ${token}` },
    };
  },
});
