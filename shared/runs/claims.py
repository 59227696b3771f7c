"""The writes of a worker to the runs that it holds: each carries the fence of its claim.

A claim raises `runs.fence`. A write whose fence is not the row's has no effect
and says so with `LeaseLost`; who holds the run is never asked beforehand.
"""

from collections import defaultdict
from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    Text,
    func,
    literal,
    null,
    or_,
    select,
    text,
    update,
)
from sqlalchemy.dialects.postgresql import insert as upsert

from arkloop.shared.claim import QUESTION_BYTES, Claim
from arkloop.shared.errors import LeaseLost
from arkloop.shared.events import event_log, types
from arkloop.shared.events.stored_events import StoredEvent, encode
from arkloop.shared.events.types import Event, ToolResult
from arkloop.shared.runs import pending_calls
from arkloop.shared.runs.states import ResultSource, RunState
from arkloop.shared.runs.transitions import MAX_CRASHES, Totals, awaiting_runs, queued
from arkloop.shared.storage.arrays import plain_array
from arkloop.shared.storage.connections import Connections, Transaction
from arkloop.shared.storage.notifications import Enqueue, Reached
from arkloop.shared.storage.sql_files import statement
from arkloop.shared.storage.tables.runs import inputs, runs, tool_calls
from arkloop.shared.times import EPOCH, rfc3339

#: The part of the lease after which a worker that could not renew it stops, by its own clock, and
#: may claim nothing, by Postgres': before anybody takes its runs over.
SAFE_PART = 0.75

#: Literal text: see `tables.IS_ACTIVE`.
QUEUED = text("state = 'queued'")
#: A run of which the next lost owner would be the last.
SUSPECT_CRASHES = MAX_CRASHES - 1
IS_SUSPECT = runs.c.crashes >= SUSPECT_CRASHES

_CLAIM = statement(__package__, "claim")
_CANCELLED_FOR = """
SELECT cancel_requested_by, superseded_by, cancel_reason FROM runs WHERE id = %(run_id)s
"""
#: As `shared.times.rfc3339` writes a time.
_STARTED = types.RunStarted("(persona)", "(route)", "(model)", "(metadata)")
_TIME_FORMAT = 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"'


def claim(
    connections: Connections,
    run_ids: Collection[UUID],
    worker_id: UUID,
    *,
    suspects: Collection[UUID] | None = None,
    have_agent: bool = False,
) -> dict[UUID, Claim]:
    """Claim those of the runs that are queued, and write that they start or resume.

    Returns the claims by run. A run that is missing is not queued: another worker has claimed it,
    or it has ended. Suspects are claimed only if they are among `suspects` (None: all). With
    `have_agent` only runs for agent workers are claimed, without it none of these.

    Raises:
        Unavailable: some may have been claimed.
        Exception: of a run that resumes; the new ones have been claimed.
    """
    claims = claim_new(connections, run_ids, worker_id, suspects=suspects, have_agent=have_agent)
    if others := [run_id for run_id in run_ids if run_id not in claims]:
        claims |= claim_resumed(
            connections, others, worker_id, suspects=suspects, have_agent=have_agent
        )
    return claims


def claim_new(
    connections: Connections,
    run_ids: Collection[UUID],
    worker_id: UUID,
    *,
    suspects: Collection[UUID] | None = None,
    have_agent: bool = False,
) -> dict[UUID, Claim]:
    """Claim those of the runs that no worker had before, in one statement; else as `claim`."""
    with connections.statement() as tx:
        rows = _claim_queued(tx, run_ids, worker_id, suspects, are_new=True, have_agent=have_agent)
        started = {
            row.run_id: [StoredEvent(1, types.RunStarted.type, row.started_payload)] for row in rows
        }
        places = {row.thread_id: row.position for row in rows}
        if len(started) > 1:
            tx.after_commit.append(event_log.Publish(started, places))
    if len(started) == 1:
        # Not by `after_commit`, which lets the sender go first: where nobody else claims, the run's
        # first text is more urgent. In a group the pause lets more runs join the next one.
        connections.notify(event_log.Publish(started, places, can_wait=True))
    return {row.run_id: _claim_of(row, last_seq=1) for row in rows}


def claim_resumed(
    connections: Connections,
    run_ids: Collection[UUID],
    worker_id: UUID,
    *,
    suspects: Collection[UUID] | None = None,
    have_agent: bool = False,
) -> dict[UUID, Claim]:
    """Claim those of the runs that a worker had before, with the answers of people since then.

    All of them or, if it fails, none; else as `claim`.
    """
    with connections.transaction() as tx:
        rows = _claim_queued(tx, run_ids, worker_id, suspects, are_new=False, have_agent=have_agent)
        return _resume(tx, rows) if rows else {}


