"""Messages of the role `tool` that are no results of their calls.

`useInterrupt` of CopilotKit adds one with each reply to the approval of a call: it repeats the
reply, under the id of the call, and is sent with all later requests. Pages also execute calls that
their run does not make after that.
"""

from dataclasses import replace
from itertools import takewhile
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, RowMapping

from arkloop.api.protocols import call_ids
from arkloop.api.protocols.agui_interrupts import APPROVAL_FIELDS, content_of
from arkloop.api.protocols.agui_messages import Message
from arkloop.api.protocols.agui_requests import AguiRequest, text_of
from arkloop.shared import json_text
from arkloop.shared.agents import approvals, call_approvals
from arkloop.shared.agents.approvals import ApprovalReply
from arkloop.shared.errors import InvalidRequest
from arkloop.shared.events import event_log
from arkloop.shared.runs import pending_calls, thread_entries

_CANCELLED = {"status": "cancelled"}
#: One of these is in each reply: results may be long, and need not be read.
_WORDS = ('"approved"', '"cancelled"')


def own(wanted: AguiRequest, call_id: str) -> frozenset[int]:
    """Return the places of the tool messages that repeat the request's reply about this call."""
    [entry] = wanted.resume
    payload = _CANCELLED if entry.status == "cancelled" else entry.payload
    return frozenset(
        place
        for place, message in enumerate(wanted.messages)
        if message["role"] == "tool"
        and message["toolCallId"] == call_id
        and _object(message) == payload
    )


def earlier(sql: Connection, wanted: AguiRequest, thread_id: UUID) -> frozenset[int]:
    """Return the places of the tool messages that repeat replies which runs of the thread had."""
    suspects: dict[int, tuple[str, ApprovalReply]] = {}
    for place, message in enumerate(wanted.messages):
        if message["role"] == "tool" and (reply := _reply_of(message)) is not None:
            suspects[place] = message["toolCallId"], reply
    suspected = {call_id for call_id, _ in suspects.values()}
    run_ids = set(filter(None, map(call_ids.run_of, suspected)))
    if not run_ids:
        return frozenset()
    had: dict[str, list[ApprovalReply]] = {}
    for row in thread_entries.replies_of(sql, thread_id, run_ids):
        data = event_log.data_of(row.payload)
        call_id = call_ids.shown(row.run_id, data.get("tool_call_id") or "")
        if data["kind"] == call_approvals.KIND and call_id in suspected:
            had.setdefault(call_id, []).append(approvals.read(row.content))
    return frozenset(place for place, (id_, reply) in suspects.items() if reply in had.get(id_, ()))


def not_kept(sql: Connection, wanted: AguiRequest, shown: RowMapping) -> frozenset[int]:
    """Return the places of the newest tool messages, if their results are not kept by their run.

    It is one before the run that is shown. It has ended before it made the calls, or the reply that
    they came with was too late.
    """
    newest = takewhile(lambda message: message["role"] != "assistant", reversed(wanted.messages))
    ids = {message["toolCallId"] for message in newest if message["role"] == "tool"}
    run_ids = set(filter(None, map(call_ids.run_of, ids))) - {shown["id"]}
    if len(run_ids) != 1:  # they are of one turn
        return frozenset()
    [run_id] = run_ids
    own = {id_: call_ids.stored(run_id, id_) for id_ in ids if call_ids.run_of(id_) == run_id}
    kept = pending_calls.kept(sql, shown["thread_id"], run_id, own.values())
    lost = {id_ for id_, stored_id in own.items() if stored_id not in kept}
    sent = enumerate(wanted.messages)
    return frozenset(place for place, message in sent if message.get("toolCallId") in lost)


def without(wanted: AguiRequest, places: frozenset[int]) -> AguiRequest:
    """Return the request without the messages at these places."""
    if not places:
        return wanted
    left = [message for place, message in enumerate(wanted.messages) if place not in places]
    return replace(wanted, messages=left)


def _reply_of(message: Message) -> ApprovalReply | None:
    """Return the reply that a message may repeat, None if it has anything else."""
    payload = _object(message)
    status = "cancelled" if payload == _CANCELLED else "resolved"
    if status == "resolved" and not payload.keys() <= APPROVAL_FIELDS:
        return None
    try:
        return approvals.read(content_of({"kind": call_approvals.KIND}, status, payload))
    except InvalidRequest:
        return None


def _object(message: Message) -> dict[str, Any]:
    """Return the object that a message has as JSON, if it may be a reply; else an empty one."""
    text = text_of(message) or ""
    if not any(word in text for word in _WORDS):
        return {}
    try:
        found = json_text.loads(text.encode(), max_values=None)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
