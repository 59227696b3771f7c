// The service as the page calls it: a token from the page's own backend, and a chat's addresses.
import { DefaultChatTransport } from "ai";

const VERSION = "7.0.173"; // of the package `ai`
const MOST_KEPT_ALIVE = 16_000; // characters, of the 64 KiB that browsers send for pages that were left
let token = null;

// Requests a new token when less than a minute of the last one is left.
async function currentToken() {
  if (!token || Date.parse(token.expires_at) - Date.now() < 60_000) {
    const response = await fetch("/token", { method: "POST" });
    if (!response.ok) throw new Error("The page got no token.");
    token = await response.json();
  }
  return token;
}

async function request(chatId, path, options = {}) {
  const { url, token } = await currentToken();
  const headers = { Authorization: `Bearer ${token}` };
  const address = `${url}/v1/ui/chat/${encodeURIComponent(chatId)}${path}`;
  const response = await fetch(address, { ...options, headers });
  if (!response.ok) throw new Error(`HTTP ${response.status}`);
  return response.json();
}

export const stored = (chatId) => request(chatId, "/messages?limit=200");
export const stopRun = (chatId) => request(chatId, "/stop", { method: "POST" });

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
    signal: reading.signal,
  });
  reading.abort();
  if (!response.ok) throw new Error(`HTTP ${response.status}`);
}

export const transport = new DefaultChatTransport({
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
