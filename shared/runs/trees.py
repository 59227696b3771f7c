"""Trees of runs: a run and all sub-runs below it are cancelled together."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import Row, exists, func, select

from arkloop.shared.actors import Actor
from arkloop.shared.billing import budgets
from arkloop.shared.runs import agent_workers, endings, sub_runs
from arkloop.shared.runs.states import RunState
from arkloop.shared.storage import signals
from arkloop.shared.storage.connections import Transaction
from arkloop.shared.storage.notifications import Notification
from arkloop.shared.storage.sql_files import statement
from arkloop.shared.storage.tables.runs import IS_ACTIVE_SUB_RUN, runs

_CANCEL_TREE = statement(__package__, "cancel_tree")
_CANCEL_ORPHANS = statement(__package__, "cancel_orphans")
_HELD = (runs.c.state == RunState.SUSPENDED) & (runs.c.attempt == 0)
_OTHER = runs.alias()
_FIND_HELD = (
    select(runs.c.parent_run_id)
    .where(IS_ACTIVE_SUB_RUN, _HELD, runs.c.created_at < func.now() - timedelta(seconds=5))
    .where(
        ~exists().where(
            _OTHER.c.parent_run_id == runs.c.parent_run_id,
            _OTHER.c.ended_at.is_(None),
            (_OTHER.c.state != RunState.SUSPENDED) | (_OTHER.c.attempt > 0),
        )
    )
    .distinct()
    .limit(100)
)
#: Runs that are ended at once; the sweep ends the others within seconds.
MAX_ENDED = 100


def cancel(tx: Transaction, actor: Actor, run_id: UUID) -> bool:
    """Cancel a run with all sub-runs below it; False if the actor has no such active run.

    What no worker holds ends now; the owners of what is being executed are asked to end it.
    """
    cancelled = tx.sql.exec_driver_sql(
        _CANCEL_TREE,
        {
            "run_id": run_id,
            "org_id": actor.org_id,
            "user_id": actor.user_id,
            "writes_all": actor.writes_all,
        },
    ).all()
    _carry_out(tx, cancelled)
    return bool(cancelled)


def cancel_orphans(tx: Transaction, parent_run_id: UUID | None = None) -> None:
    """Cancel all runs below this one, which has ended; without an id, below any that has."""
    parameters = {"parent_run_id": parent_run_id}
    _carry_out(tx, tx.sql.exec_driver_sql(_CANCEL_ORPHANS, parameters).all())


def start_held(tx: Transaction) -> None:
    """Start sub-runs that wait for their turn though none of their parent's is active.

    The last one ended at the moment when somebody else had locked them.
    """
    for parent_run_id in tx.sql.execute(_FIND_HELD).scalars():
        sub_runs.start_held(tx, parent_run_id)


def _wish(run: Row[Any]) -> Notification:
    """Return the notification of a cancel for the owner of an executing run."""
    if run.agent is None:
        return signals.Cancel(run.id, run.owner, run.cancel_requested_by)
    return signals.Wake(agent_workers.news_topic(run.owner), str(run.id), everyone=True)


def _carry_out(tx: Transaction, cancelled: Sequence[Row[Any]]) -> None:
    tx.after_commit += [_wish(run) for run in cancelled if run.state == RunState.EXECUTING]
    depths = {run.id: run.depth for run in cancelled if run.state != RunState.EXECUTING}
    if not depths:
        return
    deepest = sorted(depths, key=lambda run_id: -depths[run_id])[:MAX_ENDED]
    rows = tx.sql.execute(select(*runs.c).where(runs.c.id.in_(deepest))).mappings().all()
    sub_runs.lock_parents(tx, rows, wait=True)
    budgets.lock(tx, deepest)
    for row in sorted(rows, key=lambda row: -depths[row["id"]]):
        endings.end_unclaimed(tx, row, RunState.CANCELLED)
