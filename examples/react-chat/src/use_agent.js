// useChat, for a conversation that other tabs and devices continue, too.
import { useChat } from "@ai-sdk/react";
import { generateId, lastAssistantMessageIsCompleteWithToolCalls } from "ai";
import { useCallback, useEffect, useRef, useState } from "react";
import { enqueue, Refusal, stopRun, stored, transport } from "./service.js";

const SYNC_MILLISECONDS = 1500;

const calls = (message) =>
  (message?.parts ?? []).filter((part) => part.type.startsWith("tool-") || part.type === "dynamic-tool");

// The answers to what a run waits for go with the next request, which useChat sends by itself.
function isAnswered({ messages }) {
  const last = messages.at(-1);
  if (["completed", "failed", "cancelled"].includes(last.metadata?.arkloop?.status) || waitsFor(last)) return false;
  const isApprovalAnswered = calls(last).some((part) => part.state === "approval-responded");
  return isApprovalAnswered || lastAssistantMessageIsCompleteWithToolCalls({ messages });
}

const waitsFor = (message) =>
  calls(message).find(
    (part) =>
      part.state === "approval-requested" ||
      (part.type === "tool-ask_user" && part.state === "input-available"),
  );

// Messages after the one that is being answered wait for their turn, which the service keeps for them.
function split(messages) {
  const answered = messages.findLastIndex((message) => message.role === "assistant");
  const end = answered + (waitsFor(messages[answered]) ? 1 : 2);
  return [messages.slice(0, end), messages.slice(end)];
}

// Whether the answer to this message is being written, or waits for the person.
function isUnanswered(messages, id) {
  const [shown] = split(messages);
  const last = shown.at(-1);
  const isLatest = shown.findLast(({ role }) => role === "user")?.id === id;
  return isLatest && (last.role === "user" || waitsFor(last) !== undefined);
}

const has = (messages, message) => messages.some(({ id }) => id === message.id);
const isUndelivered = (message) => !message.isAccepted && !message.refusal;

const textOf = (message) => message.parts.map((part) => part.text ?? "").join("");

