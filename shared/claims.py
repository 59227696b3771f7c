"""What a worker does with a run that it holds: every write carries the fence of its claim.

A claim raises `runs.fence`. A write whose fence is not the row's has no effect
and says so with `LeaseLost`; who holds the run is never asked beforehand.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, func, literal, select, text, true, update
from sqlalchemy.dialects.postgresql import insert as upsert

from shared import eventlog, events, fault_points
from shared.connections import Transaction
from shared.errors import LeaseLost
from shared.events import Event, StoredEvent, ToolResult
from shared.status import RunState
from shared.tables import inputs, runs, tool_calls
from shared.transitions import MAX_CRASHES, Totals, ended, keep_message, queued


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """The exclusive right to execute a run, for as long as `fence` is the row's."""

    run_id: UUID
    org_id: UUID
    thread_id: UUID
    persona_id: str
    route_id: str
    model: str
    trace_id: str
    position: int
    fence: int
    attempt: int
    last_seq: int
    claimed_at: datetime  # by Postgres' clock, as all times of a run
    used_seconds: float  # since its first claim, without the time it waited for people
    is_suspect: bool  # one more lost owner within this step gives it up


#: Literal text: see `tables.IS_ACTIVE`.
QUEUED = text("state = 'queued'")
#: A run of which the next lost owner would be the last.
IS_SUSPECT = runs.c.crashes >= MAX_CRASHES - 1


def unclaimed(sql: Connection, *, older_than: float, limit: int, suspects: bool) -> list[UUID]:
    """Runs that are queued for more than so many seconds, the oldest first."""
    age = func.now() - func.make_interval(0, 0, 0, 0, 0, 0, older_than)
    return list(
        sql.scalars(
            select(runs.c.id)
            .where(
                QUEUED,
                runs.c.queued_at < age,
                true() if suspects else ~IS_SUSPECT,
            )
            .order_by(runs.c.queued_at)
            .limit(limit)
        )
    )


def claim(tx: Transaction, run_id: UUID, worker_id: UUID, *, suspects: bool = True) -> Claim | None:
    """Take the exclusive right to execute a queued run, and write that it goes on.

    Returns None if the run is not queued (another worker has it, or it has ended),
    or if it is a suspect and `suspects` are not to be taken now.
    """
    used = func.extract("epoch", func.now() - runs.c.started_at) - runs.c.waiting_ms / 1000.0
    run = (
        tx.sql.execute(
            update(runs)
            .where(
                runs.c.id == run_id,
                runs.c.state == RunState.QUEUED,
                true() if suspects else ~IS_SUSPECT,
            )
            .values(
                state=RunState.EXECUTING,
                owner=worker_id,
                fence=runs.c.fence + 1,
                attempt=runs.c.attempt + 1,
                started_at=func.coalesce(runs.c.started_at, func.now()),
            )
            .returning(
                *runs.c,
                used.label("used_seconds"),
                IS_SUSPECT.label("is_suspect"),
                func.clock_timestamp().label("claimed_at"),
            )
        )
        .mappings()
        .one_or_none()
    )
    if run is None:
        return None
    happened: list[Event] = []
    if run["attempt"] == 1:
        happened.append(events.RunStarted(run["persona_id"], run["route_id"], run["model"]))
    else:
        happened.append(events.RunResumed(run["attempt"], run["resume_reason"]))
        inputs_taken = _consume_inputs(tx.sql, run_id)
        happened.extend(inputs_taken)
        if inputs_taken:
            tx.after_commit.append(lambda: fault_points.reach("worker.input_consumed"))
    stored = eventlog.append(tx, run_id, happened)
    return Claim(
        run_id=run_id,
        org_id=run["org_id"],
        thread_id=run["thread_id"],
        persona_id=run["persona_id"],
        route_id=run["route_id"],
        model=run["model"],
        trace_id=run["trace_id"],
        position=run["position"],
        fence=run["fence"],
        attempt=run["attempt"],
        last_seq=stored[-1].seq,
        claimed_at=run["claimed_at"],
        used_seconds=float(run["used_seconds"]),
        is_suspect=run["is_suspect"],
    )


def park(
    tx: Transaction,
    claim: Claim,
    stored: Sequence[StoredEvent],
    *,
    pending_input: dict[str, Any],
    expires_at: datetime,
    totals: Totals,
) -> bool:
    """Let go of the run until a person answers. False, and nothing done, if it is being cancelled.

    Raises:
        LeaseLost
    """
    waiting = {
        "state": RunState.WAITING,
        "waiting_since": func.now(),
        "pending_input": pending_input,
        "input_expires_at": expires_at,
        "crashes": 0,
        **totals.columns(),
    }
    return _let_go(tx, claim, stored, waiting)


