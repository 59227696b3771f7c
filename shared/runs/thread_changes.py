"""Changes of a thread in which its runs take part.

Rows are locked as `thread_queue.py` says: that of the active run before that of the thread, then
those of pending runs. That of a scheduled run is locked before both, as when its time comes.
"""

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import Row, RowMapping, TextClause, func, select, update

from arkloop.shared.actors import Actor
from arkloop.shared.errors import ThreadBusy
from arkloop.shared.runs import waiting_runs
from arkloop.shared.storage.connections import Transaction
from arkloop.shared.storage.tables.runs import IS_SCHEDULED, WAITS_FOR_THREAD, runs
from arkloop.shared.storage.tables.threads import threads as threads_table
from arkloop.shared.threads import threads


def change(tx: Transaction, actor: Actor, thread_id: UUID, **changes: Any) -> Row[Any]:
    """Change the thread as `threads.change` does.

    Those who see it see its runs, and the threads below it with their sub-runs: a trigger keeps
    that.

    Raises: as `threads.change`.
    """
    if "is_private" in changes:
        # The trigger writes their rows, the root's first; their ends lock the leaves first.
        waiting_runs.lock_active(tx.sql, thread_id, with_sub_runs=True)
    return threads.change(tx, actor, thread_id, **changes)


def delete(tx: Transaction, actor: Actor, thread_id: UUID) -> None:
    """Hide the thread and all in it; its rows stay. Runs that wait end as cancelled.

    Raises:
        ThreadNotFound, Forbidden
        ThreadBusy: a run is active in it.
    """
    _lock_runs(tx, thread_id, IS_SCHEDULED)
    # Creating a run takes the same lock: none can begin in a thread that goes.
    threads.lock(tx, actor, thread_id)
    if active := threads.active_run_id(tx.sql, thread_id):
        raise ThreadBusy(active_run_id=str(active))
    # Nobody could see or cancel them any more, and they would count for the limits of the org.
    for run in _lock_runs(tx, thread_id, WAITS_FOR_THREAD):
        waiting_runs.withdraw(tx, run)
    gone = update(threads_table).where(threads_table.c.id == thread_id)
    tx.sql.execute(gone.values(deleted_at=func.now()))


def _lock_runs(tx: Transaction, thread_id: UUID, which: TextClause) -> Sequence[RowMapping]:
    """Lock these runs of a thread; return what `waiting_runs.withdraw` needs of them."""
    query = select(runs.c.id, runs.c.state).where(runs.c.thread_id == thread_id, which)
    locked = tx.sql.execute(query.order_by(runs.c.id).with_for_update(key_share=True))
    return locked.mappings().all()
