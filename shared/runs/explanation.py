"""The explanation of a run: why it is where it is, and what happens to it next.

Everything is read at the moment of the question, by indexes: the run's row, its place in a queue,
or the newest of its events.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, RowMapping, select

from arkloop.shared.actors import Actor
from arkloop.shared.runs import (
    explain_executing,
    fair_queue,
    live_workers,
    pending_calls,
    queries,
    revocations,
)
from arkloop.shared.runs.explain_executing import Pace
from arkloop.shared.runs.limits_reached import LIMITS
from arkloop.shared.runs.reasons import Action, Explanation, Reason, counted, shown
from arkloop.shared.runs.states import ResultSource, RunState, phase_of
from arkloop.shared.runs.transitions import MAX_CRASHES
from arkloop.shared.storage.connections import Connections
from arkloop.shared.storage.tables.accounts import orgs
from arkloop.shared.storage.tables.runs import (
    IS_ACTIVE,
    IS_ACTIVE_SUB_RUN,
    runs,
    tool_calls,
)

#: A worker with a free slot finds a queued run at the latest after this time, without the broker.
FOUND_SECONDS = 3.0
#: Sub-runs that are named of a run that waits for them.
MAX_NAMED = 20

_RESUMED = {
    "worker_lost": Reason.RESUME_WORKER_LOST,
    "deploy": Reason.RESUME_DEPLOY,
    "input": Reason.RESUME_INPUT,
    "sub_runs": Reason.RESUME_SUB_RUNS,
}
_WAITING = {
    "question": (Reason.WAITING_ANSWER, "a person to answer its question"),
    "tool_confirmation": (Reason.WAITING_APPROVAL, "a person to approve a call of {tool_name}"),
    "form": (Reason.WAITING_FORM, "a person to fill in a form"),
    "authorization": (Reason.WAITING_AUTHORIZATION, "a person to visit a page and give access"),
}


@dataclass(frozen=True, slots=True)
class _Queue:
    """The facts about a queued run, beside its row."""

    position: int
    ahead: int
    suspended_at: datetime | None  # of the org
    workers: int  # alive, of the kind that executes it


def explain(
    connections: Connections, actor: Actor, run_id: UUID, *, to_operator: bool = False
) -> tuple[RowMapping, Explanation]:
    """Return the run's row and why it is where it is.

    With `to_operator` its thread may be deleted, and an error is named by its code alone: an agent
    of the org may have written the message, and operators read nothing of what runs are about.

    Raises:
        RunNotFound: it does not exist, or the actor must not know of it.
        Unavailable
    """
    settings = connections.settings
    pace = Pace(
        lease=settings.lease_seconds,
        heartbeat=settings.heartbeat_seconds,
        sweep=settings.sweep_seconds,
    )
    with connections.reading() as sql:
        run = queries.get(sql, actor, run_id, also_deleted=to_operator)
    # Runs of other orgs are before it in the queue, and workers are those of all.
    with connections.of_all().reading() as sql:
        state = RunState(run["state"])
        if state.is_terminal:
            return run, _ended(run, to_operator=to_operator)
        if run["cancel_requested_at"] is not None and state != RunState.EXECUTING:
            return run, _unheld_cancel(run)
        match state:
            case RunState.SCHEDULED:
                return run, _scheduled(run)
            case RunState.PENDING:
                return run, _pending(sql, run)
            case RunState.QUEUED:
                return run, _queued(sql, run, pace, broker_refuses=connections.broker_outage.is_on)
            case RunState.WAITING:
                return run, _waiting(sql, run)
            case RunState.SUSPENDED:
                return run, _suspended(sql, run)
        return run, explain_executing.explain(sql, run, pace)


# ---- before it is active -------------------------------------------------------------


def _scheduled(run: RowMapping) -> Explanation:
    at = run["not_before"]
    return Explanation(
        reason=Reason.NOT_BEFORE,
        sentence=f"Scheduled: it does not start before {shown(at)}.",
        since=run["created_at"],
        action=Action.QUEUE,
        at=at,
    )


def _pending(sql: Connection, run: RowMapping) -> Explanation:
    active = sql.execute(
        select(runs.c.id, runs.c.state, runs.c.cancel_requested_at)
        .where(runs.c.thread_id == run["thread_id"], IS_ACTIVE)
        .limit(1)
    ).one_or_none()
    if active is None:
        return Explanation(
            reason=Reason.THREAD_FREE,
            sentence="Its thread is free: the next sweep starts the first run that waits for it.",
            since=run["created_at"],
            action=Action.QUEUE,
            details={"position": run["queue_position"]},
        )
    phase = phase_of(active.state, cancel_requested=active.cancel_requested_at is not None)
    return Explanation(
        reason=Reason.THREAD_BUSY,
        sentence=(
            f"Waits for its thread since {shown(run['created_at'])}: it has place"
            f" {run['queue_position']} behind run {active.id}, which is {phase}."
        ),
        since=run["created_at"],
        action=Action.QUEUE,
        details={
            "position": run["queue_position"],
            "active_run_id": str(active.id),
            "active_phase": phase,
        },
    )


# ---- queued --------------------------------------------------------------------------


def _queued(sql: Connection, run: RowMapping, pace: Pace, *, broker_refuses: bool) -> Explanation:
    queue = _queue_of(sql, run, pace)
    resumed, why = _history(run)
    details: dict[str, Any] = {"workers_alive": queue.workers, **resumed}
    if run["agent"] is None:
        details |= {"position": queue.position, "ahead_of_you": queue.ahead}
    else:
        details["agent"] = run["agent"]
    reason, what = _obstacle(run, queue, broker_refuses=broker_refuses)
    return Explanation(
        reason=reason,
        sentence=f"{why}: {what}.",
        since=run["queued_at"],
        action=Action.START,
        details=details,
    )


def _obstacle(run: RowMapping, queue: _Queue, *, broker_refuses: bool) -> tuple[Reason, str]:
    """Return what a queued run waits for."""
    agent = run["agent"]
    if queue.suspended_at is not None:
        return (
            Reason.QUEUE_ORG_SUSPENDED,
            f"its organization is suspended since {shown(queue.suspended_at)}, and nothing starts"
            " it before the operator resumes that",
        )
    if agent is not None:
        if queue.workers == 0:
            return (
                Reason.QUEUE_NO_AGENT_WORKER,
                f"no worker of the agent {agent!r} is alive, so nothing starts it",
            )
        return (
            _RESUMED.get(run["resume_reason"], Reason.QUEUE_AGENT_WORKER),
            f"one of {counted(queue.workers, 'worker')} of the agent {agent!r} fetches it when it"
            " has a free slot",
        )
    if queue.workers == 0:
        return Reason.QUEUE_NO_WORKER, "no worker of the service is alive, so nothing starts it"
    if queue.ahead > 0:
        return (
            Reason.QUEUE_BEHIND_OTHERS,
            f"at most {counted(queue.ahead, 'run')} of all organizations start before it; in its"
            f" own, it has place {queue.position}",
        )
    seconds = (run["now"] - run["queued_at"]).total_seconds()
    if broker_refuses:
        return (
            Reason.QUEUE_BROKER_REFUSED,
            "the broker refuses messages; a worker with a free slot finds the run in Postgres"
            f" within {FOUND_SECONDS:g} s",
        )
    if seconds > FOUND_SECONDS:
        return (
            Reason.QUEUE_SLOTS_FULL,
            f"nothing is before it, but none of {counted(queue.workers, 'worker')} has taken it"
            " yet: all of their slots are in use",
        )
    return _RESUMED.get(run["resume_reason"], Reason.QUEUE_NEXT), "a worker takes it next"


def _history(run: RowMapping) -> tuple[Mapping[str, Any], str]:
    """Return why the run is queued: the details, and the beginning of the sentence."""
    at = shown(run["queued_at"])
    match run["resume_reason"]:
        case "worker_lost":
            left = MAX_CRASHES - run["crashes"]
            details = {
                "resume_reason": "worker_lost",
                "worker_id": str(run["owner"]),
                "attempt": run["attempt"] + 1,
                "crashes": run["crashes"],
                "crashes_left": left,
            }
            return details, (
                f"The loss of its worker was noticed at {at}, and it is queued for attempt"
                f" {run['attempt'] + 1}"
            )
        case "deploy":
            return {"resume_reason": "deploy"}, f"A worker that stops has handed it over at {at}"
        case "input":
            return {"resume_reason": "input"}, f"What it waited for has arrived at {at}"
        case "sub_runs":
            return {"resume_reason": "sub_runs"}, f"Its sub-runs have ended at {at}"
    return {}, f"Queued since {at}"


def _queue_of(sql: Connection, run: RowMapping, pace: Pace) -> _Queue:
    suspended_at = sql.scalar(select(orgs.c.suspended_at).where(orgs.c.id == run["org_id"]))
    if run["agent"] is not None:
        number = live_workers.of_agent(sql, run["org_id"], run["agent"], pace.lease)
        return _Queue(1, 0, suspended_at, number)
    number = live_workers.of_service(sql, pace.heartbeat)
    position, ahead = fair_queue.place_of(sql, run["id"]) or (1, 0)
    return _Queue(position, ahead, suspended_at, number)


# ---- waiting -------------------------------------------------------------------------


def _waiting(sql: Connection, run: RowMapping) -> Explanation:
    pending, since, until = run["pending_input"], run["waiting_since"], run["input_expires_at"]
    details = {"request_id": pending["request_id"], "kind": pending["kind"]}
    if pending["kind"] == pending_calls.KIND:
        reason, whom, calls = _missing_results(sql, run)
        details["tool_calls"] = calls
    else:
        reason, whom = _WAITING[pending["kind"]]
        tool_name = pending.get("tool_name")
        whom = whom.format(tool_name=f"`{tool_name}`" if tool_name else "a tool")
        if tool_name:
            details["tool_name"] = tool_name
    continues = pending.get("on_expiry") == "continue"
    then = "it continues without" if continues else "it fails with input.expired"
    return Explanation(
        reason=reason,
        sentence=f"Waits since {shown(since)} for {whom}; at {shown(until)} {then}.",
        since=since,
        action=Action.EXPIRE,
        at=until,
        details=details,
    )


def _missing_results(sql: Connection, run: RowMapping) -> tuple[Reason, str, list[dict[str, Any]]]:
    """Return who has to send results, and the calls that lack one."""
    rows = sql.execute(
        select(tool_calls.c.tool_call_id, tool_calls.c.result_from, tool_calls.c.accepted_at).where(
            tool_calls.c.run_id == run["id"],
            tool_calls.c.accepted_at.is_not(None),
            tool_calls.c.done_at.is_(None),
        )
    ).all()
    names = {call["tool_call_id"]: call["name"] for call in run["pending_input"]["calls"]}
    calls = [
        {
            "tool_call_id": row.tool_call_id,
            "name": names[row.tool_call_id],
            "started_at": row.accepted_at,
        }
        for row in rows
        if row.tool_call_id in names
    ]
    named = ", ".join(sorted({call["name"] for call in calls}))
    of_client = any(row.result_from == ResultSource.CLIENT for row in rows)
    results = f"{counted(len(calls), 'result')} ({named})"
    if of_client:
        return Reason.WAITING_CLIENT_TOOLS, f"a client to send {results}", calls
    return Reason.WAITING_HTTP_TOOLS, f"HTTP tools to send {results}", calls


def _suspended(sql: Connection, run: RowMapping) -> Explanation:
    if run["attempt"] == 0:
        return Explanation(
            reason=Reason.WAITING_TURN,
            sentence=(
                f"Waits for its turn: run {run['parent_run_id']} has as many active sub-runs as"
                " its persona allows."
            ),
            since=run["created_at"],
            action=Action.QUEUE,
            details={"parent_run_id": str(run["parent_run_id"])},
        )
    below = sql.scalars(
        select(runs.c.id)
        .where(runs.c.parent_run_id == run["id"], IS_ACTIVE_SUB_RUN)
        .limit(MAX_NAMED)
    ).all()
    more = " or more" if len(below) == MAX_NAMED else ""
    return Explanation(
        reason=Reason.WAITING_SUB_RUNS,
        sentence=(
            f"Waits since {shown(run['waiting_since'])} for {len(below)}{more} of its sub-runs"
            " to end."
        ),
        since=run["waiting_since"],
        action=Action.CONTINUE,
        details={"sub_run_ids": [str(id_) for id_ in below]},
    )


# ---- cancelled, or ended -------------------------------------------------------------


def _unheld_cancel(run: RowMapping) -> Explanation:
    at, by = run["cancel_requested_at"], run["cancel_requested_by"]
    return Explanation(
        reason=Reason.CANCELLING,
        sentence=f"A cancel was requested at {shown(at)}; the next sweep ends the run.",
        since=at,
        action=Action.END,
        details={} if by is None else {"cancelled_by_user_id": str(by)},
    )


def _ended(run: RowMapping, *, to_operator: bool) -> Explanation:
    reason, sentence, details = _how_it_ended(run, to_operator=to_operator)
    return Explanation(reason=reason, sentence=sentence, since=run["ended_at"], details=details)


def _how_it_ended(run: RowMapping, *, to_operator: bool) -> tuple[Reason, str, dict[str, Any]]:
    at = shown(run["ended_at"])
    if run["state"] == RunState.FAILED:
        code = run["error_code"]
        what = f"{code}." if to_operator else f"{code}: {_as_sentence(run['error_message'])}"
        can_retry = run["error_retryable"]
        retry = "A retry of the thread may succeed." if can_retry else "A retry will not help."
        details = {"error_code": code, "retryable": can_retry, "attempt": run["attempt"]}
        return Reason.ENDED_FAILED, f"Failed at {at} with {what} {retry}", details
    if run["state"] == RunState.CANCELLED:
        if (by_run := run["superseded_by"]) is not None:
            sentence = f"Cancelled at {at} for run {by_run}."
            return Reason.ENDED_SUPERSEDED, sentence, {"superseded_by": str(by_run)}
        by = run["cancel_requested_by"]
        whom = "" if by is None else f" for user {by}"
        details = {} if by is None else {"cancelled_by_user_id": str(by)}
        if run["cancel_reason"] == revocations.ORG_SUSPENDED:
            whom = ", when its organization was suspended"
        return Reason.ENDED_CANCELLED, f"Cancelled at {at}{whom}.", details
    took = run["ended_at"] - run["created_at"]
    details = {"stop_reason": run["stop_reason"], "steps": run["steps"]}
    if run["stop_reason"] in LIMITS:
        sentence = (
            f"Completed at {at} with an answer, because it had reached its"
            f" {LIMITS[run['stop_reason']]}."
        )
        return Reason.ENDED_AT_LIMIT, sentence, details
    seconds = took / timedelta(seconds=1)
    return (
        Reason.ENDED_COMPLETED,
        f"Completed at {at}, {seconds:.1f} s after its creation.",
        details,
    )


def _as_sentence(message: str) -> str:
    return message if message.endswith((".", "!", "?")) else f"{message}."
