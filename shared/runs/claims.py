"""What a worker does with a run that it holds: every write carries the fence of its claim.

A claim raises `runs.fence`. A write whose fence is not the row's has no effect
and says so with `LeaseLost`; who holds the run is never asked beforehand.
"""

from collections import defaultdict
from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row, func, literal, select, text, true, update
from sqlalchemy.dialects.postgresql import insert as upsert

from shared import fault_points
from shared.claim import Claim
from shared.errors import LeaseLost
from shared.events import eventlog, types
from shared.events.types import Event, StoredEvent, ToolResult
from shared.runs.status import RunState
from shared.runs.transitions import MAX_CRASHES, Totals, queued
from shared.storage.connections import Transaction
from shared.storage.hints import GroupedHint
from shared.storage.tables.runs import inputs, runs, tool_calls
from shared.times import EPOCH, rfc3339

#: The part of the lease after which a worker that could not renew it stops, by its own clock, and
#: may claim nothing, by Postgres': before anybody takes its runs over.
SAFE_PART = 0.75

#: Literal text: see `tables.IS_ACTIVE`.
QUEUED = text("state = 'queued'")
#: A run of which the next lost owner would be the last.
SUSPECT_CRASHES = MAX_CRASHES - 1
IS_SUSPECT = runs.c.crashes >= SUSPECT_CRASHES


def unclaimed(
    sql: Connection,
    *,
    older_than: float,
    limit: int,
    suspects: bool,
    before: datetime | None = None,
) -> list[UUID]:
    """Runs that are queued for more than so many seconds, the oldest first.

    With `before` only those that were queued before then.
    """
    age = func.now() - func.make_interval(0, 0, 0, 0, 0, 0, older_than)
    return list(
        sql.scalars(
            select(runs.c.id)
            .where(
                QUEUED,
                runs.c.cancel_requested_at.is_(None),
                runs.c.queued_at < age,
                true() if before is None else runs.c.queued_at < before,
                true() if suspects else ~IS_SUSPECT,
            )
            .order_by(runs.c.queued_at)
            .limit(limit)
        )
    )


# Rows are locked in the order of their ids. Who has locked a queued run is claiming it or ending
# it: it is skipped, and if it is queued still, a worker finds it later. IS NOT DISTINCT FROM is not
# answered by the index of queued runs, which a plan made when there were few would read as a whole.
# A worker that was silent renews its lease before it claims: a run that it took now would be lost
# at once, and have lost two workers by one silence.
# With a LIMIT each look for a budget is one into an index; EXISTS may read the table into a hash.
_CLAIM = """
WITH wanted AS (
    SELECT r.id FROM runs r
    JOIN unnest(%(run_ids)s::uuid[], %(suspects)s::boolean[]) AS w (id, suspect) ON w.id = r.id
    WHERE r.state IS NOT DISTINCT FROM 'queued' AND r.cancel_requested_at IS NULL
        AND (w.suspect OR r.crashes < %(suspect_crashes)s)
        AND EXISTS (
            SELECT FROM workers WHERE id = %(worker_id)s
            AND seen_at > now() - make_interval(secs => %(safe_seconds)s)
        )
    ORDER BY r.id FOR NO KEY UPDATE OF r SKIP LOCKED
)
UPDATE runs r SET
    state = 'executing',
    owner = %(worker_id)s,
    fence = r.fence + 1,
    attempt = r.attempt + 1,
    started_at = coalesce(r.started_at, clock_timestamp())
FROM wanted WHERE r.id = wanted.id
RETURNING r.id AS run_id, r.org_id, r.thread_id, r.persona_id, r.route_id, r.model, r.trace_id,
    r.position, r.fence, r.attempt, r.resume_reason, r.queued_at,
    extract(epoch FROM clock_timestamp() - r.started_at)::float8 - r.waiting_ms / 1000.0::float8
        AS used_seconds,
    r.crashes >= %(suspect_crashes)s AS is_suspect,
    clock_timestamp() AS claimed_at,
    pg_postmaster_start_time() AS server,
    r.api_key_id,
    coalesce(
        (SELECT true FROM budgets b WHERE b.org_id = r.org_id
            AND b.scope IN ('org', 'api_key:' || r.api_key_id::text) LIMIT 1),
        (SELECT true FROM credit_balances c WHERE c.org_id = r.org_id LIMIT 1),
        (SELECT true FROM holds h WHERE h.run_id = r.id LIMIT 1),
        false
    ) AS is_limited
"""
# The first event of a run is made of its row alone, so that its claim is one statement.
_START = """
WITH claimed AS (CLAIM), started AS (
    INSERT INTO run_events (run_id, seq, type, payload)
    SELECT run_id, 1, %(type)s, replace(replace(replace(replace(%(template)s::text,
        '"(time)"', to_json(to_char(claimed_at AT TIME ZONE 'UTC', %(rfc3339)s))::text),
        '"(persona)"', to_json(persona_id)::text),
        '"(route)"', to_json(route_id)::text),
        '"(model)"', to_json(model)::text)
    FROM claimed
    RETURNING run_id, payload
)
SELECT claimed.*, started.payload FROM claimed JOIN started USING (run_id)
""".replace("CLAIM", _CLAIM.replace("AND (w.suspect", "AND r.attempt = 0 AND (w.suspect"))


