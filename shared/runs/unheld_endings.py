"""The end of a run that no worker holds: it was cancelled, expired, or lost its workers."""

import logging
from functools import partial
from uuid import UUID

from sqlalchemy import RowMapping, update

from shared import ids
from shared.billing import budgets, usage_days
from shared.events import event_log, types
from shared.runs import interrupted_calls
from shared.runs.states import RunState
from shared.runs.transitions import Totals, ended, keep_message, keep_usage, recorded_totals
from shared.storage.connections import Transaction
from shared.storage.tables.runs import runs

log = logging.getLogger(__name__)


def end(
    tx: Transaction, run: RowMapping, state: RunState, error: types.RunError | None = None
) -> None:
    """End a run whose row lock the caller has and that no worker holds, as cancelled or failed.

    Text that was streamed and not completed is kept as a partial message. What the event log says
    it has used is counted and charged, and so is the call in which its worker was lost. Whoever
    ends several runs in one transaction has called `budgets.lock` for them.
    """
    streamed = event_log.open_events(tx.sql, run["id"])
    recorded = recorded_totals(tx.sql, run["id"])
    totals = interrupted_calls.count(tx.connections, tx.sql, run["id"], recorded, streamed)
    terminal = (
        types.RunCancelled(totals.usage, totals.cost_usd)
        if error is None
        else types.RunFailed(error, totals.usage, totals.cost_usd)
    )
    tx.sql.execute(
        update(runs)
        .where(runs.c.id == run["id"])
        .values(**ended(state, totals, error), fence=runs.c.fence + 1)
    )
    last: list[types.Event] = [terminal]
    if totals != recorded:
        last.insert(0, types.RunCost(totals.usage, totals.cost_usd, totals.routes))
    event_log.append(tx, run["id"], last)
    if text := event_log.text_of(streamed):
        keep_message(tx.sql, run["id"], (ids.new_id(), text), partial=True)
    if error is not None:
        tx.after_commit.append(partial(_report, run, error))
    # Last: until the commit others wait for the rows that it locks.
    _count(tx, run["org_id"], run["id"], totals)


def _report(run: RowMapping, error: types.RunError) -> None:
    extra = {"run_id": str(run["id"]), "code": error.code, "route_id": run["route_id"]}
    log.warning("run failed: %s, route %s", error.code, run["route_id"], extra=extra)


def count_late(tx: Transaction, *, org_id: UUID, run_id: UUID) -> None:
    """Count and charge a run that has ended and still holds money.

    Whoever ended it was of the release before this one, which knows of no money.
    """
    usage_days.lock(tx)
    _count(tx, org_id, run_id, recorded_totals(tx.sql, run_id))
    usage_days.add_late(tx, org_id, run_id)


def _count(tx: Transaction, org_id: UUID, run_id: UUID, totals: Totals) -> None:
    keep_usage(tx.sql, run_id, totals)
    budgets.release(
        tx, org_id=org_id, run_id=run_id, cost_usd=totals.cost_usd, own_usd=totals.own_usd
    )
