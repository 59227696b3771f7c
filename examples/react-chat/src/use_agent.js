// useChat, for a conversation that other tabs and devices continue, too.
import { useChat } from "@ai-sdk/react";
import { lastAssistantMessageIsCompleteWithToolCalls } from "ai";
import { useCallback, useEffect, useRef, useState } from "react";
import { stopRun, stored, transport } from "./service.js";

const SYNC_MILLISECONDS = 1500;

const calls = (message) =>
  (message?.parts ?? []).filter((part) => part.type.startsWith("tool-") || part.type === "dynamic-tool");

// The answers to what a run waits for go with the next request, which useChat sends by itself.
function isAnswered({ messages }) {
  const states = calls(messages.at(-1)).map((part) => part.state);
  if (states.includes("approval-responded")) return !states.includes("approval-requested");
  return lastAssistantMessageIsCompleteWithToolCalls({ messages });
}

const waitsFor = (message) =>
  calls(message).find(
    (part) =>
      part.state === "approval-requested" ||
      (part.type === "tool-ask_user" && part.state === "input-available"),
  );

export function useAgent(chatId) {
  const chat = useChat({ id: chatId, transport, sendAutomaticallyWhen: isAnswered });
  const [queue, setQueue] = useState([]); // messages that wait for the answer before them
  const [isOffline, setOffline] = useState(false);
  const isBusy = chat.status === "submitted" || chat.status === "streaming";
  const now = useRef({});
  now.current = { ...chat, isBusy };
  const isSyncing = useRef(false);

  // Reads what other tabs have done, and joins an answer that is being written.
  const sync = useCallback(async () => {
    if (isSyncing.current || now.current.isBusy) return;
    isSyncing.current = true;
    try {
      const messages = await stored(chatId);
      setOffline(false);
      if (now.current.isBusy) return;
      const seen = now.current.messages;
      if (now.current.error || JSON.stringify(shape(messages)) !== JSON.stringify(shape(seen))) {
        now.current.setMessages(messages);
        if (now.current.error) now.current.clearError();
      }
      // An answer that is being written is not among the stored messages.
      if (messages.at(-1)?.role === "user") await now.current.resumeStream();
    } catch {
      setOffline(true);
    } finally {
      isSyncing.current = false;
    }
  }, [chatId]);

  useEffect(() => {
    sync();
    const timer = setInterval(sync, SYNC_MILLISECONDS);
    return () => clearInterval(timer);
  }, [sync]);

  const waiting = waitsFor(chat.messages.at(-1));
  const isFree = chat.status === "ready" && !waiting && chat.messages.at(-1)?.role !== "user";
  useEffect(() => {
    if (isFree && queue.length) {
      setQueue(queue.slice(1));
      chat.sendMessage({ text: queue[0] });
    }
  }, [isFree, queue]);

  return {
    ...chat,
    isBusy,
    isOffline,
    waiting,
    queue,
    send: (text) => setQueue((queue) => [...queue, text]),
    stop: () => {
      chat.stop();
      stopRun(chatId).then(sync, () => setOffline(true));
    },
  };
}

// What is compared between the page and the service: ids, and how far each part is.
function shape(messages) {
  return messages.map(({ role, parts, id }) => [
    role === "assistant" ? id : role,
    parts.filter((part) => part.type !== "step-start").map((part) => [part.type, part.state ?? part.text]),
  ]);
}