def start(
    tx: Transaction,
    run_ids: Sequence[UUID],
    worker_id: UUID,
    *,
    suspects: Collection[UUID] | None = None,
) -> dict[UUID, Claim]:
    """As `claim`, for runs that no worker had before; one statement."""
    template = types.encode(1, types.RunStarted("(persona)", "(route)", "(model)"), EPOCH)
    rows = tx.sql.exec_driver_sql(
        _START,
        {
            **_parameters(tx, run_ids, worker_id, suspects),
            "type": template.type,
            "rfc3339": 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"',
            "template": template.payload.replace(rfc3339(EPOCH), "(time)"),
        },
    ).all()
    news = {row.run_id: [StoredEvent(1, template.type, row.payload)] for row in rows}
    if news:
        tx.after_commit.append(eventlog.news(tx.connections, news))
    return {row.run_id: _claim(row, 1) for row in rows}


def claim(
    tx: Transaction,
    run_ids: Sequence[UUID],
    worker_id: UUID,
    *,
    suspects: Collection[UUID] | None = None,
) -> dict[UUID, Claim]:
    """Take the exclusive right to execute those of the runs that are queued; write that they go on.

    By id; what is missing is not queued: another worker has it, or it has ended. Suspects are taken
    only if they are among `suspects` (None: all).
    """
    rows = tx.sql.exec_driver_sql(_CLAIM, _parameters(tx, run_ids, worker_id, suspects)).all()
    resumed = [row.run_id for row in rows if row.attempt > 1]
    last_seqs = eventlog.last_seqs(tx.sql, resumed) if resumed else {}
    answers = _consume_inputs(tx.sql, resumed) if resumed else {}
    if answers:
        tx.after_commit.append(lambda: fault_points.reach("worker.input_consumed"))
    taken: dict[UUID, Claim] = {}
    happened: dict[UUID, list[StoredEvent]] = {}
    for row in rows:
        first = last_seqs.get(row.run_id, 0) + 1
        opening: list[Event] = [
            types.RunStarted(row.persona_id, row.route_id, row.model)
            if row.attempt == 1
            else types.RunResumed(row.attempt, row.resume_reason),
            *answers.get(row.run_id, ()),
        ]
        stored = [types.encode(first + i, e, row.claimed_at) for i, e in enumerate(opening)]
        happened[row.run_id] = stored
        taken[row.run_id] = _claim(row, stored[-1].seq)
    eventlog.store(tx, happened)
    return taken


def _parameters(
    tx: Transaction,
    run_ids: Sequence[UUID],
    worker_id: UUID,
    suspects: Collection[UUID] | None,
) -> dict[str, Any]:
    return {
        "safe_seconds": tx.connections.settings.lease_seconds * SAFE_PART,
        "run_ids": list(run_ids),
        "suspects": [suspects is None or run_id in suspects for run_id in run_ids],
        "worker_id": worker_id,
        "suspect_crashes": SUSPECT_CRASHES,
    }


def _claim(row: Row[Any], last_seq: int) -> Claim:
    return Claim(
        run_id=row.run_id,
        org_id=row.org_id,
        thread_id=row.thread_id,
        persona_id=row.persona_id,
        route_id=row.route_id,
        model=row.model,
        trace_id=row.trace_id,
        position=row.position,
        fence=row.fence,
        attempt=row.attempt,
        last_seq=last_seq,
        queued_at=row.queued_at,
        claimed_at=row.claimed_at,
        used_seconds=row.used_seconds,
        is_suspect=row.is_suspect,
        server=row.server,
        api_key_id=row.api_key_id,
        is_limited=row.is_limited,
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
    tx.after_commit.append(GroupedHint(tx.connections.enqueue, claim.run_id))
    crashes = {"crashes": 0} if progressed else {}
    return _let_go(tx, claim, stored, {**queued("deploy"), **totals.columns(), **crashes})


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
    guard = held.where(runs.c.cancel_requested_at.is_(None))
    if tx.sql.execute(guard.values(**values)).rowcount:
        if eventlog.is_cut_off(tx.sql, claim.run_id, stored[0].seq):
            raise LeaseLost()
        eventlog.store(tx, {claim.run_id: stored})
        return True
    if tx.sql.execute(held.values(fence=runs.c.fence)).rowcount:
        return False
    raise LeaseLost()


def _consume_inputs(sql: Connection, run_ids: Sequence[UUID]) -> dict[UUID, list[Event]]:
    """What people have answered, by run."""
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
