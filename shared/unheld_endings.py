"""The end of a run that no worker holds: it was cancelled, expired, or lost its workers."""

from sqlalchemy import RowMapping, update

from shared import eventlog, events, ids
from shared.connections import Transaction
from shared.money import budgets
from shared.status import RunState
from shared.tables import runs
from shared.transitions import ended, keep_message, keep_usage, recorded_totals


def end(
    tx: Transaction, run: RowMapping, state: RunState, error: events.RunError | None = None
) -> None:
    """End a run whose row lock the caller has and that no worker holds, as cancelled or failed.

    Text that was streamed and not completed is kept as a partial message. What the event log says
    it has used is counted and charged. Whoever ends several runs in one transaction has called
    `budgets.lock` for them.
    """
    totals = recorded_totals(tx.sql, run["id"])
    terminal = (
        events.RunCancelled(totals.usage, totals.cost_usd)
        if error is None
        else events.RunFailed(error, totals.usage, totals.cost_usd)
    )
    tx.sql.execute(
        update(runs)
        .where(runs.c.id == run["id"])
        .values(**ended(state, totals, error), fence=runs.c.fence + 1)
    )
    eventlog.append(tx, run["id"], [terminal])
    if text := eventlog.open_text(tx.sql, run["id"]):
        keep_message(tx.sql, run["id"], (ids.new_id(), text), partial=True)
    keep_usage(tx.sql, run["id"], totals)
    # Last: until the commit others wait for the rows that it locks.
    budgets.release(tx, org_id=run["org_id"], run_id=run["id"], cost_usd=totals.cost_usd)
