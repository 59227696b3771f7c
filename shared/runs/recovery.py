"""Recovery of runs whose worker is lost: they are queued again, or end."""

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import ClassVar
from uuid import UUID

from sqlalchemy import Connection, RowMapping, case, exists, func, select, text, update

from arkloop.shared import logs
from arkloop.shared.billing import budgets
from arkloop.shared.events.types import STEP_TYPES, RunError
from arkloop.shared.runs import (
    agent_costs,
    agent_queue,
    agent_workers,
    endings,
    run_spans,
    sub_runs,
)
from arkloop.shared.runs.states import RunState
from arkloop.shared.runs.swept_batches import (
    BATCH,
    Left,
    is_outage,
    isolated,
    subject,
    with_reservations_locked,
)
from arkloop.shared.runs.transitions import MAX_CRASHES, queued
from arkloop.shared.storage.connections import Connections, Transaction
from arkloop.shared.storage.notifications import Recovered
from arkloop.shared.storage.signals import Wake
from arkloop.shared.storage.sql_files import statement
from arkloop.shared.storage.tables.runs import runs, workers

log = logging.getLogger(__name__)

#: Periods that may pass from one look to the next.
MOST_BETWEEN_LOOKS = 1.25

CRASHED = RunError(
    "worker.crashed",
    "The worker executing this run crashed three times during the same step.",
    False,
)

_FROM_LOST = "recovering run %s from lost worker %s"

_FIND_LOST = statement(__package__, "find_lost")
_DECLARE_LOST = statement(__package__, "declare_lost")
_FIND_PROGRESSED = statement(__package__, "find_progressed")


def recover_batch(tx: Transaction, left: Left) -> bool:
    """Take a batch of runs from lost workers, cancelled ones first, since somebody waits for them.

    Returns whether more may be left.
    """
    settings = tx.connections.settings
    lost = tx.sql.exec_driver_sql(
        _FIND_LOST,
        {
            "lease": settings.lease_seconds,
            "agents_lease": settings.lease_seconds
            - min(MOST_BETWEEN_LOOKS * settings.sweep_seconds, settings.lease_seconds / 5),
            "missed": settings.heartbeat_seconds * 1.25,
            "left": left.ids,
            "batch": BATCH,
        },
    ).all()
    if not lost:
        return False
    owners = {"owners": list({row.owner for row in lost}), "lease": settings.lease_seconds}
    tx.sql.exec_driver_sql(_DECLARE_LOST, owners)
    is_crash = {row.id: row.is_crash for row in lost}
    found = tx.sql.execute(select(*runs.c).where(runs.c.id.in_(is_crash))).mappings().all()
    rows = with_reservations_locked(tx, found, left)
    done = _queue_together(tx, rows, is_crash)
    for run in rows:
        if run["id"] not in done:
            with isolated(tx, run, left):
                _recover(tx, run, _FROM_LOST, is_crash=is_crash[run["id"]])
    return len(lost) == BATCH


def _queue_together(
    tx: Transaction, rows: Sequence[RowMapping], is_crash: Mapping[UUID, bool]
) -> list[UUID]:
    """Queue those of these lost runs again that need nothing else; returns them.

    A worker may have lost hundreds: a round trip for each would take longer than the next claim.
    """
    plain = [run for run in rows if run["agent"] is None and run["cancel_requested_at"] is None]
    pending = len(tx.after_commit)
    by_crashes: dict[int, list[RowMapping]] = {}
    try:
        with tx.sql.begin_nested():
            claimed = run_spans.claimed_at(tx.sql, plain)
            for run, crashes in zip(plain, _crashes(tx.sql, plain, is_crash), strict=True):
                if crashes < MAX_CRASHES:
                    by_crashes.setdefault(crashes, []).append(run)
            for crashes, of_these in by_crashes.items():
                _queue(tx, of_these, crashes)
    except Exception as error:
        if is_outage(error):
            raise
        del tx.after_commit[pending:]
        log.exception(
            "recovering %d runs together failed; they are recovered one by one", len(plain)
        )
        return []
    done = [run for of_these in by_crashes.values() for run in of_these]
    for run in done:
        _note(tx, run, claimed, _FROM_LOST, is_crash=is_crash[run["id"]])
    return [run["id"] for run in done]


def recover_orphan(
    connections: Connections, run_id: UUID, owner: UUID, fence: int, is_crash: bool
) -> bool:
    """Take a run from its own, living owner, who knows that no thread of it holds this claim.

    The owner may have claimed the run again meanwhile: that claim stays. `is_crash` says whether
    the loss counts towards the three crashes which end a run. Returns whether it was taken.

    Raises:
        Unavailable
    """
    with connections.transaction() as tx:
        executing = tx.sql.execute(
            select(*runs.c)
            .where(runs.c.id == run_id, runs.c.owner == owner, runs.c.fence == fence)
            .where(runs.c.state == RunState.EXECUTING)
            .with_for_update()
        )
        found = executing.mappings().all()
        for run in found:
            _recover(tx, run, is_crash=is_crash)
    return bool(found)


