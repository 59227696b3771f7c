"""The explanation of an executing run, by its worker's row, its newest events and tool calls."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, RowMapping, select

from arkloop.shared.events import types
from arkloop.shared.runs import live_workers
from arkloop.shared.runs.reasons import Action, Explanation, Reason, counted, shown
from arkloop.shared.storage.sql_files import statement
from arkloop.shared.storage.tables.runs import agent_runs, tool_calls, worker_calls, workers

#: A worker is silent when it is overdue by this part of a heartbeat; see `find_lost.sql`.
MISSED = 1.25
#: An agent worker renews its lease at least this often, as a part of the lease.
AGENT_MISSED = 2 / 3
#: How far back events are read. Pieces of text are no more than these before one that tells more,
#: or they are what the run does.
NEWEST = 200
#: `run.throttled` is repeated at the latest after this time: until then the run may still wait.
THROTTLED_SECONDS = 45.0
#: To read a thread and to list tools takes no longer, mostly; then the model is called.
START_SECONDS = 1.0

_RECENT = statement(__package__, "recent_events")
#: What says nothing about where the run is.
_SILENT = (types.ToolProgress.type, types.RunCost.type, types.RunSettingsDropped.type)
_THROTTLED = {
    "requests": (Reason.THROTTLED_REQUESTS, "route {route} has reached its requests per minute"),
    "tokens": (Reason.THROTTLED_TOKENS, "route {route} has reached its tokens per minute"),
    "provider": (Reason.THROTTLED_PROVIDER, "the provider of route {route} responded with 429"),
    "budget": (Reason.THROTTLED_BUDGET, "other runs have reserved what is left of a budget"),
    "memory": (
        Reason.THROTTLED_MEMORY,
        "long threads or files of other runs fill the worker's memory",
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """The settings that say when something is late, in seconds."""

    lease: float
    heartbeat: float
    sweep: float


@dataclass(frozen=True, slots=True)
class _Event:
    type: str
    at: datetime
    data: Mapping[str, Any]


def explain(sql: Connection, run: RowMapping, pace: Pace) -> Explanation:
    """Explain a run that a worker holds; `run` is its row, with `now`."""
    worker = sql.execute(
        select(workers.c.seen_at, workers.c.org_id).where(workers.c.id == run["owner"])
    ).one_or_none()
    events = _newest(sql, run)
    missed = pace.heartbeat * MISSED if run["agent"] is None else pace.lease * AGENT_MISSED
    seen_at = None if worker is None else worker.seen_at
    if seen_at is None or seen_at < run["now"] - timedelta(seconds=missed):
        others_alive = live_workers.of_service(sql, pace.heartbeat, but=run["owner"])
        return _silent(run, seen_at, pace, others_alive)
    if run["cancel_requested_at"] is not None:
        return _cancelling(run)
    if run["agent"] is not None:
        return _by_agent(sql, run, seen_at, pace)
    return _by_last(sql, run, events)


def _silent(
    run: RowMapping, seen_at: datetime | None, pace: Pace, others_alive: int
) -> Explanation:
    heard = "has no lease any more" if seen_at is None else f"was last heard at {shown(seen_at)}"
    is_cancelled = run["cancel_requested_at"] is not None
    what = "it is cancelled" if is_cancelled else "another worker resumes it"
    lost_at = None if seen_at is None else seen_at + timedelta(seconds=pace.lease)
    if others_alive == 0 and not is_cancelled:
        # A dead worker looks like one that is cut off as all others are.
        lost_at = None
        until = "as soon as one is alive: no worker of the service is"
    else:
        until = "with the next sweep" if lost_at is None else f"at {shown(lost_at)} at the latest"
    return Explanation(
        reason=Reason.WORKER_SILENT,
        sentence=f"The worker that executes it {heard}; if it stays silent, {what} {until}.",
        since=seen_at,
        action=Action.END if is_cancelled else Action.TAKE_OVER,
        at=lost_at,
        details={
            **({"worker_id": str(run["owner"])} if run["owner"] else {}),
            "workers_alive": others_alive,
            "attempt": run["attempt"],
            "crashes": run["crashes"],
        },
    )


def _cancelling(run: RowMapping) -> Explanation:
    at = run["cancel_requested_at"]
    by = run["cancel_requested_by"]
    return Explanation(
        reason=Reason.CANCELLING,
        sentence=f"A cancel was requested at {shown(at)}; its worker is ending it.",
        since=at,
        action=Action.END,
        details={} if by is None else {"cancelled_by_user_id": str(by)},
    )


def _by_agent(sql: Connection, run: RowMapping, seen_at: datetime, pace: Pace) -> Explanation:
    deadline = sql.scalar(select(agent_runs.c.deadline_at).where(agent_runs.c.run_id == run["id"]))
    details = {"agent": run["agent"], "worker_id": str(run["owner"]), "attempt": run["attempt"]}
    if deadline is not None:
        details["deadline_at"] = deadline
    return Explanation(
        reason=Reason.AGENT_EXECUTING,
        sentence=(
            f"A worker of the agent {run['agent']!r} executes it, last heard at {shown(seen_at)}."
        ),
        since=run["started_at"],
        action=Action.CONTINUE,
        details={**details, "lease_expires_at": seen_at + timedelta(seconds=pace.lease)},
    )


def _by_last(sql: Connection, run: RowMapping, events: Sequence[_Event]) -> Explanation:
    last = next((event for event in events if event.type not in _SILENT), None)
    details = {"route_id": run["route_id"], "attempt": run["attempt"]}
    if last is None:
        what = "A worker is starting it"
        return _calls_model(Reason.STARTING, what, run["started_at"], details)
    match last.type:
        case types.RunStarted.type | types.RunResumed.type if _is_recent(run, last, START_SECONDS):
            return _calls_model(Reason.STARTING, "A worker is starting it", last.at, details)
        case types.RunThrottled.type if _is_recent(run, last, THROTTLED_SECONDS):
            return _throttled(run, last, details)
        case types.RunRetrying.type if _is_recent(run, last, last.data["seconds"] + 1):
            return _retrying(last, details)
        case types.MessageDelta.type | types.MessageThinking.type | types.ToolCallDelta.type:
            what = "The model is writing its response"
            return _calls_model(Reason.MODEL_STREAMING, what, _turn_began(events), details)
        case types.ToolCallRequested.type:
            return _runs_tools(sql, run, events)
        case types.ToolResult.type if _open_calls(events):
            return _runs_tools(sql, run, events)
    if limit := next((e for e in events if e.type == types.RunLimitReached.type), None):
        details["stop_reason"] = limit.data["stop_reason"]
        what = f"{limit.data['message']} Its last model call, without tools, is being made"
        return _calls_model(Reason.MODEL_LAST_CALL, what, limit.at, details)
    if last.type == types.RunRetrying.type:
        details["try_number"] = last.data["try_number"]
    what = "Its worker is calling the model, which has sent nothing yet"
    return _calls_model(Reason.MODEL_CALLING, what, last.at, details)


def _calls_model(
    reason: Reason, what: str, since: datetime, details: Mapping[str, Any]
) -> Explanation:
    sentence = f"{what} (since {shown(since)})."
    return Explanation(
        reason=reason, sentence=sentence, since=since, action=Action.CONTINUE, details=details
    )


def _throttled(run: RowMapping, last: _Event, details: Mapping[str, Any]) -> Explanation:
    until = last.at + timedelta(seconds=last.data["seconds"])
    reason, why = _THROTTLED[last.data["reason"]]
    why = why.format(route=last.data["route_id"])
    is_over = until < run["now"]
    asks = "it asks again every few seconds" if is_over else f"it asks again at {shown(until)}"
    return Explanation(
        reason=reason,
        sentence=f"Waits since {shown(last.at)}: {why}; {asks}.",
        since=last.at,
        action=Action.RETRY,
        at=None if is_over else until,
        details={**details, "route_id": last.data["route_id"]},
    )


def _retrying(last: _Event, details: Mapping[str, Any]) -> Explanation:
    number, code = last.data["try_number"], last.data["code"]
    at = last.at + timedelta(seconds=last.data["seconds"])
    return Explanation(
        reason=Reason.MODEL_RETRYING,
        sentence=f"A model call has failed with {code}; try {number} follows at {shown(at)}.",
        since=last.at,
        action=Action.RETRY,
        at=at,
        details={
            **details,
            "route_id": last.data["route_id"],
            "error_code": code,
            "try_number": number,
        },
    )


def _runs_tools(sql: Connection, run: RowMapping, events: Sequence[_Event]) -> Explanation:
    planned = _open_calls(events)
    of_run = tool_calls.c.run_id == run["id"]
    begun = {
        row.tool_call_id: row
        for row in sql.execute(
            select(tool_calls.c.tool_call_id, tool_calls.c.started_at, tool_calls.c.done_at).where(
                of_run, tool_calls.c.tool_call_id.in_(planned)
            )
        )
    }
    pulled = {
        row.tool_call_id: row
        for row in sql.execute(
            select(*worker_calls.c).where(
                worker_calls.c.run_id == run["id"],
                worker_calls.c.tool_call_id.in_(planned),
                worker_calls.c.ended_at.is_(None),
            )
        )
    }
    calls: list[dict[str, Any]] = []
    for id_, (name, planned_at) in planned.items():
        row, of_worker = begun.get(id_), pulled.get(id_)
        if row is not None and row.done_at is not None:
            continue
        call: dict[str, Any] = {"tool_call_id": id_, "name": name}
        call["started_at"] = planned_at if row is None else row.started_at
        if of_worker is not None:
            call |= {"tool_worker": of_worker.pool, "worker_state": of_worker.state}
        calls.append(call)
    unfetched = [pulled[c["tool_call_id"]] for c in calls if c.get("worker_state") == "queued"]
    since = min((call["started_at"] for call in calls), default=events[0].at)
    names = ", ".join(sorted({call["name"] for call in calls}))
    if unfetched and len(unfetched) == len(calls):
        deadline = min(call.deadline for call in unfetched)
        pools = ", ".join(sorted({call.pool for call in unfetched}))
        return Explanation(
            reason=Reason.TOOLS_NO_WORKER,
            sentence=(
                f"Waits since {shown(since)} until a tool worker of {pools} fetches"
                f" {counted(len(calls), 'call')} ({names}), at {shown(deadline)} at the latest."
            ),
            since=since,
            action=Action.CONTINUE,
            at=deadline,
            details={"tool_calls": calls},
        )
    return Explanation(
        reason=Reason.TOOLS_RUNNING,
        sentence=f"Executes {counted(len(calls), 'tool call')} since {shown(since)}: {names}.",
        since=since,
        action=Action.CONTINUE,
        details={"tool_calls": calls},
    )


def _open_calls(events: Sequence[_Event]) -> dict[str, tuple[str, datetime]]:
    """Return name and time of the calls of the last turn that have no result, by their ids."""
    done: set[str] = set()
    calls: dict[str, tuple[str, datetime]] = {}
    for event in events:
        if event.type == types.MessageCompleted.type:
            break
        if event.type == types.ToolResult.type:
            done.add(event.data["tool_call_id"])
        if event.type == types.ToolCallRequested.type:
            calls[event.data["tool_call_id"]] = event.data["name"], event.at
    return {id_: calls[id_] for id_ in reversed(calls) if id_ not in done}


def _turn_began(events: Sequence[_Event]) -> datetime:
    """Return when the newest piece of the turn that is being written, or the first read, came."""
    pieces = []
    for event in events:
        if event.type in _SILENT:
            continue
        if event.type not in types.STREAMED_TYPES:
            break
        pieces.append(event.at)
    return pieces[-1]


def _is_recent(run: RowMapping, event: _Event, seconds: float) -> bool:
    return bool(run["now"] - event.at <= timedelta(seconds=seconds))


def _newest(sql: Connection, run: RowMapping) -> list[_Event]:
    """Read the run's newest events, the newest first."""
    rows = sql.exec_driver_sql(_RECENT, {"run_id": run["id"], "limit": NEWEST})
    return [
        _Event(row.type, datetime.fromisoformat(row.created_at), _data(row.payload)) for row in rows
    ]


def _data(payload: str | None) -> Mapping[str, Any]:
    data: Mapping[str, Any] = {} if payload is None else json.loads(payload)["data"]
    return data
