"""The calls of a custom agent that people have approved, in the ledger from their beginning on.

Their events are older than the approval, so that only the ledger says whether they have begun.
"""

import json
from collections.abc import Collection, Mapping
from typing import Any

from sqlalchemy import func, select

from arkloop.shared.agents import call_approvals
from arkloop.shared.agents.approvals import ApprovalReply
from arkloop.shared.errors import InvalidRequest
from arkloop.shared.events import event_log, types
from arkloop.shared.runs import claims, unbegun_calls
from arkloop.shared.runs.held_runs import HeldRun
from arkloop.shared.storage.tables.events import run_events

#: Of arguments in `pending_input`; the event has all of them.
MAX_SHOWN_CHARACTERS = 8192
#: The id of a call in the payload of its events, as JSON: their data begin with it.
_ID = r'"data":\{"tool_call_id":("(?:[^"\\]|\\.)*")'


def begin(run: HeldRun, call_ids: Collection[str]) -> None:
    """Record that an agent worker makes these calls now, which an earlier execution recorded.

    A repeated request has no effect.

    Raises:
        InvalidRequest: the run has no such call without a result, or it has begun before.
    """
    known = open_of(run, call_ids) if call_ids else {}
    for call_id in call_ids:
        if call_id not in known:
            raise _not_open(call_id)
        if not claims.begin_tool_call(run.tx, run.claim(), call_id):
            raise InvalidRequest(tool_call_id=[f"{call_id!r} has begun under an earlier fence"])


def keep_unbegun(run: HeldRun, call_ids: Collection[str]) -> None:
    """Record that an agent worker ends its execution before it has begun these calls.

    Raises:
        InvalidRequest: the run has no such call without a result.
    """
    known = open_of(run, call_ids) if call_ids else {}
    for call_id in call_ids:
        if call_id not in known:
            raise _not_open(call_id)
    unbegun_calls.keep(run.tx, run.claim(), call_ids)


def find(run: HeldRun, call_id: str) -> dict[str, Any]:
    """Return the data of the call's `tool.call`. Raises: InvalidRequest: it is not open."""
    known = open_of(run, [call_id])
    if call_id not in known:
        raise _not_open(call_id)
    return known[call_id]


def all_open(run: HeldRun) -> dict[str, dict[str, Any]]:
    """Return the data of the `tool.call` of each call of the run that has no result, in order.

    An agent may begin a turn while calls of earlier ones are open.
    """
    kinds = (types.ToolCallRequested.type, types.ToolResult.type)
    rows = run.tx.sql.execute(
        select(run_events.c.type, func.substring(run_events.c.payload, _ID).label("id"))
        .where(run_events.c.run_id == run.id, run_events.c.type.in_(kinds))
        .order_by(run_events.c.seq)
    )
    call_ids: set[str] = set()
    for row in rows:
        if row.type == types.ToolCallRequested.type:
            call_ids.add(json.loads(row.id))
        else:
            call_ids.discard(json.loads(row.id))
    return open_of(run, call_ids) if call_ids else {}


def open_of(run: HeldRun, call_ids: Collection[str]) -> dict[str, dict[str, Any]]:
    """Return the data of the `tool.call` of each of these calls that has no result."""
    kinds = (types.ToolCallRequested.type, types.ToolResult.type)
    # Postgres looks for the ids: the outputs of all other calls may be very long.
    rows = run.tx.sql.execute(
        select(run_events.c.type, run_events.c.payload)
        .where(
            run_events.c.run_id == run.id,
            run_events.c.type.in_(kinds),
            func.substring(run_events.c.payload, _ID).in_(map(json.dumps, call_ids)),
        )
        .order_by(run_events.c.seq)
    )
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        data = event_log.data_of(row.payload)
        if row.type == types.ToolCallRequested.type:
            found[data["tool_call_id"]] = data
        else:
            found.pop(data["tool_call_id"], None)
    return found


def recorded(run: HeldRun, call_ids: Collection[str], before_seq: int) -> set[str]:
    """Return those of these calls that the run has made before the event with this number."""
    if not call_ids:
        return set()
    id_ = func.substring(run_events.c.payload, _ID)
    found = run.tx.sql.scalars(
        select(id_).where(
            run_events.c.run_id == run.id,
            run_events.c.seq < before_seq,
            run_events.c.type == types.ToolCallRequested.type,
            id_.in_(map(json.dumps, call_ids)),
        )
    )
    return set(map(json.loads, found))


def replies(run: HeldRun, call_ids: Collection[str]) -> dict[str, ApprovalReply | None]:
    """Return the reply that counts to each of these calls about which a person was asked.

    None: there is no clear one yet.
    """
    kinds = (types.RunWaitingForInput.type, types.RunInputReceived.type)
    payloads = run.tx.sql.scalars(
        select(run_events.c.payload)
        .where(run_events.c.run_id == run.id, run_events.c.type.in_(kinds))
        .order_by(run_events.c.seq)
    )
    asked: dict[str, str] = {}
    contents: dict[str, list[str]] = {}
    for data in map(event_log.data_of, payloads):
        if data.get("kind") == call_approvals.KIND and data.get("tool_call_id") in call_ids:
            asked[data["request_id"]] = data["tool_call_id"]
            contents.setdefault(data["tool_call_id"], [])
        elif "content" in data and (call_id := asked.get(data["request_id"])) is not None:
            contents[call_id].append(data["content"])
    return {id_: call_approvals.last_reply(given) for id_, given in contents.items()}


def _not_open(call_id: str) -> InvalidRequest:
    return InvalidRequest(tool_call_id=[f"{call_id!r} is not a call of this run without a result"])


def shown(call: Mapping[str, Any]) -> dict[str, Any]:
    """Return the call as `pending_input` shows it, without arguments that are too long."""
    if len(json.dumps(call["arguments"])) > MAX_SHOWN_CHARACTERS:
        return {"tool_name": call["name"]}
    return {"tool_name": call["name"], "arguments": call["arguments"]}


def request(call: Mapping[str, Any], prompt: str | None) -> dict[str, Any]:
    """Return the fields of a request for approval that are its own."""
    return {
        "kind": call_approvals.KIND,
        "prompt": prompt or f"Allow the call of {call['name']}?",
        "tool_call_id": call["tool_call_id"],
        "options": list(call_approvals.OPTIONS),
    }
