"""Runs of revoked API keys, of members who have left and of suspended orgs: they are cancelled, so
that they stop spending.

Of a key, all that have not ended; of a member, those in private threads, which nobody sees any
more; of an org, those that are executed. Nothing else does this. Those that a suspended org had in
the queue get the time of the suspension back when it is resumed. A key that expires, a logout and a
new password end access and leave runs alone: what was started by then was wanted.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import delete, func, select, text, update

from arkloop.shared.runs import transitions, trees
from arkloop.shared.runs.states import RunState
from arkloop.shared.storage.connections import Transaction
from arkloop.shared.storage.sql_files import statement
from arkloop.shared.storage.tables.accounts import api_keys
from arkloop.shared.storage.tables.runs import agent_runs, runs

#: How long the sweep looks for runs of a revoked key. A web process accepts the key for 2 s more,
#: and runs that were locked at the moment of the revocation have to be found later.
WATCHED = timedelta(hours=1)

#: Runs that one statement cancels: a revocation must be done within the time of a request, however
#: many runs its key has.
BATCH = 1_000

#: The `cancel_reason` of runs, also in their last event.
ORG_SUSPENDED = "org_suspended"

_CANCEL_RUNS_OF_KEYS = statement(__package__, "cancel_runs_of_keys")
_CANCEL_PRIVATE_RUNS = statement(__package__, "cancel_private_runs")
_CANCEL_RUNS_OF_FORMER_MEMBERS = statement(__package__, "cancel_runs_of_former_members")
_CANCEL_RUNS_OF_SUSPENDED_ORGS = statement(__package__, "cancel_runs_of_suspended_orgs")


def cancel_runs(
    tx: Transaction, key_ids: Sequence[UUID], *, by_user_id: UUID | None = None
) -> bool:
    """Request the cancellation of a batch of the active runs of these keys.

    By default they are cancelled for the owners of the keys. Returns whether more may be left,
    which the sweep cancels.

    A run that is being executed ends at once: its worker is notified. No worker claims the others
    any more, and the sweep ends them.
    """
    values = {"key_ids": list(key_ids), "by_user_id": by_user_id, "batch": BATCH}
    cancelled = _cancel(tx, _CANCEL_RUNS_OF_KEYS, **values)
    return bool(cancelled) and cancelled[0].found == BATCH


def cancel_left(tx: Transaction) -> bool:
    """Cancel a batch of what is left of recently revoked keys; returns whether more may be left.

    These are runs beyond the batch of the revocation, and such as were created, or locked, at that
    moment.
    """
    revoked = select(api_keys.c.id).where(api_keys.c.revoked_at > func.now() - WATCHED)
    key_ids = tx.sql.scalars(revoked).all()
    return bool(key_ids) and cancel_runs(tx, key_ids)


def cancel_private_runs(tx: Transaction, *, org_id: UUID, user_id: UUID, by_user_id: UUID) -> None:
    """Request the cancellation of a batch of the runs in private threads of a user in an org.

    For a member who leaves: nobody else sees these runs, or can cancel them. Of those that are
    left, the sweep cancels what is executed, and what waits for its thread or its time does not
    start (`waiting_runs.py`).
    """
    values = {"org_id": org_id, "user_id": user_id, "by_user_id": by_user_id, "batch": BATCH}
    _cancel(tx, _CANCEL_PRIVATE_RUNS, **values)


def cancel_runs_of_former_members(tx: Transaction) -> None:
    """Request the cancellation of runs that are executed in private threads of former members.

    These are runs beyond the batch of the removal, and such as were created, or locked, at that
    moment.
    """
    _cancel(tx, _CANCEL_RUNS_OF_FORMER_MEMBERS)


def cancel_runs_of_suspended_orgs(
    tx: Transaction, *, org_id: UUID | None = None, by_user_id: UUID | None = None
) -> None:
    """Request the cancellation of all runs that workers execute for suspended orgs, or for one.

    The others are claimed by nobody, and stay as they are.
    """
    _cancel(tx, _CANCEL_RUNS_OF_SUSPENDED_ORGS, org_id=org_id, by_user_id=by_user_id)


def give_time_back(tx: Transaction, org_id: UUID, suspended_at: datetime) -> None:
    """Take the suspension out of the time of runs that have started and are queued.

    The waits of others do not count in any case, and rows that are locked are those of runs that
    end. The claim sees the new time together with the end of the suspension. The deadlines of agent
    workers' runs were set without it; the next worker gets a new one with the run.
    """
    stuck = (
        select(runs.c.id)
        # Literal: see `tables.IS_ACTIVE`.
        .where(runs.c.org_id == org_id, text("state = 'queued' AND ended_at IS NULL"))
        .where(runs.c.started_at.is_not(None))
        .with_for_update(key_share=True, skip_locked=True)
    )
    since = func.greatest(runs.c.queued_at, suspended_at)
    waited = transitions.milliseconds_since(since)
    longer = update(runs).where(runs.c.id.in_(stuck))
    given = longer.values(waiting_ms=runs.c.waiting_ms + waited).returning(runs.c.id).cte("given")
    tx.sql.execute(delete(agent_runs).where(agent_runs.c.run_id.in_(select(given.c.id))))


def _cancel(tx: Transaction, cancel: str, **parameters: Any) -> Sequence[Any]:
    cancelled = tx.sql.exec_driver_sql(cancel, parameters).all()
    tx.after_commit += [
        trees.notification_of_cancel(run) for run in cancelled if run.state == RunState.EXECUTING
    ]
    return cancelled
