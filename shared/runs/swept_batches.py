"""Batches of runs that the sweep changes in one transaction."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from uuid import UUID

from sqlalchemy import RowMapping
from sqlalchemy.exc import DBAPIError

from arkloop.shared import logs
from arkloop.shared.billing import budgets
from arkloop.shared.runs import sub_runs
from arkloop.shared.storage import postgres
from arkloop.shared.storage.connections import Transaction

log = logging.getLogger(__name__)

BATCH = 100


def with_reservations_locked(tx: Transaction, rows: Sequence[RowMapping]) -> Sequence[RowMapping]:
    """Lock all that the ends of these locked runs will change; returns those that may end now.

    A sub-run whose parent somebody has locked comes back in the next sweep.
    """
    if not rows:
        return rows
    parents = {None, *sub_runs.lock_parents(tx, rows, wait=False)}
    rows = [run for run in rows if run.get("parent_run_id") in parents]
    budgets.lock(tx, [run["id"] for run in rows])
    return rows


@contextmanager
def isolated(tx: Transaction, run: RowMapping, settled: list[UUID] | None = None) -> Iterator[None]:
    """Isolate the work on one run, so that its failure does not stop the others.

    Where it succeeds, the run is added to `settled`: a batch without any would be found again.
    """
    pending = len(tx.after_commit)
    with logs.about(**subject(run)):
        try:
            with tx.sql.begin_nested():
                yield
            if settled is not None:
                settled.append(run["id"])
        except Exception as error:
            if isinstance(error, DBAPIError) and postgres.is_outage(error):
                raise
            del tx.after_commit[pending:]
            log.exception("sweeping run %s failed; continuing with the others", run["id"])


def subject(run: RowMapping) -> dict[str, str]:
    """Return the fields of the lines about a run; not every statement reads its trace."""
    fields = {"run_id": str(run["id"]), "org_id": str(run["org_id"])}
    return fields | ({"trace_id": run["trace_id"]} if "trace_id" in run else {})
