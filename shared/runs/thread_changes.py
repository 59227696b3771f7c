"""Changes of a thread in which its runs take part.

Rows are locked as `thread_queue.py` says: that of the active run before that of the thread.
"""

from typing import Any
from uuid import UUID

from sqlalchemy import Row

from arkloop.shared.actors import Actor
from arkloop.shared.runs import waiting_runs
from arkloop.shared.storage.connections import Transaction
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
