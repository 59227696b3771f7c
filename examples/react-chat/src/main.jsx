import { StrictMode, useEffect, useRef, useState } from "react";
import { createRoot } from "react-dom/client";
import { useAgent } from "./use_agent.js";
import "./style.css";

// The conversation's id is in the address, so that a reload, and another tab, continue it.
function chatIdOfAddress() {
  const address = new URL(location.href);
  if (!address.searchParams.get("chat")) {
    address.searchParams.set("chat", crypto.randomUUID());
    history.replaceState(null, "", address);
  }
  return address.searchParams.get("chat");
}

function Chat({ chatId }) {
  const agent = useAgent(chatId);
  const end = useRef(null);
  const last = agent.messages.at(-1);
  const isThinking = agent.isBusy && (last?.role !== "assistant" || !last.parts.length);
  useEffect(() => {
    end.current?.scrollIntoView({ block: "end" });
  }, [agent.messages, agent.queue]);

  return (
    <main>
      <header>
        <h1>Agent</h1>
        <a href="?" className="quiet">New conversation</a>
      </header>
      {agent.isOffline && <p className="banner" role="status">No connection. Trying again…</p>}
      {agent.isStopping && (
        <p className="banner" role="status">
          {agent.isOffline || agent.isStopLost ? "Not stopped yet: leave this page open, and it tries again." : "Stopping…"}
        </p>
      )}
      <section className="conversation" aria-live="polite">
        {!agent.messages.length && !agent.queue.length && <p className="empty">Ask the agent anything.</p>}
        {agent.messages.map((message) => (
          <Message key={message.id} message={message} agent={agent} isLast={message === last} />
        ))}
        {isThinking && <p className="thinking" aria-label="The agent is working"><i /><i /><i /></p>}
        {agent.queue.map((message) => <Queued key={message.id} message={message} agent={agent} />)}
        {agent.error && !agent.isOffline && !agent.isStopping && <p className="banner" role="alert">The answer was interrupted. Resuming…</p>}
        <div ref={end} />
      </section>
      <Composer agent={agent} />
    </main>
  );
}

function Message({ message, agent, isLast }) {
  const failure = message.metadata?.arkloop?.error;
  return (
    <article className={`message ${message.role}`} data-id={message.id}>
      {message.parts.map((part, place) => (
        <Part key={place} part={part} agent={agent} isOpen={isLast} />
      ))}
      {failure && <p className="failure">{failure.message}</p>}
      {message.metadata?.arkloop?.status === "cancelled" && <small>Stopped</small>}
    </article>
  );
}

function Queued({ message: { id, text, isAccepted, refusal }, agent }) {
  if (!refusal) {
    return (
      <div className="message user queued">
        <p>{text}</p><small>{isAccepted ? "Waits for the answer" : "Sending…"}</small>
      </div>
    );
  }
  return (
    <div className="message refused" role="alert">
      <p className="text">{text}</p>
      <p className="failure">Not sent: {refusal}</p>
      <div className="choices">
        <button className="secondary" onClick={() => agent.sendAgain(id)}>Send again</button>
        <button className="secondary" onClick={() => agent.takeBack(id)}>Take back</button>
      </div>
    </div>
  );
}

function Part({ part, agent, isOpen }) {
  if (part.type === "text") return part.text ? <p className="text">{part.text}</p> : null;
  if (part.type === "reasoning") {
    return <details className="reasoning"><summary>Thoughts</summary><p className="text">{part.text}</p></details>;
  }
  if (part.type === "tool-ask_user") return <Question part={part} agent={agent} isOpen={isOpen} />;
  if (part.type.startsWith("tool-") || part.type === "dynamic-tool") {
    return <ToolCall part={part} agent={agent} isOpen={isOpen} />;
  }
  return null;
}

const STATES = {
  "input-streaming": "preparing", "input-available": "running", "approval-requested": "needs approval",
  "approval-responded": "answered", "output-available": "done", "output-error": "failed", "output-denied": "denied",
};

function ToolCall({ part, agent, isOpen }) {
  const name = part.toolName ?? part.type.replace("tool-", "");
  const asks = isOpen && part.state === "approval-requested";
  const answer = (approved) => agent.addToolApprovalResponse({ id: part.approval.id, approved });
  return (
    <div className={`tool ${part.state}`}>
      <details open={asks || undefined}>
        <summary><code>{name}</code><span className="state">{STATES[part.state] ?? part.state}</span></summary>
        <pre>{shown(part.input)}</pre>
        {part.output !== undefined && <pre>{shown(part.output)}</pre>}
        {part.errorText && <pre className="failure">{part.errorText}</pre>}
      </details>
      {asks && (
        <div className="approval" role="group" aria-label={`Approve ${name}?`}>
          <p>The agent asks to use <code>{name}</code>.</p>
          <button onClick={() => answer(true)}>Approve</button>
          <button className="secondary" onClick={() => answer(false)}>Deny</button>
        </div>
      )}
    </div>
  );
}

function Question({ part, agent, isOpen }) {
  const [text, setText] = useState("");
  const answer = (output) =>
    agent.addToolOutput({ tool: "ask_user", toolCallId: part.toolCallId, output });
  const asks = isOpen && part.state === "input-available";
  return (
    <div className="tool question">
      <p>{part.input?.question}</p>
      {part.output !== undefined && <p className="reply">{shown(part.output)}</p>}
      {asks && (
        <form onSubmit={(event) => { event.preventDefault(); if (text.trim()) answer(text); }}>
          {(part.input?.options ?? []).map((option) => (
            <button key={option} type="button" className="secondary" onClick={() => answer(option)}>{option}</button>
          ))}
          <input value={text} onChange={(event) => setText(event.target.value)} aria-label="Your answer" />
          <button>Answer</button>
        </form>
      )}
    </div>
  );
}

function Composer({ agent }) {
  const [text, setText] = useState("");
  const send = (event) => {
    event.preventDefault();
    if (!text.trim()) return;
    agent.send(text);
    setText("");
  };
  return (
    <form className="composer" onSubmit={send}>
      <input
        value={text}
        onChange={(event) => setText(event.target.value)}
        placeholder={agent.isBusy ? "Send the next message…" : "Message"}
        aria-label="Message"
        autoFocus
      />
      <button disabled={!text.trim()}>Send</button>
      {agent.canStop && <button type="button" className="secondary" onClick={agent.stop}>Stop</button>}
    </form>
  );
}

const shown = (value) => (typeof value === "string" ? value : JSON.stringify(value, null, 2));

createRoot(document.getElementById("root")).render(
  <StrictMode><Chat chatId={chatIdOfAddress()} /></StrictMode>,
);