def _resume(tx: Transaction, rows: Sequence[Row[Any]]) -> dict[UUID, Claim]:
    """Store the first events of runs that resume; `rows` are what their claim has returned."""
    claimed = [row.run_id for row in rows]
    last_seqs = event_log.last_seqs(tx.sql, claimed)
    answers = _consume_inputs(tx.sql, claimed)
    if answers:
        tx.after_commit.append(Reached("worker.input_consumed"))
    claims: dict[UUID, Claim] = {}
    happened: dict[UUID, list[StoredEvent]] = {}
    for row in rows:
        opening = [
            types.RunResumed(row.attempt, row.resume_reason),
            *answers.get(row.run_id, ()),
        ]
        first = last_seqs.get(row.run_id, 0) + 1
        stored = [encode(first + i, e, row.claimed_at) for i, e in enumerate(opening)]
        happened[row.run_id] = stored
        claims[row.run_id] = _claim_of(row, last_seq=stored[-1].seq)
    event_log.store(tx, happened)
    return claims


def _claim_queued(
    tx: Transaction,
    run_ids: Collection[UUID],
    worker_id: UUID,
    suspects: Collection[UUID] | None,
    *,
    are_new: bool,
    have_agent: bool,
) -> Sequence[Row[Any]]:
    started = encode(1, _STARTED, EPOCH)
    return tx.sql.exec_driver_sql(
        _CLAIM,
        {
            "run_ids": plain_array(run_ids),
            "may_be_suspect": plain_array(
                suspects is None or run_id in suspects for run_id in run_ids
            ),
            "are_new": are_new,
            "have_agent": have_agent,
            "worker_id": worker_id,
            "suspect_crashes": SUSPECT_CRASHES,
            "question_bytes": QUESTION_BYTES,
            "safe_seconds": tx.connections.settings.lease_seconds * SAFE_PART,
            "template": started.payload.replace(rfc3339(EPOCH), "(time)"),
            "time_format": _TIME_FORMAT,
        },
    ).all()


def _claim_of(row: Row[Any], *, last_seq: int) -> Claim:
    fields = row._asdict()
    del fields["started_payload"]
    is_resumed = fields.pop("resume_reason") is not None
    return Claim(**fields, last_seq=last_seq, is_resumed=is_resumed)


def park(
    tx: Transaction,
    claim: Claim,
    stored: Sequence[StoredEvent],
    *,
    pending_input: dict[str, Any],
    expires_at: datetime,
    totals: Totals,
) -> bool:
    """Release the run until a person answers. False, without effect, if it is being cancelled.

    A run that waits for results which have all arrived meanwhile is queued again at once.

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
    is_parked = _end_claim(tx, claim, stored, waiting)
    if is_parked and pending_input["kind"] == pending_calls.KIND:
        pending_calls.resume_if_complete(tx, claim.run_id)
    return is_parked


def suspend(
    tx: Transaction, claim: Claim, stored: Sequence[StoredEvent], *, totals: Totals
) -> bool:
    """Release the run until its sub-runs have ended, or queue it if they have; else as `park`."""
    waiting = {"waiting_since": func.now(), "crashes": 0, **totals.columns(), **awaiting_runs()}
    is_parked = _end_claim(tx, claim, stored, waiting)
    if is_parked:
        pending_calls.resume_if_complete(tx, claim.run_id)
    return is_parked


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
    tx.after_commit.append(Enqueue(claim.run_id))
    crashes = {"crashes": 0} if progressed else {}
    return _end_claim(tx, claim, stored, {**queued("deploy"), **totals.columns(), **crashes})


def cancelled_for(sql: Connection, claim: Claim) -> Row[UUID | None, UUID | None, str | None]:
    """Return who requested the run's cancellation, the run that supersedes it, and the reason."""
    return sql.exec_driver_sql(_CANCELLED_FOR, {"run_id": claim.run_id}).one()


