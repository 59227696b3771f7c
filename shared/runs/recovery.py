"""Recovery of runs whose worker is lost: they are queued again, or end."""

import logging
from datetime import datetime
from uuid import UUID

from sqlalchemy import RowMapping, func, select, text, update

from arkloop.shared.billing import budgets
from arkloop.shared.events.types import STEP_TYPES, RunError, RunResumed, RunStarted
from arkloop.shared.runs import agent_costs, agent_queue, endings, run_spans, sub_runs
from arkloop.shared.runs.states import RunState
from arkloop.shared.runs.swept_batches import BATCH, isolated, with_reservations_locked
from arkloop.shared.runs.transitions import MAX_CRASHES, queued
from arkloop.shared.storage.connections import Connections, Transaction
from arkloop.shared.storage.notifications import Recovered
from arkloop.shared.storage.sql_files import statement
from arkloop.shared.storage.tables.events import run_events
from arkloop.shared.storage.tables.runs import runs, workers

log = logging.getLogger(__name__)

#: Periods that may pass from one look to the next.
MOST_BETWEEN_LOOKS = 1.25

CRASHED = RunError(
    "worker.crashed",
    "The worker executing this run crashed three times during the same step.",
    False,
)

_FIND_LOST = statement(__package__, "find_lost")
_DECLARE_LOST = statement(__package__, "declare_lost")


def recover_batch(tx: Transaction) -> None:
    settings = tx.connections.settings
    lost = tx.sql.exec_driver_sql(
        _FIND_LOST,
        {
            "lease": settings.lease_seconds,
            "agents_lease": settings.lease_seconds
            - min(MOST_BETWEEN_LOOKS * settings.sweep_seconds, settings.lease_seconds / 5),
            "missed": settings.heartbeat_seconds * 1.25,
            "batch": BATCH,
        },
    ).all()
    if not lost:
        return
    owners = {"owners": list({row.owner for row in lost}), "lease": settings.lease_seconds}
    tx.sql.exec_driver_sql(_DECLARE_LOST, owners)
    is_crash = {row.id: row.is_crash for row in lost}
    rows = tx.sql.execute(select(*runs.c).where(runs.c.id.in_(is_crash))).mappings().all()
    for run in with_reservations_locked(tx, rows):
        with isolated(tx, run):
            log.warning("recovering run %s from lost worker %s", run["id"], run["owner"])
            _recover(tx, run, is_crash=is_crash[run["id"]])


def recover_orphan(connections: Connections, run_id: UUID, owner: UUID, is_crash: bool) -> None:
    """Take a run from its own, living owner, who knows that no thread of it holds the run.

    `is_crash` says whether that counts towards the three crashes which end a run.

    Raises:
        Unavailable
    """
    with connections.transaction() as tx:
        executing = tx.sql.execute(
            select(*runs.c)
            .where(runs.c.id == run_id, runs.c.owner == owner, runs.c.state == RunState.EXECUTING)
            .with_for_update()
        )
        for run in executing.mappings().all():
            _recover(tx, run, is_crash=is_crash)


def recover_lost(tx: Transaction, run: RowMapping) -> None:
    """Take an executing run, which the caller has locked, from a worker whose lease has expired.

    An operator has decided that; the sweep would wait until more is known about the silence.
    """
    sub_runs.lock_parents(tx, [run], wait=True)
    budgets.lock(tx, [run["id"]])
    log.warning("recovering run %s from worker %s for an operator", run["id"], run["owner"])
    _recover(tx, run, is_crash=False)


def _recover(tx: Transaction, run: RowMapping, *, is_crash: bool = True) -> None:
    """Queue a lost run again, unless it was being cancelled or keeps losing its workers."""
    if is_crash and run["agent"] is None:  # the operator cannot mend agent workers
        tx.after_commit.append(Recovered(run["id"]))
    run_spans.lost(tx.sql, run)
    if run["cancel_requested_at"] is not None:
        endings.end_unclaimed(tx, run, RunState.CANCELLED)
        return
    of_run = run_events.c.run_id == run["id"]
    begun = (
        select(func.max(run_events.c.seq))
        .where(of_run, run_events.c.type.in_((RunStarted.type, RunResumed.type)))
        .scalar_subquery()
    )
    progressed = tx.sql.scalar(
        select(run_events.c.seq)
        .where(
            of_run,
            run_events.c.seq > begun,
            run_events.c.type.in_(STEP_TYPES),
        )
        .limit(1)
    )
    crashes = (0 if progressed else run["crashes"]) + int(is_crash)
    if crashes >= MAX_CRASHES:
        endings.end_unclaimed(tx, run, RunState.FAILED, CRASHED)
    else:
        agent_costs.give_back_lost(tx, run)
        tx.sql.execute(
            update(runs)
            .where(runs.c.id == run["id"])
            .values(**queued("worker_lost"), fence=runs.c.fence + 1, crashes=crashes)
        )
        tx.after_commit.append(agent_queue.announce(run["id"], run["org_id"], run["agent"]))


def recover_from(connections: Connections, owner: UUID, seen_at: datetime) -> None:
    """Take the runs of an agent worker whose connection was closed and that was not heard since.

    `seen_at` is when it renewed its lease over that connection.

    Raises:
        Unavailable
    """
    lease = func.make_interval(0, 0, 0, 0, 0, 0, connections.settings.lease_seconds)
    is_silent = (workers.c.id == owner) & (workers.c.seen_at == seen_at)
    with connections.transaction() as tx:
        lost = update(workers).where(is_silent).values(seen_at=func.now() - lease)
        if not tx.sql.execute(lost).rowcount:
            return
        executing = tx.sql.execute(
            select(*runs.c)
            .where(runs.c.owner == owner, text("state = 'executing'"))
            .order_by(runs.c.id)
            .with_for_update(skip_locked=True)
        )
        for run in with_reservations_locked(tx, executing.mappings().all()):
            with isolated(tx, run):
                log.warning("recovering run %s from lost agent worker %s", run["id"], owner)
                _recover(tx, run)
