"""A run as a response of OpenAI's Responses API: its events as that API streams them.

A response ends with its run, or where the run waits for its client: for results of client tools,
for an approval, for an answer. Another response then continues the run.
"""

from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any

from arkloop.api.protocols import responses_ids
from arkloop.api.protocols.responses_ids import ItemId, ResponseId
from arkloop.api.protocols.responses_object import (
    Object,
    RunFacts,
    error_object,
    response_object,
    usage_object,
)
from arkloop.api.protocols.responses_output import Call, ResponseOutput
from arkloop.shared.agents import call_approvals
from arkloop.shared.events.open_turn import OpenTurn
from arkloop.shared.runs.limits_reached import no_answer

DONE = b"data: [DONE]\n\n"
#: Why a run has completed without a whole answer, by its `stop_reason`; the limits are our own.
_INCOMPLETE = {
    "length": "max_output_tokens",
    "content_filter": "content_filter",
    "timeout": "timeout",
    "budget": "budget",
}
#: Limits at which a last model call gives an answer, if it can.
_ANSWERED = ("max_steps", "tool_loop")


class ResponseProjection:
    """A fold of a run's events into the stream of one of its responses."""

    def __init__(self, facts: RunFacts, waits: int = 0) -> None:
        """Make the projection of the response that begins after the run's `waits`-th wait."""
        self.is_over = False
        #: The last event that asks the client; the number of waits before its answer.
        self.asked: Mapping[str, Any] | None = None
        self.waits = 0
        self._facts = facts
        self._first = waits
        self._previous = 0
        #: What the events have changed of the object, which is made for each frame that has it.
        self._changes: Object = {"status": "queued"}
        self._output = ResponseOutput(facts.run_id)
        self._open_turn = OpenTurn()
        self._calls: dict[str, Call] = {}
        self._asked_call: str | None = None
        self._said_at_limit = ""
        self._is_at_limit = False
        self._usage: Mapping[str, Any] = {}
        self._usage_before: Mapping[str, Any] = {}

    @property
    def has_begun(self) -> bool:
        """True if the run has waited often enough for this response to exist."""
        return self.waits >= self._first

    @property
    def asked_calls(self) -> Mapping[str, str]:
        """The run's ids of the calls whose results the response asks its client for.

        The keys are what clients may give: these ids, which responses once had, and then those that
        responses have.
        """
        if self.asked is None or self.asked["data"]["kind"] != "tool_results":
            return {}
        own = [call["tool_call_id"] for call in self.client_calls(self.asked["data"])]
        shown = map(self._shown_id, own)
        return {**dict(zip(own, own, strict=True)), **dict(zip(shown, own, strict=True))}

    @property
    def response_id(self) -> ResponseId:
        return ResponseId(self._facts.run_id, self._first)

    def client_calls(self, data: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        """Return the calls whose results a request has the client send."""
        names = self._facts.client_tools
        return [call for call in data.get("calls") or () if call["name"] in names]

    def asks_client(self, data: Mapping[str, Any]) -> bool:
        """Return whether the run waits for its client, and not for an HTTP tool alone."""
        return data["kind"] != "tool_results" or bool(self.client_calls(data))

    def response(self) -> Object:
        """Return the response object as it is after the events so far."""
        changes = {**self._changes, "output": self._output.items()}
        return response_object(self._facts, str(self.response_id), **changes)

    def opening(self) -> list[bytes]:
        """Return the frames before the run's first event."""
        return [] if self._first else self._begin()

    def frames(self, event: Mapping[str, Any]) -> Iterable[bytes]:
        if self.is_over:
            return ()
        if self.waits < self._first:
            return self._before(event)
        return [frame for one in self._open_turn.add(event) for frame in self._after(one)]

    def closing(self) -> Iterable[bytes]:
        return (DONE,)

    # ---- the run ----

    def _before(self, event: Mapping[str, Any]) -> list[bytes]:
        """Note what this response has to know of the part of the run before it."""
        kind, data = event["type"], event["data"]
        self._note(event)
        if kind == "tool.result":
            self._calls.pop(data["tool_call_id"], None)
        if kind != "run.waiting_for_input":
            return []
        self.waits += 1
        if self.asks_client(data):
            for call in self.client_calls(data):
                if call["tool_call_id"] in self._calls:
                    self._calls[call["tool_call_id"]].is_with_client = True
            if self.waits < self._first:
                self._previous = self.waits
        if self.waits < self._first:
            return []
        self._usage_before = self._usage
        previous = str(ResponseId(self._facts.run_id, self._previous))
        self._changes |= {"created_at": _time(event), "previous_response_id": previous}
        return self._begin()

    def _begin(self) -> list[bytes]:
        return [self._lifecycle("created"), self._lifecycle("queued")]

    def _after(self, event: Mapping[str, Any]) -> Iterator[bytes]:
        kind, data = event["type"], event["data"]
        self._note(event)
        is_ended = kind in ("run.completed", "run.failed", "run.cancelled")
        if self._changes["status"] == "queued":
            self._changes["status"] = "in_progress"
            yield self._lifecycle("in_progress")
        match kind:
            case "message.delta":
                yield from self._output.text(event["seq"], data["content"])
            case "message.thinking":
                yield from self._output.think(event["seq"], data["content"])
            case "message.reset":
                yield from self._output.void()
            case "message.completed":
                yield from self._output.finish_turn(event["seq"], data)
            case "tool.call" if data["name"] not in self._facts.client_tools:
                call_id = data["tool_call_id"]
                yield from self._output.open_tool(call_id, self._calls[call_id], event["seq"])
            case "tool.result":
                call = self._calls.pop(data["tool_call_id"], None)
                if call is not None and not call.is_with_client:
                    yield from self._output.close_tool(call, event["seq"], data)
            case "run.waiting_for_input":
                self.waits += 1
                if self.asks_client(data):
                    yield from self._ask(event)
            case _ if is_ended:
                yield from self._end(event)

    def _note(self, event: Mapping[str, Any]) -> None:
        kind, data = event["type"], event["data"]
        if kind == "tool.call":
            call = Call(event["seq"], data["name"], data["arguments"])
            self._calls[data["tool_call_id"]] = call
        elif kind == "run.limit_reached":
            self._is_at_limit = True
        elif kind == "message.delta" and self._is_at_limit:
            self._said_at_limit += data["content"]
        elif kind == "message.reset":
            self._said_at_limit = ""
        elif kind == "run.waiting_for_input":
            self._asked_call = data.get("tool_call_id")
            if data["kind"] == call_approvals.KIND and self._asked_call in self._calls:
                self._calls[self._asked_call].edited = None  # they do not fit, if there were any
        elif kind == "run.input_received" and self._asked_call in self._calls:
            # A person may have changed the arguments of the call that was to be approved.
            if (edited := call_approvals.edited(data["content"])) is not None:
                self._calls[self._asked_call].edited = edited
        elif kind in ("run.cost", "run.completed", "run.failed", "run.cancelled"):
            self._usage = data["usage"]

    def _end(self, event: Mapping[str, Any]) -> Iterator[bytes]:
        yield from self._output.interrupt()
        data = event["data"]
        match event["type"]:
            case "run.completed":
                reason = self._incomplete_reason(data["stop_reason"])
                changes: Object = {"status": "completed" if reason is None else "incomplete"}
                if reason is not None:
                    changes["incomplete_details"] = {"reason": reason}
            case "run.failed":
                error = error_object(data["error"])
                changes = {"status": "failed", "error": error}
                # As OpenAI's: many clients take `response.failed` alone for the end of an answer.
                # Its SDKs read the object within it, its description has the fields of the event.
                flat = {name: error[name] for name in ("code", "message", "param")}
                yield self._output.frame("error", **flat, error=error)
            case _:
                changes = {"status": "cancelled"}
        # There is no event of its own for a response that was cancelled.
        status = changes["status"]
        kind = "incomplete" if status == "cancelled" else status
        yield self._finish(event, kind, **changes)

    def _incomplete_reason(self, stop_reason: str) -> str | None:
        if stop_reason in _ANSWERED:
            said = self._said_at_limit.strip()
            return None if said and said != no_answer(stop_reason) else stop_reason
        return _INCOMPLETE.get(stop_reason)

    def _finish(self, event: Mapping[str, Any], kind: str, **changes: Any) -> bytes:
        if changes["status"] == "completed":
            changes["completed_at"] = _time(event)
        usage = usage_object(self._usage, self._usage_before)
        self._changes |= {**changes, "usage": usage}
        self.is_over = True
        return self._lifecycle(kind)

    def _ask(self, event: Mapping[str, Any]) -> Iterator[bytes]:
        """End the response with what the run asks its client."""
        data = event["data"]
        self.asked = event
        yield from self._output.close_turn()
        yield from self._output.suspend_tools()
        match data["kind"]:
            case "tool_results":
                for number, call in enumerate(self.client_calls(data), 1):
                    known = self._calls.get(call["tool_call_id"])
                    seq = f"{event['seq']}_{number}" if known is None else known.seq
                    shown_id = self._shown_id(call["tool_call_id"])
                    yield from self._output.function_call(seq, shown_id, call)
            case "tool_confirmation" if data["tool_call_id"] in self._calls:
                to_approve = self._calls[data["tool_call_id"]]
                yield from self._output.approval(event["seq"], to_approve)
            case _:  # also the approval of a call whose event is lost: its prompt names the tool
                yield from self._output.question(event["seq"], _question(data))
        yield self._finish(event, "completed", status="completed")

    def _shown_id(self, call_id: str) -> str:
        """Return the `call_id` of a call; the run's own id if the event that made it is lost."""
        call = self._calls.get(call_id)
        if call is None:
            return call_id
        return responses_ids.call_id(ItemId(self._facts.run_id, call.seq))

    def _lifecycle(self, kind: str) -> bytes:
        return self._output.frame(f"response.{kind}", response=self.response())


def _question(data: Mapping[str, Any]) -> str:
    lines = [data["prompt"], *(f"- {option}" for option in data.get("options") or ())]
    if data.get("url"):
        lines.append(data["url"])
    return "\n".join(lines)


def _time(event: Mapping[str, Any]) -> int:
    return int(datetime.fromisoformat(event["created_at"]).timestamp())
