"""Answers in a submitted assistant message: to approvals, questions, and calls of client tools."""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from uuid import UUID

from arkloop.api.http import audited
from arkloop.api.protocols import call_ids
from arkloop.api.protocols.ai_sdk_dialects import Dialect, client_calls, ends_response
from arkloop.api.protocols.ai_sdk_outputs import text_of
from arkloop.shared.actors import Actor
from arkloop.shared.errors import InvalidRequest, NotActive, NotWaiting
from arkloop.shared.events import event_log
from arkloop.shared.events.stored_events import StoredEvent
from arkloop.shared.runs import commands
from arkloop.shared.runs.pending_calls import CallResult
from arkloop.shared.storage.connections import Transaction

Data = Mapping[str, Any]


class Waits:
    """The waits of a run that end a response, in order; `is_open`: the last one has no answer."""

    def __init__(self, events: Iterable[StoredEvent], last_seq: int, dialect: Dialect) -> None:
        asked = [(event.seq, event_log.data_of(event.payload)) for event in events]
        ending = [(seq, data) for seq, data in asked if ends_response(data, dialect)]
        self.count = len(ending)
        self.last: Data | None = ending[-1][1] if ending else None
        self.is_open = bool(ending) and ending[-1][0] == last_seq

    @property
    def answered(self) -> int:
        return self.count - self.is_open


def answer(
    tx: Transaction, actor: Actor, run_id: UUID, waits: Waits, parts: Iterable[Data]
) -> None:
    """Store what the parts say to the last wait; an answer that it has already changes nothing.

    Nor does one that comes too late, unless the wait has ended with another answer.

    Raises:
        NotWaiting: the run has asked nothing, or the parts do not answer it.
        StaleInput, ToolResultConflict: it has another answer.
        RunNotFound, Forbidden, NotActive, InvalidRequest
    """
    if waits.last is None:
        raise NotWaiting("The run has not asked for anything.")
    calls = {call_ids.stored(run_id, part["toolCallId"]): part for part in parts if _is_call(part)}
    if waits.last["kind"] == "tool_results":
        answered = [id_ for id_ in _ids(waits.last) if _has_output(calls.get(id_))]
        given = [_result(id_, calls[id_]) for id_ in answered]
        if not given:
            raise NotWaiting("The message has no results of the calls that the run waits for.")
        with _late_ones_ignored(waits):
            # `useChat` sends them once each call has one.
            commands.give_results(tx, actor, run_id, given, skips_late=True)
        return
    content = _reply(waits.last, calls)
    with _late_ones_ignored(waits):
        audited.answer(tx, run_id, content, UUID(waits.last["request_id"]))


def has_bare_ids(waits: Waits, parts: Iterable[Data]) -> bool:
    """Return whether the page has the calls of the last wait by the ids that the run has."""
    last = waits.last or {}
    asked = {last.get("request_id"), last.get("tool_call_id"), *_ids(last)}
    return any(part["toolCallId"] in asked for part in parts if _is_call(part))


@contextmanager
def _late_ones_ignored(waits: Waits) -> Iterator[None]:
    try:
        yield
    except (NotActive, NotWaiting):
        if waits.is_open:
            raise


def _reply(wait: Data, calls: Mapping[str, Data]) -> str:
    part = calls.get(wait["tool_call_id"])
    if wait["kind"] == "question":
        if part is not None and part.get("providerExecuted"):
            part = None  # the step of a custom agent that the question is about
        part = calls.get(wait["request_id"], part)
        if part is None or not _has_output(part):
            raise NotWaiting("The message has no answer to the question of the run.")
        return _output(part)
    approval = (part or {}).get("approval")
    # In a later state than `approval-responded` it has been answered before.
    if (
        not isinstance(approval, dict)
        or approval.get("id") != wait["request_id"]
        or not isinstance(approval.get("approved"), bool)
    ):
        raise NotWaiting("The message has no response to the approval that the run waits for.")
    if approval["approved"]:
        return json.dumps({"decision": "approve"})
    reason = approval.get("reason")
    if reason is not None and not isinstance(reason, str):
        raise InvalidRequest(messages=["the `reason` of an approval must be a string"])
    return json.dumps({"decision": "deny", "reason": reason or ""})


def _ids(wait: Data) -> list[str]:
    return [call["tool_call_id"] for call in client_calls(wait)]


def _is_call(part: Data) -> bool:
    return isinstance(part.get("toolCallId"), str)


def _has_output(part: Data | None) -> bool:
    return part is not None and part.get("state") in ("output-available", "output-error")


def _result(tool_call_id: str, part: Data) -> CallResult:
    is_error = part["state"] == "output-error"
    return CallResult(tool_call_id=tool_call_id, output=_output(part), is_error=is_error)


def _output(part: Data) -> str:
    is_error = part["state"] == "output-error"
    return text_of(part.get("errorText", "") if is_error else part.get("output"))
