"""The run of an agent in a worker of the customer, as its code sees it."""

import json
import secrets
import threading
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from arkloop.cli.serve.returned_output import output_of
from arkloop.cli.serve.run_files import RunFiles
from arkloop.cli.serve.run_outbox import RunOutbox
from arkloop.cli.serve.service import Service
from arkloop.shared.agents import call_approvals, message_files
from arkloop.shared.agents.agent_run import (
    MAX_CHECKPOINT_BYTES,
    UNKNOWN_OUTCOME,
    Call,
    DelegatedTask,
    Message,
    RunStopped,
    StopReason,
    SubRunResult,
)
from arkloop.shared.agents.approvals import ApprovalReply
from arkloop.shared.agents.call_approvals import CallApprovals
from arkloop.shared.agents.questions import answer_to, question_of
from arkloop.shared.agents.steps_and_costs import StepsAndCosts, enclosing_steps
from arkloop.shared.agents.transcript import (
    RecordedCall,
    Transcript,
    call_of,
    delegated_calls,
    json_of,
)
from arkloop.shared.events.plain import clean
from arkloop.shared.events.types import MessageCompleted, MessageDelta, MessageThinking
from arkloop.shared.events.usage import TOKEN_FIELDS, Usage
from arkloop.shared.usd import rounded
from arkloop.worker.contract.identity import idempotency_key, traceparent

MAX_OUTPUT_BYTES = 65_000
#: How long a run waits for money that other runs have reserved.
MAX_RESERVE_SECONDS = 60.0
RESERVE_PAUSE_SECONDS = 0.25
#: Of one request.
MAX_UNBEGUN = 500
_CUT = "\n[cut: the output was too long]"


