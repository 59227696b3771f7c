"""Runs that wait for their thread or for their time: the start of the next one, and cancels.

`thread_queue.py` has the rules. The start of a run locks the row of the active run that ends, if
there is one, then that of the thread, then that of the run which starts.
"""

import logging
import time
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any
from uuid import UUID

from sqlalchemy import (
    Connection,
    Row,
    RowMapping,
    and_,
    exists,
    func,
    literal,
    or_,
    select,
    update,
)

from arkloop.shared import logs
from arkloop.shared.errors import Unavailable
from arkloop.shared.events import event_log, types
from arkloop.shared.events.usage import Usage
from arkloop.shared.runs import agent_queue, offered_messages, places
from arkloop.shared.runs.ended import Ended
from arkloop.shared.runs.states import RunState
from arkloop.shared.runs.thread_queue import Effect, Guard, Happening, Holder, rule_for
from arkloop.shared.storage import postgres
from arkloop.shared.storage.connections import Connections, Transaction
from arkloop.shared.storage.sql_files import statement
from arkloop.shared.storage.tables.accounts import memberships
from arkloop.shared.storage.tables.runs import IS_ACTIVE, IS_PENDING, IS_SCHEDULED, runs
from arkloop.shared.storage.tables.threads import messages, threads
from arkloop.shared.threads import thread_contexts

log = logging.getLogger(__name__)

#: Runs whose time has come, and threads whose active run was deleted, that one look finds.
BATCH = 100
#: Runs that one look finds where more have become due: they start in turns of their orgs.
DUE_AT_ONCE = 1_000
#: A pass starts no more than `BATCH` of them after this time: what else the sweep does must not be
#: late.
PASS_SECONDS = 1.0

#: A thread that is locked for longer is left to the next pass, or nobody's run would start in this.
_SHORT_LOCKS = "SET LOCAL lock_timeout = '100ms'"
_START = statement(__package__, "start")
_DUE_IN_TURNS = statement(__package__, "due_in_turns")
_FIND_UNBLOCKED = statement(__package__, "find_unblocked")
_IS_DUE = and_(IS_SCHEDULED, runs.c.not_before <= func.now())
_LOCK_ACTIVE = statement(__package__, "lock_active")


def lock_active(
    sql: Connection, thread_id: UUID, *, with_sub_runs: bool = False
) -> Row[Any] | None:
    """Lock the row of the thread's active run; None if it has none, or it has just ended.

    Look again once the thread is locked: another run may be active since.
    """
    values = {"thread_id": thread_id, "with_sub_runs": with_sub_runs}
    rows = sql.exec_driver_sql(_LOCK_ACTIVE, values).all()
    return next((row for row in rows if row.depth == 0), None)


def holder_of(active: Row[Any] | None) -> Holder:
    """Return the state of the active run, whose row is locked."""
    if active is None:
        return Holder.NONE
    return Holder.CANCELLING if active.cancel_requested_at is not None else Holder(active.state)


def flag(tx: Transaction, run_id: UUID, **also: bool) -> None:
    """Mark an active run, whose row is locked, as one with followers."""
    flags = {"has_followers": True, **also}
    tx.sql.execute(update(runs).where(runs.c.id == run_id).values(flags))


def after_end(tx: Transaction, ended: Row[Any]) -> None:
    """Carry out what the end of an active run means to its thread, in the same transaction.

    `ended` is what `end.sql` returns of it.
    """
    facts: list[Guard] = []
    if ended.has_followers:
        is_gone = _lock_thread(tx.sql, ended.thread_id)
        facts = [Guard.IS_FOLLOWED, *([Guard.IS_GONE] if is_gone else [])]
    position = ended.position
    for effect in rule_for(Happening.END, Holder.EXECUTING, facts).effects:
        match effect:
            case Effect.TURN_INTO_RUNS:
                position = offered_messages.after_end(tx, ended.run_id, ended.thread_id, position)
                if ended.superseded_at is not None:
                    discard(tx, ended.thread_id, ended.run_id, position)
                    offered_messages.leave(tx, ended.run_id)
            case Effect.START_FIRST:
                _start_first(tx, ended.thread_id)
            case Effect.WITHDRAW_PENDING:
                _withdraw_pending(tx, ended.thread_id)


