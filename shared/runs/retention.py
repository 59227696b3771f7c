"""The deletion of what is too old: runs with their events, stored responses, dead workers.

A run goes in two steps. Its row goes first, and with it everything by which
anybody could reach it: requests get 404, and a trigger notes its id in
`forgotten_runs`. Its events, which may be very many, are collected later and bit
by bit, the last ones first: a stream that began before meets an early end, never
a hole. Each bit is a transaction of its own that lasts for some milliseconds and
locks nothing that others want.
"""

from datetime import timedelta

from sqlalchemy import delete, func, literal_column, select, text

from shared.storage import idempotency
from shared.storage.connections import Connections, Transaction
from shared.storage.tables.runs import runs, workers

_LOCK_KEY = 0x666F72676574  # "forget"

#: What one transaction deletes at most.
RUNS_AT_ONCE = 100
EVENTS_AT_ONCE = 2_000
ANSWERS_AT_ONCE = 500
#: Transactions of each kind in one pass, so that the sweep comes round in time.
BITS_OF_A_PASS = 10
#: Who has begun to read a run reads it to its end, unless they are very slow.
READERS_LEAVE_SECONDS = 60
WORKERS_KEPT = timedelta(days=1)

# The events of those runs that were forgotten first, each run's last ones first. The scans end
# with the limit: neither many small runs nor a large one are read as a whole.
_COLLECT = f"""
WITH forgotten AS MATERIALIZED (
    SELECT run_id, forgotten_at FROM forgotten_runs
    WHERE forgotten_at <= now() - make_interval(secs => :readers_leave)
    ORDER BY forgotten_at LIMIT {RUNS_AT_ONCE}
), collected AS (
    DELETE FROM run_events WHERE ctid = ANY(ARRAY(
        SELECT e.place FROM forgotten f CROSS JOIN LATERAL (
            SELECT ctid AS place FROM run_events
            WHERE run_id = f.run_id ORDER BY seq DESC LIMIT {EVENTS_AT_ONCE}
        ) AS e LIMIT {EVENTS_AT_ONCE}
    ))
)
SELECT run_id FROM forgotten
"""  # noqa: S608 - constants, which the planner should know
_SETTLE = """
DELETE FROM forgotten_runs f
WHERE run_id = ANY(:runs) AND NOT EXISTS (SELECT FROM run_events e WHERE e.run_id = f.run_id)
"""


def forget(connections: Connections) -> None:
    """Delete what is older than the retention, in one pass; skips it while another process is at
    it.

    Raises:
        Unavailable: Postgres is out of reach.
    """
    for forget_some in (_forget_runs, _collect_events, _forget_answers, _forget_workers):
        for _ in range(BITS_OF_A_PASS):
            with connections.transaction() as tx:
                if not tx.sql.scalar(select(func.pg_try_advisory_xact_lock(_LOCK_KEY))):
                    return
                there_is_more = forget_some(tx)
            if not there_is_more:
                break


def _forget_runs(tx: Transaction) -> bool:
    """Delete runs beyond the retention; their messages stay in the thread."""
    old = (
        select(runs.c.id)
        .where(
            runs.c.ended_at < func.now() - timedelta(days=tx.connections.settings.retention_days)
        )
        .order_by(runs.c.ended_at)
        # Literal: of a limit that it does not know Postgres thinks that it is a tenth of the table.
        .limit(literal_column(str(RUNS_AT_ONCE)))
        .with_for_update(skip_locked=True)
    )
    return tx.sql.execute(delete(runs).where(runs.c.id.in_(old))).rowcount == RUNS_AT_ONCE


def _collect_events(tx: Transaction) -> bool:
    """Delete events of deleted runs; returns whether more are left."""
    forgotten = list(tx.sql.scalars(text(_COLLECT), {"readers_leave": READERS_LEAVE_SECONDS}))
    if forgotten:
        tx.sql.execute(text(_SETTLE), {"runs": forgotten})
    return bool(forgotten)


def _forget_answers(tx: Transaction) -> bool:
    return idempotency.delete_old(tx, limit=ANSWERS_AT_ONCE) == ANSWERS_AT_ONCE


def _forget_workers(tx: Transaction) -> bool:
    tx.sql.execute(delete(workers).where(workers.c.seen_at < func.now() - WORKERS_KEPT))
    return False