class ServedRun(StepsAndCosts):
    """The `AgentRun` of an agent that runs here; its methods may be called from any thread."""

    def __init__(self, service: Service, run: Mapping[str, Any], draining: threading.Event) -> None:
        self.run_id: str = run["run_id"]
        self.thread_id: str = run["thread_id"]
        self.org_id: str = run["org_id"]
        self.end_user_id: str | None = run["end_user_id"]
        self.metadata: Mapping[str, str] = run["metadata"]
        self.traceparent = traceparent(run["trace_id"], self.run_id)
        self.instructions: str = run["instructions"]
        self.model: str = run["model"]
        self.model_settings: Mapping[str, Any] = run["model_settings"]
        self.output_schema: Mapping[str, Any] | None = run["output_schema"]
        # The previous release sends neither `approvals` nor `begun`.
        approvals = run.get("approvals", ())
        asked = {one["tool_call_id"]: one["arguments"] for one in approvals}
        #: The calls that the last execution had not begun; a service of the release before stores
        #: none.
        self._known_unbegun: Sequence[str] | None = run.get("unbegun")
        unbegun = {*asked, *(self._known_unbegun or ())} - {*run.get("begun", ())}
        messages = [message_files.shown(message) for message in run["messages"]]
        self.messages: Sequence[Message] = _with_unknown(messages, unbegun)
        self.attempt: int = run["attempt"]
        self.checkpoint_data: Any = run["checkpoint"]
        #: Set when the run has to stop; `stopped` is the first reason.
        self.stopping = threading.Event()
        self.stopped: StopReason | None = None
        self.outbox = RunOutbox(service, run, self.stop)
        self._files = RunFiles(service, run, self.wait, self.stop)
        self._answers = {(one["key"], one["question"]): one["answer"] for one in run["answers"]}
        #: The outputs of sub-runs that `messages` have cut, None: too long; a service of the
        #: release before has none.
        given = run.get("sub_run_results", ())
        whole = {one["tool_call_id"]: one["output"] for one in given}
        self._whole = {id_: output for id_, output in whole.items() if output is not None}
        self._transcript = Transcript(_calls_of(run["messages"], unbegun, asked, whole))
        replies: dict[str, list[str]] = {}
        for one in approvals:
            replies.setdefault(one["tool_call_id"], []).append(one["answer"])
        self._approvals = CallApprovals(self._transcript, replies, asked)
        said_last: str | None = run.get("last_turn")  # a service of the release before has none
        self._last_turn = None if said_last is None else MessageCompleted("", said_last, Usage())
        self._lock = threading.RLock()
        self._draining = draining
        if run["cancel_requested"]:
            self.stop("cancelled")

    # ---- for the worker ----

    def stop(self, reason: StopReason) -> None:
        """Let every method raise from now on."""
        if self.stopped is None or reason == "lost":
            self.stopped = reason
        if reason == "lost":
            self.outbox.lose()
        self.stopping.set()

    def release(self) -> None:
        """Give the run back: another worker continues it. Raises: RunStopped, Refused."""
        with self._lock:
            self.outbox.send("release", **self._unbegun(waits=False))

    def finish(self, returned: Any) -> None:
        """Complete the run with what the agent has returned. Raises: RunStopped, ValueError."""
        with self._recording():
            if left := self._transcript.close():
                self.outbox.note(*left)
            output = None
            streamed, last = self.outbox.open_text, self._last_turn
            if self.output_schema is not None:
                said = streamed or ("" if last is None else last.content)
                returned, output = output_of(returned, said)
            elif returned is not None and not isinstance(returned, str):
                raise ValueError(f"The agent returned {type(returned).__name__}, not text.")
            elif returned is not None:
                returned = clean(returned)
            is_recorded = not streamed and last is not None and returned in (None, last.content)
            if is_recorded and last is not None:
                content = last.content
            elif returned is None:
                content = streamed
            else:
                content = returned
                if not content.startswith(streamed):
                    self.outbox.void_text()
                    streamed = ""
                self.outbox.add_text(MessageDelta, content[len(streamed) :])
            # The service does not know its tokens.
            ended = [self._transcript.turn(content)] if content and not is_recorded else []
            fields = (
                {"content": content} if output is None else {"content": content, "output": output}
            )
            self.outbox.send("complete", *ended, **fields)

    # ---- AgentRun ----

    def file(self, file_id: str) -> bytes:
        """Return the content of a file that the messages name."""
        return self._files.content(message_files.find(self.messages, file_id))

    @property
    def pending_calls(self) -> Sequence[Call]:
        return self._transcript.pending

    def text(self, text: str) -> None:
        """Stream a piece of the answer."""
        with self._recording():
            self.outbox.add_text(MessageDelta, clean(_text(text)))

    def thinking(self, text: str) -> None:
        """Stream a piece of the model's reasoning."""
        with self._recording():
            self.outbox.add_text(MessageThinking, clean(_text(text)))

    def tool_call(self, name: str, arguments: Any, *, tool_call_id: str | None = None) -> str:
        """Record that a tool is called."""
        with self._recording():
            call = call_of(name, arguments, tool_call_id)
            if not self._approvals.is_recorded(call):
                self._begin(call)
            return call["id"]

    def tool_result(self, tool_call_id: str, output: str, *, is_error: bool = False) -> None:
        """Record the result of a call."""
        with self._recording():
            shown = _fitting(clean(_text(output)))
            ended = self._transcript.result(tool_call_id, shown, is_error=is_error)
            if ended:
                self.outbox.note(*ended)
                self.outbox.flush()

    def _begin_step(
        self, name: str, arguments: Any, tool_call_id: str, *, is_idempotent: bool
    ) -> str | None:
        with self._recording():
            call = call_of(name, arguments, tool_call_id)
            if not self._approvals.is_recorded(call):
                self._begin(call)
            elif (known := self._transcript.output_of(tool_call_id)) is not None:
                return known
            elif self._transcript.is_unbegun(tool_call_id):
                denied = self._approvals.denial(tool_call_id)
                if denied is not None:
                    self.tool_result(tool_call_id, denied, is_error=True)
                    return denied
                self.outbox.begin(tool_call_id)
            elif self._transcript.is_lost(tool_call_id) and not is_idempotent:
                self.tool_result(tool_call_id, UNKNOWN_OUTCOME, is_error=True)
                return UNKNOWN_OUTCOME
            self._transcript.begin(tool_call_id)
        return None

    def _add_cost(self, usd: float | None, model: str | None, usage: Usage) -> None:
        with self._lock:
            # Of a call that was in progress when the run had to stop, too: its vendor bills it.
            if self.stopped in ("lost", "waiting"):  # the service takes nothing from this execution
                raise RunStopped(self.stopped)
            self._transcript.add_usage(usage)
            tokens = {name: getattr(usage, name) for name in TOKEN_FIELDS}
            given = {} if usd is None else {"cost_usd": usd}
            self.outbox.add_cost({"model": model, **tokens, **given})
            self.outbox.flush()
        self.check()

    def reserve(self, usd: float) -> None:
        """Reserve what the next model call may cost at most."""
        ends = time.monotonic() + MAX_RESERVE_SECONDS
        while True:
            with self._recording():
                gives_up = time.monotonic() > ends
                if self.outbox.reserve(rounded(usd), gives_up=gives_up):
                    return
            self.wait(RESERVE_PAUSE_SECONDS * (0.5 + secrets.randbelow(1000) / 1000))

    def checkpoint(self, data: Any) -> None:
        """Store where the agent is."""
        with self._recording():
            text = json_of(data)
            if len(text.encode()) > MAX_CHECKPOINT_BYTES:
                raise ValueError(
                    f"A checkpoint has at most {MAX_CHECKPOINT_BYTES:,} bytes of JSON."
                )
            ended: list[MessageCompleted] = []
            if self.outbox.open_text:
                self._settle()
                self._last_turn = self._transcript.turn(self.outbox.open_text)
                ended.append(self._last_turn)
            self.outbox.send("append", *ended, checkpoint=json.loads(text))
        if self._draining.is_set():
            self.stop("shutdown")
        self.check()

    def ask(self, question: str, options: Sequence[str] = (), *, key: str | None = None) -> str:
        """Return a person's answer, in this execution or the next."""
        with self._recording():
            if (answer := answer_to(question, key, self._answers)) is not None:
                return str(answer)
            prompt, given, stored_key = question_of(question, options, key)
            fields: dict[str, Any] = {"key": stored_key, "question": prompt}
            if given:
                fields["options"] = given
            self._pause("ask", **fields)
        raise RunStopped("waiting")

    def approve(self, name: str, arguments: Any, *, tool_call_id: str) -> ApprovalReply:
        """Return a person's reply to a call, in this execution or the next."""
        with self._recording():
            call = call_of(name, arguments, tool_call_id)
            reply = self._approvals.reply_to(call)
            if reply is not None:
                if not reply.approved:
                    denied = call_approvals.denial(reply)
                    self.tool_result(tool_call_id, denied, is_error=True)
                return reply
            if not self._transcript.has_call(tool_call_id):
                self._record(call)
            self._transcript.await_approval(tool_call_id)
            question = self._approvals.prompt(name, tool_call_id)
            self._pause("ask", approval_of=tool_call_id, question=question)
        raise RunStopped("waiting")

    def delegate_all(self, tasks: Sequence[DelegatedTask]) -> list[SubRunResult]:
        """Return the results of sub-runs, in this execution or the next."""
        with self._recording():
            calls = delegated_calls(tasks)
            new = self._approvals.new_of(calls)
            for call_id, denied in self._approvals.denied_of(calls):
                self.tool_result(call_id, denied, is_error=True)
            known = self._transcript.sub_run_results(calls, lambda _: self._whole)
            if known is not None:
                return known
            missing = [call for call in calls if self._transcript.output_of(call["id"]) is None]
            for call in missing:
                if call not in new:  # before a new call of another turn settles it
                    self._transcript.begin(call["id"], is_step=False)
            text, ended = self.outbox.open_text, []
            if new:
                begins_turn = self._transcript.begins_turn(text)
                self._settle(is_turn_over=begins_turn)
                ended = [self._transcript.turn(text)] if begins_turn else []
            given = [{"tool_call_id": call["id"], **call["arguments"]} for call in missing]
            self._pause("delegate", *ended, tasks=given)
        raise RunStopped("waiting")

    def idempotency_key(self, tool_call_id: str) -> str:
        """Return the key of a call, the same whenever it is repeated."""
        return idempotency_key(self.run_id, tool_call_id)

    def check(self) -> None:
        """Raise if the run has to stop."""
        if self.stopped is not None:
            raise RunStopped(self.stopped)

    def wait(self, seconds: float) -> None:
        """Sleep; raises as soon as the run has to stop."""
        self.stopping.wait(seconds)
        self.check()

    # ---- pieces ----

    @contextmanager
    def _recording(self) -> Iterator[None]:
        with self._lock:
            self.check()
            yield

    def _pause(self, verb: str, *ended: MessageCompleted, **fields: Any) -> None:
        """End this execution; the next one begins the calls that this one has not."""
        self._transcript.interrupt(enclosing_steps())
        self.outbox.send(verb, *ended, **fields, **self._unbegun(waits=True))
        self.stop("waiting")

    def _unbegun(self, *, waits: bool) -> dict[str, Any]:
        left = self._transcript.left_unbegun(waits=waits)[:MAX_UNBEGUN]
        is_new = self._known_unbegun is not None and (left or self._known_unbegun)
        return {"unbegun": left} if is_new else {}

    def _settle(self, *, is_turn_over: bool = True) -> None:
        if ended := self._transcript.settle(is_turn_over=is_turn_over):
            self.outbox.note(*ended)

    def _begin(self, call: Call) -> None:
        self._record(call)
        self.outbox.flush()

    def _record(self, call: Call) -> None:
        text = self.outbox.open_text
        self._settle(is_turn_over=self._transcript.begins_turn(text))
        self._last_turn = None
        self.outbox.add(*self._transcript.call(call, text))


