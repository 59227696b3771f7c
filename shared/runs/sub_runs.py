"""Sub-runs: what the end of one means to the run that has started it.

Rows are locked from the leaves of a tree to its root: a run, then its parent. To end runs in
one transaction, lock all of these rows before money (`budgets.lock`).
"""

from collections.abc import Iterable
from uuid import UUID

from sqlalchemy import RowMapping, func, select

from arkloop.shared.events.types import RunError
from arkloop.shared.runs import agent_queue, pending_calls
from arkloop.shared.runs.pending_calls import CallResult
from arkloop.shared.runs.states import RunState
from arkloop.shared.storage.connections import Transaction
from arkloop.shared.storage.sql_files import statement
from arkloop.shared.storage.tables.runs import runs, sub_runs

CANCELLED = "The sub-run was cancelled."

_START_HELD = statement(__package__, "start_held")


def ended(
    tx: Transaction,
    parent_run_id: UUID,
    run_id: UUID,
    *,
    state: RunState,
    output: str,
    error: RunError | None,
    had_turn: bool = True,
) -> None:
    """Give the result of a sub-run that ends to its parent, and its turn to the next one.

    `had_turn` is False for one that has not had its turn. Locks the parent's row.
    """
    call_id = tx.sql.scalar(select(sub_runs.c.parent_call_id).where(sub_runs.c.run_id == run_id))
    if error is not None:
        output = f"The sub-run failed: {error.code}: {error.message}"
    elif state == RunState.CANCELLED:
        output = CANCELLED
    result = CallResult(
        tool_call_id=call_id or "", output=output, is_error=state != RunState.COMPLETED
    )
    if pending_calls.settle(tx, parent_run_id, result) and had_turn:
        start_held(tx, parent_run_id)


def start_held(tx: Transaction, parent_run_id: UUID) -> None:
    """Queue the next sub-run that waits for its turn; the caller has the lock of the parent."""
    held = tx.sql.exec_driver_sql(_START_HELD, {"parent_run_id": parent_run_id}).one_or_none()
    if held is not None:
        tx.after_commit.append(agent_queue.announce(held.id, held.org_id, held.agent))


def had_turn(run: RowMapping) -> bool:
    """Return whether the run was queued at any time, and does not wait for its turn."""
    return bool(run["attempt"] > 0 or run["state"] != RunState.SUSPENDED)


def lock_parents(tx: Transaction, rows: Iterable[RowMapping], *, wait: bool) -> set[UUID]:
    """Lock the parents of these locked runs, before the money of the runs is; returns them.

    Without `wait` those that somebody else has locked are left out.
    """
    parents: set[UUID] = {
        parent for row in rows if (parent := row.get("parent_run_id")) is not None
    }
    if not parents:
        return parents
    return set(
        tx.sql.scalars(
            select(runs.c.id)
            .outerjoin(sub_runs, sub_runs.c.run_id == runs.c.id)
            .where(runs.c.id.in_(parents))
            .order_by(func.coalesce(sub_runs.c.depth, 0).desc(), runs.c.id)
            .with_for_update(of=runs, key_share=True, skip_locked=not wait)
        )
    )