export function useAgent(chatId) {
  const chat = useChat({ id: chatId, transport, sendAutomaticallyWhen: isAnswered });
  const [waitingMessages, setWaitingMessages] = useState([]); // as the service has them
  const [sent, setSent] = useState([]); // messages of this tab that it has not shown yet
  const [isOffline, setOffline] = useState(false);
  const [isStopping, setStopping] = useState(false);
  const [isStopLost, setStopLost] = useState(false);
  const isBusy = chat.status === "submitted" || chat.status === "streaming";
  const now = useRef({});
  now.current = { ...chat, isBusy, sent };
  const isSyncing = useRef(false);
  // The message whose answer is to be stopped, the run if the page knows it, and whether the service has that request.
  const stopping = useRef(null);

  const askToStop = useCallback(
    (runId) => stopRun(chatId, runId).then(() => true, (error) => error instanceof Refusal),
    [chatId],
  );

  // Sends a stop that was lost again, if the same answer is still open when it looks: the next one is not meant.
  // Returns whether nothing is left to be stopped.
  const finishStop = useCallback(async () => {
    const stop = stopping.current;
    if (!stop) return true;
    if (!(await stop.isKnown) && isUnanswered(await stored(chatId), stop.id)) {
      stop.isKnown = askToStop(stop.runId);
      if (!(await stop.isKnown)) return false;
    }
    if (stopping.current === stop) {
      stopping.current = null;
      setStopping(false);
      setStopLost(false);
    }
    return true;
  }, [chatId, askToStop]);

  // Safe to repeat: the service knows a message by its id. One that it refuses is left to the person.
  const deliver = useCallback(async ({ id, role, parts }) => {
    const outcome = await enqueue(chatId, { id, role, parts }).then(
      () => ({ isAccepted: true }),
      (error) => {
        if (!(error instanceof Refusal)) throw error;
        return { refusal: error.message };
      },
    );
    setSent((sent) => sent.map((one) => (one.id === id ? { ...one, ...outcome } : one)));
  }, [chatId]);

  // Reads what other tabs have done, and joins an answer that is being written.
  const sync = useCallback(async () => {
    if (isSyncing.current || now.current.isBusy) return;
    isSyncing.current = true;
    try {
      if (!(await finishStop())) {
        setOffline(false); // the messages could be read
        setStopLost(true);
        return; // nothing is sent before the stop
      }
      let all = await stored(chatId);
      // While the page is busy, useChat may be sending one of them.
      const lacking = now.current.sent.filter(
        (one) => !now.current.isBusy && isUndelivered(one) && !has(all, one),
      );
      let isCut = false;
      try {
        for (const message of lacking) await deliver(message);
      } catch {
        isCut = true; // the next sync tries again; this one shows what there is
      }
      if (lacking.length) all = await stored(chatId);
      setOffline(isCut);
      if (now.current.isBusy) return;
      const [messages, later] = split(all);
      setWaitingMessages(later);
      setSent((sent) => sent.filter((one) => !has(all, one)));
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
  }, [chatId, deliver, finishStop]);

  useEffect(() => {
    sync();
    const timer = setInterval(sync, SYNC_MILLISECONDS);
    return () => clearInterval(timer);
  }, [sync]);

  const waiting = waitsFor(chat.messages.at(-1));
  const isFree = chat.status === "ready" && !waiting && !isStopping && chat.messages.at(-1)?.role !== "user";
  useEffect(() => {
    if (!isBusy) sync(); // the next message may be answered already
  }, [isBusy, sync]);

  const shown = [...waitingMessages, ...chat.messages];
  const queue = [...waitingMessages, ...sent.filter((one) => !has(shown, one))];
  // A sync keeps the order of messages that could not be sent; none runs while the page reads an answer.
  const deliverNow = (message) => (isBusy ? deliver(message).catch(() => setOffline(true)) : sync());
  const send = (text) => {
    const message = { id: generateId(), role: "user", parts: [{ type: "text", text }] };
    setSent((sent) => [...sent, message]); // until the service has it: its request may fail
    if (isFree && queue.every(({ refusal }) => refusal)) chat.sendMessage(message);
    else deliverNow(message);
  };

  return {
    ...chat,
    isBusy,
    isOffline,
    isStopping,
    isStopLost,
    canStop: (isBusy || Boolean(chat.error)) && !isStopping, // an answer that the page cannot read is still written
    waiting,
    queue: queue.map((message) => ({
      id: message.id,
      text: textOf(message),
      isAccepted: waitingMessages.includes(message) || message.isAccepted === true,
      refusal: message.refusal,
    })),
    send,
    sendAgain: (id) => {
      setSent((sent) => sent.map((one) => (one.id === id ? { ...one, refusal: undefined } : one)));
      deliverNow(sent.find((one) => one.id === id));
    },
    takeBack: (id) => setSent((sent) => sent.filter((one) => one.id !== id)),
    stop: () => {
      // No sync delivers what useChat is sending. If it has arrived, the next one removes it from `sent`.
      setSent((sent) => sent.map((one) =>
        isUndelivered(one) && has(chat.messages, one) ? { ...one, refusal: "Stopped." } : one,
      ));
      chat.stop();
      const asked = chat.messages.findLast(({ role }) => role === "user");
      const last = chat.messages.at(-1);
      const runId = last?.role === "assistant" ? last.metadata?.arkloop?.run_id : undefined;
      stopping.current = { id: asked?.id, runId, isKnown: askToStop(runId) };
      setStopping(true);
      stopping.current.isKnown.then(sync);
    },
  };
}

// What is compared between the page and the service: ids, how far each part is, and whether it broke off.
function shape(messages) {
  return messages.map(({ role, parts, id, metadata }) => [
    role === "assistant" ? id : role,
    ["failed", "cancelled"].includes(metadata?.arkloop?.status),
    parts.filter((part) => part.type !== "step-start").map((part) => [part.type, part.state ?? part.text]),
  ]);
}