def _with_unknown(messages: Sequence[Message], unbegun: Collection[str]) -> Sequence[Message]:
    """Return the messages, with a result for each call that has begun and has none."""
    done = {message.get("tool_call_id") for message in messages}
    found: list[Message] = []
    for message in messages:
        found.append(message)
        for call in message.get("tool_calls", ()):
            if call["id"] not in done and call["id"] not in unbegun:
                unknown = Message(role="tool", content=UNKNOWN_OUTCOME)
                unknown["tool_call_id"], unknown["name"] = call["id"], call["name"]
                unknown["is_error"] = True
                found.append(unknown)
    return found


def _calls_of(
    messages: Sequence[Message],
    unbegun: Collection[str],
    asked: Mapping[str, Any],
    cut: Collection[str],
) -> list[RecordedCall]:
    """Return the calls; `asked` are the arguments that a person was asked about, by call."""
    outputs = {one["tool_call_id"]: one["content"] for one in messages if "tool_call_id" in one}
    failed = {one["tool_call_id"] for one in messages if one.get("is_error")}
    return [
        RecordedCall(
            Call(id=call["id"], name=call["name"], arguments=asked[call["id"]])
            if call["id"] in unbegun and call["id"] in asked
            else call,
            outputs.get(call["id"]),
            call["id"] in failed,
            call["id"] in unbegun and call["id"] not in outputs,
            call["id"] in cut,
        )
        for message in messages
        for call in message.get("tool_calls", ())
    ]


def _fitting(output: str) -> str:
    encoded = output.encode()
    if len(encoded) <= MAX_OUTPUT_BYTES:
        return output
    return encoded[:MAX_OUTPUT_BYTES].decode(errors="ignore") + _CUT


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"Must be a string, and is a {type(value).__name__}.")
    return value
