"""A run as the chunks of the AI SDK's UI message stream, protocol v1 (`ai` 5 to 7).

One run is one assistant message with the run's id. Where the run waits for its client, for an
approval or the result of a client tool, the client expects its response to end, and sends a new
request with the answer: so a stream covers the run from one such wait to the next one.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from arkloop.api.protocols import call_ids
from arkloop.api.protocols.ai_sdk_chunks import NOTICES, Chunk, approval_reply, call_input, notice
from arkloop.api.protocols.ai_sdk_dialects import DEFAULT, Dialect, client_calls, ends_response
from arkloop.api.protocols.ai_sdk_outputs import JSON, value_of
from arkloop.shared.agents import call_approvals
from arkloop.shared.events.open_turn import OpenTurn
from arkloop.shared.runs import pending_calls

DONE = b"data: [DONE]\n\n"
#: Stop reasons that the AI SDK has a word for.
_FINISH_REASONS = {"stop": "stop", "length": "length", "content_filter": "content-filter"}
_ASK_USER = "ask_user"
#: Of the outputs of a client's calls, since the inputs of a replay say otherwise.
_BY_CLIENT = {"providerExecuted": False}
#: What a page shows at calls that have no result when the run ends so.
_UNFINISHED = {"cancelled": "The run was stopped.", "failed": "The run failed."}
_FORGOTTEN = "The run ended without a result of this call."  # by an agent worker
#: Where most streams have nothing: a set of its own takes 216 bytes.
_NONE: frozenset[str] = frozenset()


@dataclass(slots=True)
class AiSdkProjection:
    """The fold of one run's events into chunks.

    The stream begins after the wait with the number `after`, 0 for the run's start, and passes the
    waits up to the number `until`, which have been answered; it ends at the next one. With None it
    passes all, for a message that is only shown.

    `has_bare_ids` leaves the ids of calls as they are in the run, for a page that got them so from
    the release before. `early_calls` are those, by the ids of the run, whose results the client has
    sent with replies, before it was asked for them.
    """

    run_id: UUID
    dialect: Dialect = DEFAULT
    after: int = 0
    until: int | None = 0
    has_bare_ids: bool = False
    early_calls: frozenset[str] = _NONE
    is_over: bool = False
    _waits: int = 0
    _is_begun: bool = False
    _is_step_open: bool = False
    #: The model turn of the step is complete: what is streamed next belongs to another step.
    _is_turn_done: bool = False
    _has_calls: bool = False
    #: What stays of a step that a wait has closed in mid-turn, if the turn is void: its question.
    _kept: tuple[Chunk, ...] | None = None
    _open_turn: OpenTurn = field(default_factory=OpenTurn)
    #: What the turn has streamed of its text, until it is complete.
    _text: list[str] = field(default_factory=list)
    #: The part that is being streamed: `text` or `reasoning`, and its id.
    _part: tuple[str, str] | None = None
    #: Names of the calls of the turn, and ids of those whose arguments are being streamed.
    _names: dict[str, str] = field(default_factory=dict)
    _inputs: frozenset[str] = _NONE
    #: Calls by the id of the request for their approval.
    _asked: dict[str, str] = field(default_factory=dict)
    _denied: frozenset[str] = _NONE
    #: Calls whose request for approval the stream has left out.
    _unasked: frozenset[str] = _NONE
    #: Calls whose results the client sends.
    _client_calls: frozenset[str] = _NONE
    #: Calls that have no result yet, by the ids that the page has.
    _open_calls: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    #: Those of client tools that the page has without their inputs.
    _withheld: frozenset[str] = _NONE
    #: Those to which a person has given other arguments, with the ones that the run proposed.
    _proposed: dict[str, Mapping[str, Any]] = field(default_factory=dict)

    def frames(self, event: Mapping[str, Any]) -> Iterator[bytes]:
        for chunk in self.chunks(event):
            yield f"data: {JSON.encode(chunk)}\n\n".encode()

    def closing(self) -> list[bytes]:
        return [DONE]

    def chunks(self, event: Mapping[str, Any]) -> Iterator[Chunk]:
        """Yield the chunks that become of the event, if the stream covers it."""
        if not self._is_begun and self._waits >= self.after:
            self._is_begun = True
            about = {"arkloop": {"run_id": str(self.run_id)}}
            yield {"type": "start", "messageId": str(self.run_id), "messageMetadata": about}
        is_covered = self._is_begun
        for one in self._open_turn.add(event):
            for chunk in self._of(one["type"], one["seq"], one["data"]):
                if is_covered:
                    yield chunk

    def _of(self, kind: str, seq: int, data: Mapping[str, Any]) -> Iterator[Chunk]:
        match kind:
            case "message.delta":
                yield from self._delta("text", seq, data["content"])
            case "message.thinking":
                yield from self._delta("reasoning", seq, data["content"])
            case "tool.call.delta":
                yield from self._input_delta(data)
            case "message.reset":
                yield from self._reset(data)
            case "message.completed":
                yield from self._turn(seq, data)
            case "tool.call":
                yield from self._call(data)
            case "tool.result":
                yield from self._result(data)
            case "run.waiting_for_input":
                yield from self._wait(data)
            case "run.input_received":
                yield from self._answer(data)
            case "run.completed" | "run.failed" | "run.cancelled":
                yield from self._end(kind.removeprefix("run."), data)
            case _ if kind in NOTICES:
                yield notice(kind, call_ids.with_ids(data, self._id))

    # ---- a model turn ----

    def _delta(self, kind: str, seq: int, text: str) -> Iterator[Chunk]:
        yield from self._step()
        if self._part is None or self._part[0] != kind:
            yield from self._close_part()
            self._part = (kind, f"{kind}-{seq}")
            yield {"type": f"{kind}-start", "id": self._part[1]}
        if kind == "text":
            self._text.append(text)
        yield {"type": f"{kind}-delta", "id": self._part[1], "delta": text}

    def _input_delta(self, data: Mapping[str, Any]) -> Iterator[Chunk]:
        yield from self._step()
        yield from self._close_part()
        yield from self._begin_input(data)
        call_id, delta = self._id(data["tool_call_id"]), data["arguments_delta"]
        yield {"type": "tool-input-delta", "toolCallId": call_id, "inputTextDelta": delta}

    def _begin_input(self, data: Mapping[str, Any]) -> Iterator[Chunk]:
        call_id = self._id(data["tool_call_id"])
        if call_id not in self._inputs:
            self._inputs |= {call_id}
            self._names[call_id] = data["name"]
            call = {"toolCallId": call_id, "toolName": data["name"], "providerExecuted": True}
            yield {"type": "tool-input-start", **call}

    def _reset(self, data: Mapping[str, Any]) -> Iterator[Chunk]:
        """Void what the turn has streamed; a client that cannot is sent new parts after it."""
        if self._kept is None and (not self._is_step_open or self._is_turn_done):
            return
        if self.dialect.resets:
            yield {"type": "reset-step"}
            yield from self._kept or ()
        else:
            yield from self._close_part()
            yield from self._end_inputs("The model started over.")
            yield {"type": "data-arkloop-reset", "data": {"reason": data["reason"]}}
        self._part = self._kept = None
        self._text.clear()
        self._inputs = _NONE

    def _turn(self, seq: int, data: Mapping[str, Any]) -> Iterator[Chunk]:
        yield from self._step()
        if self._text and "".join(self._text) != data["content"]:  # of an agent worker
            yield from self._reset({"reason": "agent"})
        if data["content"] and not self._text:
            yield from self._delta("text", seq, data["content"])
        self._text.clear()
        yield from self._close_part()
        self._is_turn_done = True

    def _step(self) -> Iterator[Chunk]:
        """Begin a step, unless that of an incomplete turn is open."""
        if self._is_step_open and self._is_turn_done:
            yield from self._end_step()
        if not self._is_step_open:
            self._is_step_open = True
            self._is_turn_done = self._has_calls = False
            self._kept = None
            self._text.clear()
            self._names.clear()
            self._inputs = _NONE
            yield {"type": "start-step"}

    def _end_step(self) -> Iterator[Chunk]:
        yield from self._close_part()
        if self._is_step_open:
            self._is_step_open = False
            yield {"type": "finish-step"}

    def _close_part(self) -> Iterator[Chunk]:
        if self._part is not None:
            kind, part_id = self._part
            self._part = None
            yield {"type": f"{kind}-end", "id": part_id}

    def _end_inputs(self, why: str) -> Iterator[Chunk]:
        """End calls whose arguments stay incomplete; 5.0.0 does not know `tool-input-error`."""
        for call_id in sorted(self._inputs):
            yield {"type": "tool-output-error", "toolCallId": call_id, "errorText": why}
        self._inputs = _NONE

    # ---- calls ----

    def _call(self, data: Mapping[str, Any]) -> Iterator[Chunk]:
        if not self._is_step_open:
            yield from self._step()
        yield from self._close_part()
        self._is_turn_done = self._has_calls = True
        call_id = self._id(data["tool_call_id"])
        self._open_calls[call_id] = data
        if data.get("result_from") == "client" or data["name"] == _ASK_USER:
            # A page that executes it now loses the output once its wait sends the input again.
            self._withheld |= {call_id}
            if call_id in self._inputs:  # one chunk for each call, as clients resume by their count
                yield {"type": "tool-input-delta", "toolCallId": call_id, "inputTextDelta": ""}
            yield from self._begin_input(data)
        else:
            yield call_input(call_id, data)
        self._inputs -= {call_id}
        self._names[call_id] = data["name"]

    def _show_input(self, call_id: str) -> Iterator[Chunk]:
        if call_id in self._withheld:
            self._withheld -= {call_id}
            yield call_input(call_id, self._open_calls[call_id])

    def _change(self, call_id: str, call: Mapping[str, Any]) -> Iterator[Chunk]:
        """Replace an open call by the same one with other arguments, and show these.

        A client that gets them in a later step than the call takes them for another call.
        """
        self._open_calls[call_id] = call
        if call_id in self._names and call_id not in self._withheld:
            yield call_input(call_id, call)

    def _result(self, data: Mapping[str, Any]) -> Iterator[Chunk]:
        call_id, output = self._id(data["tool_call_id"]), data["output"]
        yield from self._show_input(call_id)
        self._open_calls.pop(call_id, None)
        is_by_client = call_id in self._client_calls or data["tool_call_id"] in self.early_calls
        call: Chunk = {"toolCallId": call_id, **(_BY_CLIENT if is_by_client else {})}
        if call_id in self._denied and data["is_error"]:
            yield {"type": "tool-output-denied", "toolCallId": call_id}
        elif data["is_error"]:
            yield {"type": "tool-output-error", **call, "errorText": output}
        else:
            value = value_of(output) if is_by_client else output
            yield {"type": "tool-output-available", **call, "output": value}
        for file in data.get("files") or ():
            shown = {"tool_call_id": call_id, **file}
            yield {"type": "data-arkloop-file", "id": file["file_id"], "data": shown}

    def _id(self, tool_call_id: str) -> str:
        return tool_call_id if self.has_bare_ids else call_ids.shown(self.run_id, tool_call_id)

    # ---- waits ----

    def _wait(self, data: Mapping[str, Any]) -> Iterator[Chunk]:
        if data["kind"] == pending_calls.KIND and not client_calls(data):
            return
        if is_approval := data["kind"] == call_approvals.KIND:
            call_id = self._asked[data["request_id"]] = self._id(data["tool_call_id"])
            if (call := self._proposed.pop(call_id, None)) is not None:
                yield from self._change(call_id, call)  # those of the person do not fit the tool
        if not ends_response(data, self.dialect):
            request = {"run_id": str(self.run_id), **call_ids.with_ids(data, self._id)}
            if is_approval:
                self._unasked |= {call_id}
                if call_id in self._withheld:  # not shown its input: a page may execute that
                    request["arguments"] = self._open_calls[call_id]["arguments"]
            yield {"type": "data-arkloop-input", "id": data["request_id"], "data": request}
            return
        # A custom agent may ask in mid-turn. It begins that turn anew once there is an answer, but
        # until then the person needs the text.
        is_in_turn = self._is_step_open and not self._is_turn_done and not self.has_bare_ids
        self._kept = () if is_in_turn else None
        if is_approval:
            yield from self._show_input(call_id)
            # A client that is not sent the response would show an answered request as an open one.
            if self.dialect.approval_responses or not self._is_answered:
                request = {"approvalId": data["request_id"], "toolCallId": call_id}
                yield {"type": "tool-approval-request", **request}
            elif self._is_begun:
                self._unasked |= {call_id}
        elif data["kind"] == "question":
            yield from self._question(data)
        for call in client_calls(data):
            yield from self._client_call(self._id(call["tool_call_id"]), call)
        yield from self._end_step()
        self._waits += 1
        if self.until is not None and self._waits > self.until:
            self.is_over = True
            yield self._finish("tool-calls", {"status": "waiting_for_input"})

    @property
    def _is_answered(self) -> bool:
        """True in a wait that was answered before the stream began."""
        return self.until is not None and self._waits < self.until

    def _question(self, data: Mapping[str, Any]) -> Iterator[Chunk]:
        """Have the client answer the call of `ask_user`.

        A custom agent's question has none, but a key, which may be the id of another call: it is
        shown as a call by the id of the request.
        """
        asked = {"question": data["prompt"]}
        if data.get("options") is not None:
            asked["options"] = data["options"]
        call = {"tool_call_id": data["request_id"], "name": _ASK_USER, "arguments": asked}
        call_id = self._id(data["tool_call_id"])
        if self._names.get(call_id) != _ASK_USER:
            if not self._is_step_open:
                yield from self._step()
            yield from self._close_part()
            self._is_turn_done = self._has_calls = True
            call_id = self._id(data["request_id"])
            if not self.has_bare_ids:  # as in `_answer`
                self._open_calls[call_id] = call
        if self._kept is not None:
            self._kept += (call_input(call_id, call),)
        yield from self._client_call(call_id, call)

    def _client_call(self, call_id: str, call: Mapping[str, Any]) -> Iterator[Chunk]:
        self._client_calls |= {call_id}
        self._withheld -= {call_id}
        # `onToolCall` gets each call of the client: not again one that has its result already.
        yield call_input(call_id, call, by_client=not self._is_answered)

    def _answer(self, data: Mapping[str, Any]) -> Iterator[Chunk]:
        request_id = data["request_id"]
        self._open_calls.pop(self._id(request_id), None)
        # A page of the release before has no call of this id, and its answer already.
        if (own := self._id(request_id)) in self._client_calls and not self.has_bare_ids:
            output = {"toolCallId": own, **_BY_CLIENT, "output": value_of(data["content"])}
            answer = {"type": "tool-output-available", **output}
            if self._kept is not None:
                self._kept += (answer,)
            yield answer
        if (call_id := self._asked.pop(request_id, None)) is None:
            return
        if (reply := call_approvals.last_reply([data["content"]])) is None:
            return
        if reply.arguments is not None and (call := self._open_calls.get(call_id)) is not None:
            self._proposed[call_id] = call
            yield from self._change(call_id, {**call, "arguments": reply.arguments})
        # The schema of `ai` 6 has the reply in a denied call: such a call fails where it lacks one.
        is_asked = call_id not in self._unasked
        if not reply.approved and is_asked:
            self._denied |= {call_id}
        if self.dialect.approval_responses and is_asked:
            yield approval_reply(request_id, reply)

    # ---- the end ----

    def _end(self, status: str, data: Mapping[str, Any]) -> Iterator[Chunk]:
        has_calls = self._has_calls or bool(self._inputs)
        yield from self._end_calls(_UNFINISHED.get(status, _FORGOTTEN))
        yield from self._end_step()
        about = {"status": status, "usage": data["usage"], "cost_usd": data["cost_usd"]}
        if status == "completed":
            if (output := data.get("output")) is not None:
                yield {"type": "data-arkloop-output", "id": "output", "data": output}
            about["stop_reason"] = data["stop_reason"]
            yield self._finish(_FINISH_REASONS.get(data["stop_reason"], "other"), about)
        elif status == "failed":
            about["error"] = data["error"]
            yield {"type": "error", "errorText": data["error"]["message"]}
            yield self._finish("error", about)
        else:
            yield {"type": "abort"}
            if has_calls:
                # Else `sendAutomaticallyWhen` finds a last step with all results, and sends again.
                yield {"type": "start-step"}
                yield {"type": "finish-step"}
            yield self._finish("other", about)

    def _end_calls(self, why: str) -> Iterator[Chunk]:
        """End what has no result: pages send a response to an approval until its call has one."""
        for request_id in list(self._asked):
            denial = json.dumps({"decision": "deny", "reason": why})
            yield from self._answer({"request_id": request_id, "content": denial})
        for call in list(self._open_calls.values()):
            yield from self._result({**call, "output": why, "is_error": True})
        yield from self._end_inputs(why)

    def _finish(self, reason: str, about: Mapping[str, Any]) -> Chunk:
        known = {"finishReason": reason} if self.dialect.finish_reasons else {}
        shown = {"arkloop": {"run_id": str(self.run_id), **about}}
        return {"type": "finish", **known, "messageMetadata": shown}
