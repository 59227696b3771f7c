"""Batches of runs that the sweep changes in one transaction."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from uuid import UUID

from sqlalchemy import RowMapping
from sqlalchemy.exc import DBAPIError

from arkloop.shared import logs
from arkloop.shared.billing import budgets
from arkloop.shared.outage_log import reason_of
from arkloop.shared.runs import sub_runs
from arkloop.shared.storage import postgres
from arkloop.shared.storage.connections import Transaction

log = logging.getLogger(__name__)

BATCH = 100

#: What the end of one run needs, such as its thread, may be locked for minutes; the other runs of
#: the batch wait meanwhile.
_SHORT_LOCKS = "SET LOCAL lock_timeout = '100ms'"
#: For the rest of a batch of which something is locked: others wait for what it has locked itself.
_NO_WAIT = "SET LOCAL lock_timeout = '1ms'"


@dataclass(slots=True)
class Left:
    """The runs that a step leaves to the next sweep; its further batches in this one are others."""

    ids: list[UUID] = field(default_factory=list)
    locked: int = 0
    reason: str = ""

    def add_locked(self, tx: Transaction, rows: Sequence[RowMapping], error: Exception) -> None:
        """Leave runs for which something is locked; the transaction waits for no more locks."""
        self.ids += [run["id"] for run in rows]
        self.locked += len(rows)
        self.reason = f"run {rows[0]['id']}: {reason_of(error)}"
        tx.sql.exec_driver_sql(_NO_WAIT)

    def log(self, step: str) -> None:
        """Log how many runs are left because something is locked, with the reason of one."""
        if self.locked:
            line = "%s: %d runs are left to the next sweep, the last of them %s"
            log.warning(line, step, self.locked, self.reason)


def wait_briefly(tx: Transaction) -> None:
    """Let the transaction wait for locks, such as those of threads, only briefly from now on."""
    tx.sql.exec_driver_sql(_SHORT_LOCKS)


def with_reservations_locked(
    tx: Transaction, rows: Sequence[RowMapping], left: Left
) -> Sequence[RowMapping]:
    """Lock all that the ends of these locked runs will change; returns those that may end now.

    A sub-run whose parent somebody has locked comes back in the next sweep, and so does a run of
    which the reservation is locked, or what it is counted in.
    """
    if not rows:
        return rows
    wait_briefly(tx)
    parents = {None, *sub_runs.lock_parents(tx, rows, wait=False)}
    free = [run for run in rows if run.get("parent_run_id") in parents]
    left.ids += [run["id"] for run in rows if run.get("parent_run_id") not in parents]
    if _are_locked(tx, free):
        return free
    return [run for run in free if _are_locked(tx, [run], left)]


def _are_locked(tx: Transaction, rows: Sequence[RowMapping], left: Left | None = None) -> bool:
    """Lock what the runs have reserved; False, with the runs in `left`, if somebody else has."""
    try:
        with tx.sql.begin_nested():
            budgets.lock(tx, [run["id"] for run in rows])
    except DBAPIError as error:
        if not postgres.is_locked(error):
            raise
        if left is not None:
            left.add_locked(tx, rows, error)
        return False
    return True


@contextmanager
def isolated(tx: Transaction, run: RowMapping, left: Left) -> Iterator[None]:
    """Isolate the work on one run, so that its failure does not stop the others.

    Where it fails, or what the run needs is locked, the run is added to `left`.
    """
    pending = len(tx.after_commit)
    with logs.about(**subject(run)):
        try:
            with tx.sql.begin_nested():
                yield
        except Exception as error:
            if is_outage(error):
                raise
            del tx.after_commit[pending:]
            if postgres.is_locked(error):
                left.add_locked(tx, [run], error)
            else:
                left.ids.append(run["id"])
                log.exception("sweeping run %s failed; continuing with the others", run["id"])


def is_outage(error: Exception) -> bool:
    """Return whether the error concerns all runs of a batch; a lock may be that of one alone."""
    return (
        isinstance(error, DBAPIError)
        and postgres.is_outage(error)
        and not postgres.is_locked(error)
    )


def subject(run: RowMapping) -> dict[str, str]:
    """Return the fields of the lines about a run; not every statement reads its trace."""
    fields = {"run_id": str(run["id"]), "org_id": str(run["org_id"])}
    return fields | ({"trace_id": run["trace_id"]} if "trace_id" in run else {})