def discard(tx: Transaction, thread_id: UUID, run_id: UUID, position: int) -> None:
    """Take what a run has left in its thread out of it: its message, and truncation points."""
    tx.sql.execute(
        update(messages)
        .where(messages.c.run_id == run_id, messages.c.superseded_at.is_(None))
        .values(superseded_at=func.now())
    )
    thread_contexts.forget(tx, thread_id, literal(position - 1))


def _start_first(tx: Transaction, thread_id: UUID) -> None:
    """Start the first pending run of a thread, whose row is locked and which has no active run.

    One that is to be cancelled is left to the sweep.
    """
    first = (
        select(runs.c.id)
        .where(runs.c.thread_id == thread_id, IS_PENDING, runs.c.cancel_requested_at.is_(None))
        .order_by(runs.c.position)
        .limit(1)
        .with_for_update(key_share=True)
    )
    if (run_id := tx.sql.scalar(first)) is not None:
        _start(tx, run_id)


def _start(tx: Transaction, run_id: UUID) -> None:
    started = tx.sql.exec_driver_sql(_START, {"run_id": run_id, "slot": places.SLOT}).one()
    tx.after_commit.append(agent_queue.announce(started.id, started.org_id, started.agent))


def withdraw(tx: Transaction, run: RowMapping, superseded_by: UUID | None = None) -> bool:
    """End a run that waits, as cancelled; False if it has changed since its row was read.

    Its messages leave the thread, unless another run supersedes it: that has taken them.
    """
    ended = tx.sql.execute(
        update(runs)
        .where(runs.c.id == run["id"], runs.c.state == run["state"])
        .values(
            state=RunState.CANCELLED,
            fence=runs.c.fence + 1,
            ended_at=func.clock_timestamp(),
            superseded_by=superseded_by,
        )
        .returning(
            *(runs.c.id, runs.c.org_id, runs.c.trace_id, runs.c.route_id),
            *(runs.c.thread_id, runs.c.position),
        )
    ).one_or_none()
    if ended is None:
        return False
    last = types.RunCancelled(
        Usage(), Decimal(0), None if superseded_by is None else str(superseded_by)
    )
    event_log.store(tx, {run["id"]: event_log.number(tx, run["id"], [last])})
    tx.sql.execute(
        update(messages)
        .where(messages.c.thread_id == ended.thread_id, places.in_slot(ended.position))
        .values(superseded_at=func.now())
    )
    tx.after_commit.append(Ended.of(ended._mapping, RunState.CANCELLED))
    return True


def _withdraw_pending(tx: Transaction, thread_id: UUID) -> None:
    """End all pending runs of a thread, whose row is locked, as cancelled."""
    waiting = select(runs.c.id, runs.c.state).where(runs.c.thread_id == thread_id, IS_PENDING)
    waiting = waiting.order_by(runs.c.position).with_for_update(key_share=True)
    for run in tx.sql.execute(waiting).mappings().all():
        withdraw(tx, run)


def start_due(connections: Connections) -> None:
    """Start scheduled runs whose time has come, or let them wait for their thread.

    Raises:
        Unavailable
    """
    tried: set[UUID] = set()
    due = _find_due(connections)
    ends_at = time.monotonic() + PASS_SECONDS
    while due := [run for run in due if run["id"] not in tried]:
        for run in due:
            if time.monotonic() > ends_at and len(tried) >= BATCH:
                return
            tried.add(run["id"])
            _start_isolated(connections, run, _is_due)
        due = _find_due(connections)


def _find_due(connections: Connections) -> Sequence[RowMapping]:
    """Find runs whose time has come: all in the order of their times, or many in turns of orgs."""
    oldest = select(runs.c.id, runs.c.org_id, runs.c.trace_id).where(_IS_DUE)
    with connections.reading() as sql:
        due = sql.execute(oldest.order_by(runs.c.not_before).limit(BATCH)).mappings().all()
        if len(due) < BATCH:
            return due
        return sql.exec_driver_sql(_DUE_IN_TURNS, {"most": DUE_AT_ONCE}).mappings().all()


