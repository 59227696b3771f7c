"""The deletion of what is too old: runs with their events, responses, deliveries, dead workers.

A run goes in two steps. Its row goes first, and with it everything by which
anybody could reach it: requests get 404, and a trigger notes its id in
`forgotten_runs`. Its events, which may be very many, are collected later and bit
by bit, the last ones first: a stream that began before meets an early end, never
a hole. Each bit is a transaction of its own that lasts for some milliseconds and
locks nothing that others want.
"""

from datetime import timedelta

from sqlalchemy import delete, exists, func, literal_column, select

from arkloop.shared.billing import spending
from arkloop.shared.delivery import deliveries
from arkloop.shared.storage import idempotency
from arkloop.shared.storage.connections import Connections, Transaction
from arkloop.shared.storage.sql_files import statement
from arkloop.shared.storage.tables.events import run_events
from arkloop.shared.storage.tables.runs import forgotten_runs, runs, workers

_LOCK_KEY = 0x666F72676574  # "forget"

#: What one transaction deletes at most.
RUNS_AT_ONCE = 100
ANSWERS_AT_ONCE = 500
#: Transactions of each kind in one pass, so that the sweep comes round in time.
BITS_OF_A_PASS = 10
#: Who has begun to read a run reads it to its end, unless they are very slow.
READERS_LEAVE_SECONDS = 60
WORKERS_KEPT = timedelta(days=1)

_COLLECT_EVENTS = statement(__package__, "collect_events")


def forget(connections: Connections) -> bool:
    """Delete what is older than the retention, in one pass; returns whether more is left. Skips it
    while another process is at it.

    Raises:
        Unavailable: Postgres is out of reach.
    """
    is_left = False
    for forget_some in (
        _forget_runs,
        _collect_events,
        _forget_answers,
        deliveries.forget,
        _forget_workers,
    ):
        for _ in range(BITS_OF_A_PASS):
            with connections.transaction() as tx:
                if not tx.sql.scalar(select(func.pg_try_advisory_xact_lock(_LOCK_KEY))):
                    return False
                there_is_more = forget_some(tx)
            if not there_is_more:
                break
        else:
            is_left = True
    return is_left


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
    forgotten = tx.sql.execute(
        delete(runs).where(runs.c.id.in_(old)).returning(runs.c.org_id, runs.c.id)
    ).all()
    spending.forget_runs(tx.sql, [(run.org_id, run.id) for run in forgotten])
    return len(forgotten) == RUNS_AT_ONCE


def _collect_events(tx: Transaction) -> bool:
    """Delete events of deleted runs; returns whether more are left."""
    parameters = {"readers_leave": READERS_LEAVE_SECONDS}
    looked_at = tx.sql.exec_driver_sql(_COLLECT_EVENTS, parameters).scalars().all()
    if looked_at:
        run_id = forgotten_runs.c.run_id
        are_gone = ~exists().where(run_events.c.run_id == run_id)
        tx.sql.execute(delete(forgotten_runs).where(run_id.in_(looked_at), are_gone))
    return bool(looked_at)


def _forget_answers(tx: Transaction) -> bool:
    return idempotency.delete_old(tx, limit=ANSWERS_AT_ONCE) == ANSWERS_AT_ONCE


def _forget_workers(tx: Transaction) -> bool:
    tx.sql.execute(delete(workers).where(workers.c.seen_at < func.now() - WORKERS_KEPT))
    return False
