"""Writes of Postgres: whether its disk has room for them, and nobody locks them out."""

from psycopg.errors import DiskFull, InsufficientPrivilege, IoError, LockNotAvailable, QueryCanceled
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from arkloop.cli.doctor.findings import Finding, fail, ok
from arkloop.cli.doctor.postgres_checks import given_up, transaction
from arkloop.cli.doctor.postgres_failures import first_line

#: Enough rows that a table gets pages on the disk. With the transaction it is gone.
_FILL = "CREATE TEMP TABLE arkloop_doctor AS SELECT FROM generate_series(1, 10000)"
#: What each write of a run needs.
_LOCK = "LOCK TABLE runs, run_events, workers IN ROW EXCLUSIVE MODE"
#: The locks that it waits for.
_AGAINST_WRITES = ("AccessExclusiveLock", "ExclusiveLock", "ShareRowExclusiveLock", "ShareLock")


def of_writes(engine: Engine) -> list[Finding]:
    """Find out whether Postgres has room for rows, and lets the tables of runs be written.

    Raises:
        DBAPIError: any other error of Postgres.
    """
    name = "postgres writes"
    try:
        with transaction(engine, "READ WRITE") as sql:
            sql.exec_driver_sql(_FILL)
            sql.exec_driver_sql(_LOCK)  # last, so that nobody waits for it
    except DBAPIError as error:
        if isinstance(error.orig, LockNotAvailable | QueryCanceled):
            return [given_up(name, engine, error, _AGAINST_WRITES)]
        if isinstance(error.orig, InsufficientPrivilege):  # to make temporary tables, maybe
            return []
        if not isinstance(error.orig, DiskFull | IoError):
            raise
        advice = "Free space on its disk; no run begins, and requests get 503. Its log has more."
        return [fail(name, first_line(error), advice)]
    return [ok(name, "accepted")]
