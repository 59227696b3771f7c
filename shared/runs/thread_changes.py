"""Changes of a thread in which its runs take part.

Rows are locked as `thread_queue.py` says: that of the active run before that of the thread, then
those of pending runs. That of a scheduled run is locked before all, as when its time comes.
"""

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    Row,
    RowMapping,
    TextClause,
    case,
    func,
    or_,
    select,
    update,
)

from arkloop.shared.actors import Actor
from arkloop.shared.errors import ThreadBusy
from arkloop.shared.runs import waiting_runs
from arkloop.shared.runs.visible_runs import BEHIND_ALL
from arkloop.shared.storage.arrays import is_among
from arkloop.shared.storage.connections import Transaction
from arkloop.shared.storage.sql_files import statement
from arkloop.shared.storage.tables.runs import (
    IS_ACTIVE,
    IS_SCHEDULED,
    WAITS_FOR_THREAD,
    runs,
    sub_runs,
)
from arkloop.shared.storage.tables.threads import threads as threads_table
from arkloop.shared.threads import threads

_THREADS_BELOW = statement(__package__, "threads_below")


def change(tx: Transaction, actor: Actor, thread_id: UUID, **changes: Any) -> Row[Any]:
    """Change the thread as `threads.change` does.

    Those who see it see its runs, and the threads below it with their sub-runs: a trigger keeps
    that. Where a thread stays public, its runs that a request has hidden are due to be seen again.

    Raises: as `threads.change`.
    """
    if "is_private" in changes:
        _lock_tree(tx, thread_id)
        if not changes["is_private"]:
            # Also where nothing is due: a process of before may have hidden runs of a thread that
            # another request had made due, and corrected, meanwhile.
            has_hidden = threads_table.c.runs_hidden_from.is_not(None)
            is_due = or_(threads_table.c.runs_due_at.is_not(None), has_hidden)
            upto = case((has_hidden, BEHIND_ALL), else_=threads_table.c.runs_due_upto)
            changes |= {"runs_due_at": case((is_due, func.now())), "runs_due_upto": upto}
    return threads.change(tx, actor, thread_id, **changes)


def delete(tx: Transaction, actor: Actor, thread_id: UUID) -> bool:
    """Hide the thread and all in it, and the threads below it; their rows stay.

    Runs that wait in one of them end as cancelled. A sub-run that is still active ends by itself,
    since its parent has ended. Returns whether lists still have runs of the thread, which
    `visible_runs.finish` takes out.

    Raises:
        ThreadNotFound, Forbidden
        ThreadBusy: a run is active in it, or one that was created by a request below it.
    """
    below = _lock_tree(tx, thread_id)
    is_in_tree = is_among(runs.c.thread_id, [thread_id, *below])
    # Creating a run takes the same lock: none can begin in a thread that goes.
    threads.lock(tx, actor, thread_id)
    _lock_threads(tx, below)
    counts = or_(runs.c.thread_id == thread_id, runs.c.parent_run_id.is_(None))
    if active := tx.sql.scalar(select(runs.c.id).where(is_in_tree, IS_ACTIVE, counts).limit(1)):
        raise ThreadBusy(active_run_id=str(active))
    # Nobody could see or cancel them any more, and they would count for the limits of the org.
    for run in _lock_runs(tx, is_in_tree, WAITS_FOR_THREAD):
        waiting_runs.withdraw(tx, run)
    gone = update(threads_table).where(threads_table.c.id == thread_id)
    tx.sql.execute(gone.values(deleted_at=func.now()))
    # By a statement of its own: a trigger has set it behind the one above.
    left = select(threads_table.c.runs_due_at).where(threads_table.c.id == thread_id)
    return tx.sql.scalar(left) is not None


def _lock_tree(tx: Transaction, thread_id: UUID) -> Sequence[UUID]:
    """Lock scheduled and active runs of a thread and of those below it; return the latter's ids.

    The trigger writes the rows of these runs, from the root on, while their ends lock the leaves
    first, as their cancels do.
    """
    below = tx.sql.exec_driver_sql(_THREADS_BELOW, {"thread_id": thread_id}).scalars().all()
    is_in_tree = is_among(runs.c.thread_id, [thread_id, *below])
    _lock_runs(tx, is_in_tree, IS_SCHEDULED)
    _lock_runs(tx, is_in_tree, IS_ACTIVE)
    return below


def _lock_threads(tx: Transaction, thread_ids: Sequence[UUID]) -> None:
    query = select(threads_table.c.id).where(is_among(threads_table.c.id, thread_ids))
    tx.sql.execute(query.order_by(threads_table.c.id).with_for_update(key_share=True))


def _lock_runs(
    tx: Transaction, are_of_threads: ColumnElement[bool], which: TextClause
) -> Sequence[RowMapping]:
    """Lock these runs of threads, the deepest first; return what `waiting_runs.withdraw` needs."""
    query = select(runs.c.id, runs.c.state).where(are_of_threads, which)
    query = query.outerjoin(sub_runs, sub_runs.c.run_id == runs.c.id)
    query = query.order_by(func.coalesce(sub_runs.c.depth, 0).desc(), runs.c.id)
    locked = tx.sql.execute(query.with_for_update(of=runs, key_share=True))
    return locked.mappings().all()