def start_unblocked(connections: Connections) -> bool:
    """Start the next runs of threads whose active run somebody has deleted, as its end would have.

    Where a request has started another one since, the end of that starts them. Returns whether more
    may be left.

    Raises:
        Unavailable
    """
    with connections.reading() as sql:
        found = sql.exec_driver_sql(_FIND_UNBLOCKED, {"most": BATCH}).mappings().all()
    started = [_start_isolated(connections, run, _unblock) for run in found]
    return len(found) == BATCH and any(started)


def _start_isolated(
    connections: Connections, run: RowMapping, start: Callable[[Transaction, RowMapping], None]
) -> bool:
    """Start one run; returns False after a failure, which does not stop the others."""
    about = {"run_id": str(run["id"]), "org_id": str(run["org_id"])}
    with logs.about(**about, trace_id=run["trace_id"]):
        try:
            with connections.transaction() as tx:
                tx.sql.exec_driver_sql(_SHORT_LOCKS)
                start(tx, run)
        except Unavailable as error:
            if not postgres.is_locked(error.__cause__):
                raise
            log.warning("run %s is not started: its thread is locked", run["id"])
            return False
        except Exception:
            log.exception("starting run %s failed; continuing with the others", run["id"])
            return False
        return True


def _unblock(tx: Transaction, run: RowMapping) -> None:
    active = lock_active(tx.sql, run["thread_id"])
    is_gone = _lock_thread(tx.sql, run["thread_id"])
    if not is_still(tx.sql, run["thread_id"], active):
        return  # the next look finds it
    if active is not None:
        flag(tx, active.id)
    else:
        (_withdraw_pending if is_gone else _start_first)(tx, run["thread_id"])


def _is_due(tx: Transaction, found: RowMapping) -> None:
    run = tx.sql.execute(
        select(runs.c.id, runs.c.state, runs.c.thread_id)
        .where(runs.c.id == found["id"], IS_SCHEDULED)
        .with_for_update(key_share=True, skip_locked=True)
    ).one_or_none()
    if run is None:
        return
    active = lock_active(tx.sql, run.thread_id)
    is_gone = _lock_thread(tx.sql, run.thread_id)
    if not is_still(tx.sql, run.thread_id, active):
        return  # the next look finds it
    facts = [Guard.IS_GONE] if is_gone else []
    for effect in rule_for(Happening.DUE, holder_of(active), facts).effects:
        match effect:
            case Effect.WITHDRAW:
                withdraw(tx, run._mapping)
            case Effect.START:
                _start(tx, run.id)
            case Effect.PEND_LAST:
                _pend(tx, run.id, run.thread_id)
            case Effect.FLAG:
                assert active is not None
                flag(tx, active.id)


def _pend(tx: Transaction, run_id: UUID, thread_id: UUID) -> None:
    """Let a scheduled run wait behind all that are pending now."""
    place = places.queue_of(tx.sql, thread_id).end
    before = tx.sql.execute(select(runs.c.position).where(runs.c.id == run_id)).scalar_one()
    tx.sql.execute(
        update(messages)
        .where(messages.c.thread_id == thread_id, places.in_slot(before))
        .values(position=messages.c.position + (place - before))
    )
    pended = {"state": RunState.PENDING, "position": place}
    tx.sql.execute(update(runs).where(runs.c.id == run_id).values(pended))


def _lock_thread(sql: Connection, thread_id: UUID) -> bool:
    """Lock the thread's row; returns whether nobody can see the thread any more.

    It is deleted, or it is private and its creator has left the org.
    """
    is_member = exists().where(
        memberships.c.user_id == threads.c.created_by_user_id,
        memberships.c.org_id == threads.c.org_id,
    )
    is_gone = or_(threads.c.deleted_at.is_not(None), and_(threads.c.is_private, ~is_member))
    locked = select(is_gone).where(threads.c.id == thread_id)
    return bool(sql.execute(locked.with_for_update(of=threads, key_share=True)).scalar_one())


def is_still(sql: Connection, thread_id: UUID, active: Row[Any] | None) -> bool:
    """Return whether the active run of a locked thread is the one that was locked before."""
    now = sql.scalar(select(runs.c.id).where(runs.c.thread_id == thread_id, IS_ACTIVE))
    return now == (active and active.id)