def begin_tool_call(
    tx: Transaction, claim: Claim, tool_call_id: str, result_from: ResultSource | None = None
) -> bool:
    """Record that a call begins; False if an earlier claim began it already.

    `result_from` may send the result from now on; clients accept every call. A sub-run does so
    also for a call that has begun as one of the run's own.

    Raises:
        LeaseLost
    """
    begun_by = tx.sql.scalar(
        upsert(tool_calls)
        .from_select(
            ["run_id", "tool_call_id", "fence", "result_from", "accepted_at"],
            select(
                runs.c.id,
                literal(tool_call_id),
                runs.c.fence,
                literal(result_from, Text),
                func.now() if result_from is ResultSource.CLIENT else null(),
            )
            .where(_is_held(claim))
            .with_for_update(read=True),
        )
        .on_conflict_do_update(
            index_elements=["run_id", "tool_call_id"],
            set_={"tool_call_id": tool_call_id}
            if result_from is not ResultSource.RUN
            else {"result_from": result_from},
        )
        .returning(tool_calls.c.fence)
    )
    if begun_by is None:
        raise LeaseLost()
    return bool(begun_by == claim.fence)


def expect_result(tx: Transaction, claim: Claim, tool_call_id: str) -> None:
    """Record that a call was accepted elsewhere: its result comes from outside.

    Raises:
        LeaseLost
    """
    held = select(runs.c.id).where(_is_held(claim)).with_for_update(read=True).scalar_subquery()
    written = tx.sql.execute(
        update(tool_calls)
        .where(tool_calls.c.run_id == held, tool_calls.c.tool_call_id == tool_call_id)
        .values(accepted_at=func.coalesce(tool_calls.c.accepted_at, func.now()))
    )
    if not written.rowcount:
        raise LeaseLost()


def end_tool_call(
    tx: Transaction, claim: Claim, result: ToolResult, whole_output: str | None = None
) -> ToolResult:
    """Record what came of a call whose event must still wait for other calls of its turn.

    Returns the result that counts: one that came from outside first, else this one. `whole_output`
    is kept where the event has a part of it.

    Raises:
        LeaseLost
    """
    held = select(runs.c.id).where(_is_held(claim)).with_for_update(read=True).scalar_subquery()
    is_call = (tool_calls.c.run_id == held) & (tool_calls.c.tool_call_id == result.tool_call_id)
    is_open = or_(tool_calls.c.done_at.is_(None), tool_calls.c.result_from.is_(None))
    written = tx.sql.execute(
        update(tool_calls)
        .where(is_call, is_open)
        .values(
            done_at=func.now(),
            output=result.output,
            is_error=result.is_error,
            duration_ms=result.duration_ms,
            files=null() if result.files is None else result.files,
            whole_output=whole_output,
        )
    )
    if written.rowcount:
        return result
    earlier = tx.sql.execute(select(tool_calls).where(is_call)).one_or_none()
    if earlier is None:
        raise LeaseLost()
    return result_of(earlier, result.name)


def result_of(row: Row[Any], name: str) -> ToolResult:
    """Return the result in the row of a call that is done."""
    return ToolResult(
        row.tool_call_id,
        name,
        row.output,
        row.is_error,
        row.duration_ms,
        row.files,
        characters=len(row.whole_output) if row.whole_output else None,
    )


def _end_claim(
    tx: Transaction, claim: Claim, stored: Sequence[StoredEvent], values: dict[str, Any]
) -> bool:
    """Write the end of a claim, guarded by its fence; a cancel accepted before takes precedence."""
    held = update(runs).where(_is_held(claim))
    guard = held.where(runs.c.cancel_requested_at.is_(None))
    if tx.sql.execute(guard.values(**values)).rowcount:
        if event_log.is_cut_off(tx.sql, claim.run_id, stored[0].seq):
            raise LeaseLost()
        event_log.store(tx, {claim.run_id: stored})
        return True
    if tx.sql.execute(held.values(fence=runs.c.fence)).rowcount:
        return False
    raise LeaseLost()


def _is_held(claim: Claim) -> ColumnElement[bool]:
    is_claimed = (runs.c.id == claim.run_id) & (runs.c.fence == claim.fence)
    return is_claimed & (runs.c.state == RunState.EXECUTING)


def _consume_inputs(sql: Connection, run_ids: Sequence[UUID]) -> dict[UUID, list[Event]]:
    """Consume the replies of users, by run."""
    rows = sql.execute(
        update(inputs)
        .where(inputs.c.run_id.in_(run_ids), inputs.c.consumed_at.is_(None))
        .values(consumed_at=func.now())
        .returning(inputs.c.run_id, inputs.c.request_id, inputs.c.content, inputs.c.created_at)
    ).all()
    received: dict[UUID, list[Event]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: row.created_at):
        received[row.run_id].append(types.RunInputReceived(str(row.request_id), row.content))
    return received
