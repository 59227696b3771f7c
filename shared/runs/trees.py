"""Trees of runs: a run and all sub-runs below it are cancelled together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from types import MappingProxyType
from typing import Any, ClassVar
from uuid import UUID

from sqlalchemy import Row, exists, func, select
from sqlalchemy.exc import DBAPIError

from arkloop.shared.actors import Actor
from arkloop.shared.audit import audit_log
from arkloop.shared.audit.audit_log import NewEntry
from arkloop.shared.billing import budgets
from arkloop.shared.runs import agent_workers, endings, interrupted_calls, sub_runs
from arkloop.shared.runs.states import WAITING_FOR_THREAD, RunState
from arkloop.shared.runs.swept_batches import BATCH, Left, isolated, wait_briefly
from arkloop.shared.runs.thread_queue import Effect, Happening, Holder, rule_for
from arkloop.shared.storage import postgres, signals
from arkloop.shared.storage.arrays import TextArray, is_among
from arkloop.shared.storage.connections import Connections, Transaction
from arkloop.shared.storage.notifications import Notification
from arkloop.shared.storage.sql_files import statement
from arkloop.shared.storage.tables.accounts import MOVED_ORGS
from arkloop.shared.storage.tables.runs import IS_ACTIVE_SUB_RUN, UNHELD_AND_CANCELLED, runs
from arkloop.shared.threads.visibility import seen_by

_CANCEL_TREE = statement(__package__, "cancel_tree")
_CANCEL_ORPHANS = statement(__package__, "cancel_orphans")
_WITHOUT_ENTRY = {"entry": None, "pieces": None}
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

#: Parents that have ended, or are gone, above active runs without a request to cancel them.
_FIND_ENDED = (
    select(runs.c.parent_run_id.label("id"), runs.c.org_id)
    .where(IS_ACTIVE_SUB_RUN, runs.c.cancel_requested_at.is_(None))
    .where(~exists().where(_OTHER.c.id == runs.c.parent_run_id, _OTHER.c.ended_at.is_(None)))
    .where(runs.c.org_id.not_in(MOVED_ORGS))
    .distinct()
    .limit(BATCH)
)


def cancel(tx: Transaction, actor: Actor, run_id: UUID) -> bool:
    """Cancel a run with all sub-runs below it; False if the actor has no such active run.

    If no worker holds the run, it ends now; what none holds below it ends after the commit. The
    owners of what is being executed are asked to end it.
    """
    known = interrupted_calls.look_up(tx, [run_id])
    cancelled = request_cancel(tx, actor, run_id)
    carry_out(tx, cancelled, known)
    return bool(cancelled)


def cancel_held(tx: Transaction, actor: Actor, run_id: UUID, entry: NewEntry) -> bool:
    """Cancel as `cancel` does and record `entry`, in one statement, if a worker holds the run.

    False, and nothing changed, if the actor has no such run or none holds it.
    """
    cancelled = _request_cancel(tx, actor, run_id, actor.user_id, audit_log.arguments(entry))
    carry_out(tx, cancelled)
    return bool(cancelled)


def request_cancel(
    tx: Transaction,
    actor: Actor,
    run_id: UUID,
    *,
    by_user_id: UUID | None = None,
    also_deleted: bool = False,
) -> Sequence[Row[Any]]:
    """Request the cancellation of a run with all sub-runs below it, for `carry_out`.

    Returns nothing if the actor has no such run that has not ended. `by_user_id` is who cancels it,
    by default the actor; `also_deleted` finds runs of deleted threads, too.
    """
    user_id = by_user_id or actor.user_id
    return _request_cancel(tx, actor, run_id, user_id, _WITHOUT_ENTRY, also_deleted)


def _request_cancel(
    tx: Transaction,
    actor: Actor,
    run_id: UUID,
    by_user_id: UUID,
    entry: Mapping[str, str | TextArray | None],
    also_deleted: bool = False,
) -> Sequence[Row[Any]]:
    return tx.sql.exec_driver_sql(
        _CANCEL_TREE,
        {
            "run_id": run_id,
            **seen_by(actor),
            "writer_id": by_user_id,
            "writes_all": actor.writes_all,
            "also_deleted": also_deleted,
            **entry,
        },
    ).all()


def carry_out(
    tx: Transaction,
    cancelled: Sequence[Row[Any]],
    known: Mapping[UUID, interrupted_calls.Known] = MappingProxyType({}),
) -> None:
    """Carry out a requested cancel: notify the owners of what is executed, end the rest.

    `known` is what `interrupted_calls.look_up` has found before the request.
    """
    tx.after_commit += [
        notification_of_cancel(run, is_plain=not run.has_cause)
        for run in cancelled
        if _is(run, Effect.REQUEST_CANCEL)
    ]
    unheld = [run for run in cancelled if _is(run, Effect.END_ACTIVE) or _is(run, Effect.WITHDRAW)]
    end_unheld(tx, [run.id for run in unheld if run.depth == 0], known)
    # After the signals, and not before the response: each takes some milliseconds.
    below = sorted((run for run in unheld if run.depth > 0), key=lambda run: -run.depth)
    tx.after_commit += [_EndUnheld(run.id) for run in below]


def _is(run: Row[Any], effect: Effect) -> bool:
    """Return whether the cancel of a run has the effect, by the rules for the thread of each."""
    if RunState(run.state) in WAITING_FOR_THREAD:
        return effect in rule_for(Happening.CANCEL_WAITING, Holder.NONE).effects
    # As it was before the cancel, which is in its row already.
    return effect in rule_for(Happening.CANCEL_ACTIVE, Holder(run.state)).effects


def cancel_orphans(tx: Transaction, parent_run_id: UUID | None = None) -> None:
    """Cancel all runs below this one, which has ended; without an id, below any that has."""
    parameters = {"parent_run_id": parent_run_id}
    carry_out(tx, tx.sql.exec_driver_sql(_CANCEL_ORPHANS, parameters).all())


def cancel_all_orphans(tx: Transaction, left: Left) -> bool:
    """Cancel all runs below any that has ended, or below each by itself if some are locked.

    Returns whether more may be left.
    """
    wait_briefly(tx)
    pending = len(tx.after_commit)
    try:
        with tx.sql.begin_nested():
            cancel_orphans(tx)
            return False
    except DBAPIError as error:
        if not postgres.is_locked(error):
            raise
        del tx.after_commit[pending:]
    others = _FIND_ENDED.where(~is_among(runs.c.parent_run_id, left.ids))
    ended = tx.sql.execute(others).mappings().all()
    for parent in ended:
        with isolated(tx, parent, left):
            cancel_orphans(tx, parent["id"])
    return len(ended) == BATCH


def start_held(tx: Transaction) -> None:
    """Start sub-runs that wait for their turn though none of their parent's is active.

    The last one ended at the moment when somebody else had locked them.
    """
    for parent_run_id in tx.sql.execute(_FIND_HELD).scalars():
        sub_runs.start_held(tx, parent_run_id)


def notification_of_cancel(run: Row[Any], *, is_plain: bool = False) -> Notification:
    """Return the notification of a cancel for the owner of an executing run.

    Heartbeats of agent workers wait for news: no process listens to the signals of such an owner.
    """
    if run.agent is None:
        return signals.Cancel(run.id, run.owner, run.cancel_requested_by, is_plain=is_plain)
    return signals.Wake(agent_workers.news_topic(run.owner), str(run.id), everyone=True)


def end_unheld(
    tx: Transaction, run_ids: Sequence[UUID], known: Mapping[UUID, interrupted_calls.Known]
) -> None:
    """End those of the runs that are to be cancelled, and that no worker holds.

    `known` is what `interrupted_calls.look_up` has found before any of them was locked.
    """
    if not run_ids:
        return
    rows = tx.sql.execute(
        select(*runs.c)
        .where(runs.c.id.in_(run_ids), UNHELD_AND_CANCELLED)
        .order_by(runs.c.id)
        .with_for_update(key_share=True, skip_locked=True)
    )
    found = rows.mappings().all()
    sub_runs.lock_parents(tx, found, wait=True)
    budgets.lock(tx, [row["id"] for row in found])
    for row in found:
        endings.end_unclaimed(tx, row, RunState.CANCELLED, known=known.get(row["id"]))


@dataclass(frozen=True, slots=True)
class _EndUnheld:
    """A sub-run that was cancelled and that no worker holds; if this is lost, the sweep ends it."""

    kind: ClassVar[str] = "end_unheld"
    subject: UUID  # the run

    @staticmethod
    def send(connections: Connections, group: "Sequence[_EndUnheld]") -> None:
        """End the runs, each in a transaction of its own."""
        for one in group:
            with connections.transaction() as tx:
                known = interrupted_calls.look_up(tx, [one.subject])
                end_unheld(tx, [one.subject], known)