def release(
    tx: Transaction,
    claim: Claim,
    stored: Sequence[StoredEvent],
    totals: Totals,
    *,
    progressed: bool,
) -> bool:
    """Hand the run over to another worker: this process is shutting down.

    `progressed` says whether a step was finished under this claim. False, and
    nothing done, if the run is being cancelled.

    Raises:
        LeaseLost
    """
    tx.after_commit.append(lambda: tx.connections.enqueue(claim.run_id))
    crashes = {"crashes": 0} if progressed else {}
    return _let_go(tx, claim, stored, {**queued("deploy"), **totals.columns(), **crashes})


def finish(
    tx: Transaction,
    claim: Claim,
    state: RunState,
    stored: Sequence[StoredEvent],
    *,
    totals: Totals,
    message: tuple[UUID, str] | None,
    error: events.RunError | None = None,
) -> bool:
    """End the run: status, terminal event (the last of `stored`), totals and assistant message.

    `message` is (id, content) of what the thread keeps; it is partial unless the
    run has completed. False, and nothing done, if the run is being cancelled and
    `state` is another end.

    Raises:
        LeaseLost
    """
    if not _let_go(tx, claim, stored, ended(state, totals, error)):
        return False
    if message is not None:
        keep_message(tx.sql, claim.run_id, message, partial=state != RunState.COMPLETED)
    return True


def cancel_requested_by(sql: Connection, claim: Claim) -> UUID | None:
    """Who wants the run cancelled."""
    return sql.scalar(select(runs.c.cancel_requested_by).where(runs.c.id == claim.run_id))


def begin_tool_call(tx: Transaction, claim: Claim, tool_call_id: str) -> bool:
    """Record that a call begins; False if an earlier claim began it already.

    Raises:
        LeaseLost
    """
    begun_by = tx.sql.scalar(
        upsert(tool_calls)
        .from_select(
            ["run_id", "tool_call_id", "fence"],
            select(runs.c.id, literal(tool_call_id), runs.c.fence)
            .where(
                runs.c.id == claim.run_id,
                runs.c.fence == claim.fence,
                runs.c.state == RunState.EXECUTING,
            )
            .with_for_update(read=True),
        )
        .on_conflict_do_update(
            index_elements=["run_id", "tool_call_id"],
            set_={"tool_call_id": tool_call_id},
        )
        .returning(tool_calls.c.fence)
    )
    if begun_by is None:
        raise LeaseLost()
    return bool(begun_by == claim.fence)


def end_tool_call(tx: Transaction, claim: Claim, result: ToolResult) -> None:
    """Record what came of a call whose event must still wait for other calls of its turn.

    Raises:
        LeaseLost
    """
    held = (
        select(runs.c.id)
        .where(
            runs.c.id == claim.run_id,
            runs.c.fence == claim.fence,
            runs.c.state == RunState.EXECUTING,
        )
        .with_for_update(read=True)
        .scalar_subquery()
    )
    written = tx.sql.execute(
        update(tool_calls)
        .where(tool_calls.c.run_id == held, tool_calls.c.tool_call_id == result.tool_call_id)
        .values(
            done_at=func.now(),
            output=result.output,
            is_error=result.is_error,
            duration_ms=result.duration_ms,
        )
    )
    if not written.rowcount:
        raise LeaseLost()


def _let_go(
    tx: Transaction, claim: Claim, stored: Sequence[StoredEvent], values: dict[str, Any]
) -> bool:
    """The guarded write with which a claim ends; a cancel that was accepted before comes first."""
    held = update(runs).where(
        runs.c.id == claim.run_id,
        runs.c.fence == claim.fence,
        runs.c.state == RunState.EXECUTING,
    )
    uncancelled = runs.c.cancel_requested_at.is_(None)
    guard = held if values["state"] == RunState.CANCELLED else held.where(uncancelled)
    if tx.sql.execute(guard.values(**values)).rowcount:
        eventlog.store(tx, claim.run_id, stored)
        return True
    if tx.sql.execute(held.values(fence=runs.c.fence)).rowcount:
        return False
    raise LeaseLost()


def _consume_inputs(sql: Connection, run_id: UUID) -> list[Event]:
    rows = sql.execute(
        update(inputs)
        .where(inputs.c.run_id == run_id, inputs.c.consumed_at.is_(None))
        .values(consumed_at=func.now())
        .returning(inputs.c.request_id, inputs.c.content, inputs.c.created_at)
    ).all()
    return [
        events.RunInputReceived(str(row.request_id), row.content)
        for row in sorted(rows, key=lambda row: row.created_at)
    ]