def recover_lost(tx: Transaction, run: RowMapping) -> None:
    """Take an executing run, which the caller has locked, from a worker whose lease has expired.

    An operator has decided that; the sweep would wait until more is known about the silence.
    """
    sub_runs.lock_parents(tx, [run], wait=True)
    budgets.lock(tx, [run["id"]])
    line = "recovering run %s from worker %s for an operator"
    _recover(tx, run, line, is_crash=False)


def _recover(tx: Transaction, run: RowMapping, line: str = "", *, is_crash: bool = True) -> None:
    """Queue a lost run again, unless it was being cancelled or keeps losing its workers.

    `line` is logged after the commit, with the ids of the run and its owner.
    """
    _note(tx, run, run_spans.claimed_at(tx.sql, [run]), line, is_crash=is_crash)
    if run["cancel_requested_at"] is not None:
        endings.end_unclaimed(tx, run, RunState.CANCELLED)
        return
    [crashes] = _crashes(tx.sql, [run], {run["id"]: is_crash})
    if crashes >= MAX_CRASHES:
        endings.end_unclaimed(tx, run, RunState.FAILED, CRASHED)
    else:
        agent_costs.give_back_lost(tx, run)
        _queue(tx, [run], crashes)


def _note(
    tx: Transaction, run: RowMapping, claimed: Mapping[UUID, int], line: str, *, is_crash: bool
) -> None:
    """Count the recovery, log it, and record the attempt that has ended by it."""
    if is_crash and run["agent"] is None:  # the operator cannot mend agent workers
        tx.after_commit.append(Recovered(run["id"]))
    tx.after_commit.append(_Lost(run, claimed, line))


@dataclass(frozen=True, slots=True)
class _Lost:
    """An attempt that has ended without its worker, for the log and the traces."""

    kind: ClassVar[str] = "lost attempt"
    run: RowMapping
    claimed: Mapping[UUID, int]
    line: str

    @property
    def subject(self) -> UUID:
        """Return the run's id."""
        return UUID(str(self.run["id"]))

    @staticmethod
    def send(_connections: Connections, group: "Sequence[_Lost]") -> None:
        """Log and record the attempts."""
        for one in group:
            if one.line:
                with logs.about(**subject(one.run)):
                    log.warning(one.line, one.run["id"], one.run["owner"])
            run_spans.lost(one.run, one.claimed)


def _crashes(
    sql: Connection, rows: Sequence[RowMapping], is_crash: Mapping[UUID, bool]
) -> list[int]:
    """Return how many crashes of the same step each of these lost runs has behind it."""
    ids = [run["id"] for run in rows]
    steps = {"ids": ids, "steps": sorted(STEP_TYPES)}
    progressed = set(sql.exec_driver_sql(_FIND_PROGRESSED, steps).scalars())
    return [
        (0 if run["id"] in progressed else run["crashes"]) + int(is_crash[run["id"]])
        for run in rows
    ]


def _queue(tx: Transaction, rows: Sequence[RowMapping], crashes: int) -> None:
    tx.sql.execute(
        update(runs)
        .where(runs.c.id.in_([run["id"] for run in rows]))
        .values(**queued("worker_lost"), fence=runs.c.fence + 1, crashes=crashes)
    )
    for run in rows:
        tx.after_commit.append(agent_queue.announce(run["id"], run["org_id"], run["agent"]))


def recover_from(
    connections: Connections, owner: UUID, seen_at: datetime, run_ids: Collection[UUID]
) -> None:
    """Take runs of an agent worker whose connection was closed and that was not heard since.

    `seen_at` is when it renewed its lease over that connection, and `run_ids` are those that it
    named there. A worker that has others may still be alive with another heartbeat waiting; its
    other runs are recovered when the lease expires.

    Raises:
        Unavailable
    """
    lease = func.make_interval(0, 0, 0, 0, 0, 0, connections.settings.lease_seconds)
    is_silent = (workers.c.id == owner) & (workers.c.seen_at == seen_at)
    has_others = exists().where(
        runs.c.owner == owner, text("state = 'executing'"), runs.c.id.not_in(run_ids)
    )
    left = case((has_others, workers.c.seen_at), else_=func.now() - lease)
    with connections.transaction() as tx:
        lost = update(workers).where(is_silent).values(seen_at=left)
        if not tx.sql.execute(lost).rowcount:
            return
        executing = tx.sql.execute(
            select(*runs.c)
            .where(runs.c.owner == owner, text("state = 'executing'"), runs.c.id.in_(run_ids))
            .order_by(runs.c.id)
            .with_for_update(skip_locked=True)
        )
        not_taken = Left()
        for run in with_reservations_locked(tx, executing.mappings().all(), not_taken):
            with isolated(tx, run, not_taken):
                _recover(tx, run, "recovering run %s from lost agent worker %s")
        not_taken.log("recover_from")
        # An earlier heartbeat may wait that names these runs, too.
        tx.after_commit.append(Wake(agent_workers.news_topic(owner), str(owner), everyone=True))
