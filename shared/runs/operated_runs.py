"""Runs of any org, which an operator queues again or cancels.

The lease decides: a run that a worker holds is left to it, so that nothing is executed twice. What
is queued again gets a higher fence first, as in the sweep, and what its worker still writes has no
effect.
"""

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row, func, select

from arkloop.shared.actors import Actor
from arkloop.shared.errors import RunNotFound
from arkloop.shared.runs import (
    agent_queue,
    interrupted_calls,
    moved_orgs,
    pending_calls,
    recovery,
    swept_batches,
    trees,
)
from arkloop.shared.runs.moved_orgs import OrgMoved
from arkloop.shared.runs.states import RunState
from arkloop.shared.storage.connections import Connections, Transaction
from arkloop.shared.storage.tables.runs import UNHELD_AND_CANCELLED, runs, workers
from arkloop.shared.storage.tables.threads import threads

_OWNERS: tuple[Any, ...] = (
    runs.c.org_id,
    runs.c.created_by_user_id,
    threads.c.created_by_user_id.label("thread_creator"),
)


class Outcome(StrEnum):
    """The result of queueing a run again."""

    QUEUED = "queued"  # its workers were notified, or it was taken from a lost worker
    HELD = "held"  # a worker with a lease executes it: nothing has changed
    WAITING = "waiting"  # it waits for people, results, sub-runs, its thread or its time
    ENDED = "ended"  # it has ended, perhaps now: it was to be cancelled, or had crashed too often


@dataclass(frozen=True, slots=True)
class Requeued:
    """A run after an attempt to queue it again."""

    org_id: UUID
    was: RunState
    outcome: Outcome
    lease_expires_at: datetime | None = None  # of a run that is held


def requeue(tx: Transaction, run_id: UUID) -> Requeued:
    """Queue a run again that no worker holds; may be repeated at any time.

    A queued run is announced once more. That a worker was lost does not count as a crash here: the
    run gets one more chance.

    Raises:
        RunNotFound
        OrgMoved: the org is in another cell, and the run here is what it has left behind.
    """
    is_cancelled = runs.c.cancel_requested_at.is_not(None).label("is_cancelled")
    before = tx.sql.execute(select(runs.c.org_id, is_cancelled).where(runs.c.id == run_id)).first()
    if before is not None:
        moved_orgs.check(tx, before.org_id)
    ends = before is not None and before.is_cancelled
    known = interrupted_calls.look_up(tx, [run_id]) if ends else {}
    query = select(*runs.c).where(runs.c.id == run_id).with_for_update()
    run = tx.sql.execute(query).mappings().one_or_none()
    if run is None:
        raise RunNotFound()
    was, expires_at = RunState(run["state"]), None
    if was is RunState.EXECUTING:
        expires_at = _lease_expires_at(tx, run["owner"])
    if expires_at is not None:
        return Requeued(run["org_id"], was, Outcome.HELD, expires_at)
    if was is RunState.EXECUTING:
        recovery.recover_lost(tx, run)
    elif not was.is_terminal and run["cancel_requested_at"] is not None:
        trees.end_unheld(tx, [run_id], known)
    elif was is RunState.QUEUED:
        tx.after_commit.append(agent_queue.announce(run_id, run["org_id"], run["agent"]))
    elif was in (RunState.WAITING, RunState.SUSPENDED):
        pending_calls.resume_if_complete(tx, run_id)
    return Requeued(run["org_id"], was, _outcome(tx.sql, run_id))


def requeue_each(connections: Connections, run_ids: Iterable[UUID]) -> None:
    """Queue runs again as `requeue` does, each in a transaction; those that are gone are left."""
    for run_id in run_ids:
        with suppress(RunNotFound, OrgMoved), connections.transaction() as tx:
            requeue(tx, run_id)


def _lease_expires_at(tx: Transaction, worker_id: UUID) -> datetime | None:
    """Return when the lease of a worker ends; None if it has ended, or there is no such worker.

    Not a join of the statement that locks the run: where that has waited for a claim, Postgres
    looks at the run's row anew, but not for its new worker.
    """
    lease = timedelta(seconds=tx.connections.settings.lease_seconds)
    expires_at = workers.c.seen_at + lease
    return tx.sql.scalar(
        select(expires_at).where(workers.c.id == worker_id, expires_at > func.now())
    )


def _outcome(sql: Connection, run_id: UUID) -> Outcome:
    state = RunState(sql.execute(select(runs.c.state).where(runs.c.id == run_id)).scalar_one())
    if state.is_terminal:
        return Outcome.ENDED
    return Outcome.QUEUED if state is RunState.QUEUED else Outcome.WAITING


def cancel(tx: Transaction, run_id: UUID, by_user_id: UUID | None = None) -> tuple[UUID, bool]:
    """Cancel a run of any org with all sub-runs below it, as `commands.cancel` does.

    It is cancelled in the name of `by_user_id`, by default of the user who has created it; its
    thread may be deleted, where nobody else can cancel it. Returns the org, and whether the run had
    not ended.

    Raises:
        RunNotFound
        OrgMoved: as `requeue`.
    """
    run = _find(tx.sql, run_id)
    moved_orgs.check(tx, run.org_id)
    known = interrupted_calls.look_up(tx, [run_id])
    cancelled = trees.request_cancel(
        *(tx, _reader_of(run), run_id),
        by_user_id=by_user_id or run.created_by_user_id,
        also_deleted=True,
    )
    trees.carry_out(tx, cancelled, known)
    return run.org_id, bool(cancelled)


def end_cancelled(tx: Transaction, org_id: UUID) -> None:
    """End runs of an org, some at a time, that are to be cancelled and that no worker holds.

    For an org that leaves for another cell: the sweep ends those of all others.
    """
    query = select(runs.c.id).where(UNHELD_AND_CANCELLED, runs.c.org_id == org_id)
    run_ids = tx.sql.scalars(query.limit(swept_batches.BATCH)).all()
    trees.end_unheld(tx, run_ids, interrupted_calls.look_up(tx, run_ids))


def reader_of(sql: Connection, run_id: UUID) -> Actor:
    """Return an actor that sees this run, for reads that name an actor.

    Raises:
        RunNotFound
    """
    return _reader_of(_find(sql, run_id))


def _reader_of(run: Row[Any]) -> Actor:
    """Return the creator of the run's thread, who sees it if it is private, too."""
    permissions = frozenset({"admin", "data.runs.read"})
    return Actor(
        org_id=run.org_id, user_id=run.thread_creator, role="owner", permissions=permissions
    )


def _find(sql: Connection, run_id: UUID) -> Row[Any]:
    query = (
        select(*_OWNERS).join(threads, threads.c.id == runs.c.thread_id).where(runs.c.id == run_id)
    )
    found = sql.execute(query).one_or_none()
    if found is None:
        raise RunNotFound()
    return found
