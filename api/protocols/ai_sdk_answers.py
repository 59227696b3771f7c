"""Answers in a submitted assistant message: to approvals, questions, and calls of client tools."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, RowMapping

from arkloop.api.http import audited
from arkloop.api.protocols import call_ids
from arkloop.api.protocols.ai_sdk_dialects import Dialect, client_calls, ends_response
from arkloop.api.protocols.ai_sdk_outputs import text_of
from arkloop.api.protocols.client_tool_names import client_tool_names
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
        self.asked: list[Data] = [data for _, data in ending]
        self.is_open = bool(ending) and ending[-1][0] == last_seq

    @property
    def count(self) -> int:
        return len(self.asked)

    @property
    def answered(self) -> int:
        return self.count - self.is_open

    def is_seen(self, run_id: UUID, seen: str) -> bool:
        """Return whether a page has the run as far as it goes, which has seen this answer.

        It may also name the call or approval that the page shows as open, behind the answer's id:
        then the run has to wait for that.
        """
        answer_id, _, open_id = seen.partition(".")
        if answer_id != str(run_id):
            return False
        return not open_id or (
            self.is_open and call_ids.stored(run_id, open_id) in _names(self.asked[-1])
        )


def answer(
    tx: Transaction, actor: Actor, run: RowMapping, waits: Waits, parts: Sequence[Data]
) -> int:
    """Store what the parts say to a wait; returns its number, from 1 on.

    It is the last wait, or an earlier one if the page has not seen what the run asked after it. An
    answer that the wait has already changes nothing. Nor does one that comes too late, unless the
    wait has ended with another answer. Outputs of client tools that come with a reply count once
    the run makes their calls: pages execute these as soon as they are shown them.

    Raises:
        NotWaiting: the run has asked nothing, or the parts do not answer it.
        StaleInput, ToolResultConflict: it has another answer.
        RunNotFound, Forbidden, NotActive, InvalidRequest
    """
    run_id = run["id"]
    calls = {call_ids.stored(run_id, part["toolCallId"]): part for part in parts if _is_call(part)}
    number = _number_of_answered(waits, calls)
    wait, is_open = waits.asked[number - 1], waits.is_open and number == waits.count
    if wait["kind"] == "tool_results":
        given = [_result(id_, calls[id_]) for id_ in _ids(wait) if _has_output(calls.get(id_))]
        with _late_ones_ignored(is_open):
            # `useChat` sends them once each call has one.
            commands.give_results(tx, actor, run_id, given, skips_late=True)
    else:
        content = _reply(wait, calls)
        with _late_ones_ignored(is_open):
            early = _early_results(tx.sql, run, calls)
            audited.answer(tx, run_id, content, UUID(wait["request_id"]), early)
    return number


def has_bare_ids(wait: Data, parts: Iterable[Data]) -> bool:
    """Return whether the page has the calls of the wait by the ids that the run has."""
    asked = _names(wait)
    return any(part["toolCallId"] in asked for part in parts if _is_call(part))


def _number_of_answered(waits: Waits, calls: Mapping[str, Data]) -> int:
    """Return the number of the last wait that the calls answer, if none after it is among them.

    Raises: NotWaiting
    """
    refusal = NotWaiting("The run has not asked for anything.")
    for number in range(waits.count, 0, -1):
        wait = waits.asked[number - 1]
        try:
            _check_answered(wait, calls)
        except NotWaiting as error:
            if number == waits.count:
                refusal = error
            if _is_seen(wait, calls):
                break
        else:
            return number
    raise refusal


def _check_answered(wait: Data, calls: Mapping[str, Data]) -> None:
    """Check that the calls answer the wait. Raises: NotWaiting, InvalidRequest."""
    if wait["kind"] != "tool_results":
        _reply(wait, calls)
    elif not any(_has_output(calls.get(id_)) for id_ in _ids(wait)):
        raise NotWaiting("The message has no results of the calls that the run waits for.")


def _is_seen(wait: Data, calls: Mapping[str, Data]) -> bool:
    """Return whether a page that has not answered the wait has been asked."""
    if wait["kind"] == "tool_confirmation":
        approval = calls.get(wait["tool_call_id"], {}).get("approval")
        return isinstance(approval, dict) and approval.get("id") == wait["request_id"]
    # A client's calls are shown before, as if the service executed them.
    ids = _ids(wait) or [wait["request_id"], wait["tool_call_id"]]
    return any(id_ in calls and not calls[id_].get("providerExecuted") for id_ in ids)


@contextmanager
def _late_ones_ignored(is_open: bool) -> Iterator[None]:
    try:
        yield
    except (NotActive, NotWaiting):
        if is_open:
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


def _early_results(sql: Connection, run: RowMapping, calls: Mapping[str, Data]) -> list[CallResult]:
    """Return the outputs of client tools that the run has called in its last turn.

    The name of a tool is that of the run's call: a page may have any.
    """
    given = {id_: part for id_, part in calls.items() if _has_output(part)}
    names = client_tool_names(run, sql) if given else frozenset()
    made = event_log.turn_calls(sql, run["id"]) if names else []
    ids = [call["tool_call_id"] for call in made if call["name"] in names]
    return [_result(id_, given[id_]) for id_ in ids if id_ in given]


def _ids(wait: Data) -> list[str]:
    return [call["tool_call_id"] for call in client_calls(wait)]


def _names(wait: Data) -> set[str | None]:
    """Return the ids of the request and of its calls."""
    return {wait.get("request_id"), wait.get("tool_call_id"), *_ids(wait)}


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
