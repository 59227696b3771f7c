"""Writes of Postgres: whether its disk has room, nobody locks them out, and a standby confirms."""

from collections.abc import Iterator

from psycopg.errors import DiskFull, InsufficientPrivilege, IoError, LockNotAvailable, QueryCanceled
from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError

from arkloop.cli.doctor.findings import Finding, fail, ok, warn
from arkloop.cli.doctor.postgres_checks import given_up, transaction
from arkloop.cli.doctor.postgres_failures import first_line

#: Enough rows that a table gets pages on the disk. With the transaction it is gone.
_FILL = "CREATE TEMP TABLE arkloop_doctor AS SELECT FROM generate_series(1, 10000)"
_NAMES = text("SELECT quote_ident(current_database()), quote_ident(current_user)")
_FULL = "Free space on its disk; no run begins, and requests get 503. Its log has more."
#: What each write of a run needs.
_LOCK = "LOCK TABLE runs, run_events, workers IN ROW EXCLUSIVE MODE"
#: The locks that it waits for.
_AGAINST_WRITES = ("AccessExclusiveLock", "ExclusiveLock", "ShareRowExclusiveLock", "ShareLock")

#: Seconds. A standby that works confirms a commit in a hundredth of one.
_PATIENCE = 3.0
#: Commits that wait for a standby, also those whose client has given up. Those of other roles show
#: their wait only to pg_read_all_stats.
_WAITING = text(
    """
    SELECT count(*), max(extract(epoch FROM clock_timestamp() - query_start))::int,
        current_setting('synchronous_standby_names')
    FROM pg_stat_activity
    WHERE wait_event = 'SyncRep'
        AND query_start < clock_timestamp() - make_interval(secs => :patience)
    """
)
#: Whether they would be hidden: the login works under another role, to which Postgres does not show
#: what the login does.
_ARE_HIDDEN = text(
    """
    SELECT current_setting('synchronous_standby_names') <> ''
        AND NOT pg_has_role(session_user, 'USAGE')
        AND NOT pg_has_role('pg_read_all_stats', 'USAGE')
    """
)


def of_commits(engine: Engine) -> list[Finding]:
    """Find commits that wait for a synchronous standby; none for those that are confirmed.

    Raises:
        DBAPIError
    """
    with transaction(engine) as sql:
        count, seconds, names = sql.execute(_WAITING, {"patience": _PATIENCE}).one()
    if not count:
        return []
    return [
        fail(
            "postgres writes",
            f"commits ({count}) wait for a synchronous standby, the oldest for {seconds} s:"
            f" synchronous_standby_names is {names!r}",
            "Start the standby; or, to continue without it, ALTER SYSTEM SET"
            " synchronous_standby_names = '', then SELECT pg_reload_conf(). If no connection is"
            " free: write the same to postgresql.auto.conf, and `pg_ctl reload`.",
        )
    ]


def of_writes(engine: Engine) -> list[Finding]:
    """Find out whether Postgres has room for rows, and lets the tables of runs be written; and
    whether `of_commits` could see a commit that waits.

    Raises:
        DBAPIError: any other error of Postgres.
    """
    name = "postgres writes"
    findings = [*_room(name, engine), *_lock(name, engine), *_hidden_waits(name, engine)]
    return findings or [ok(name, "accepted")]


def _room(name: str, engine: Engine) -> Iterator[Finding]:
    try:
        with transaction(engine, "READ WRITE") as sql:
            sql.exec_driver_sql(_FILL)
    except DBAPIError as error:
        if isinstance(error.orig, LockNotAvailable | QueryCanceled):
            yield given_up(name, engine, error, _AGAINST_WRITES)
        elif isinstance(error.orig, InsufficientPrivilege):
            with transaction(engine) as sql:
                database, role = sql.execute(_NAMES).one()
            yield warn(
                name,
                f"whether the disk has room is unknown: {first_line(error)}",
                f"GRANT TEMPORARY ON DATABASE {database} TO {role}, to have it checked.",
            )
        elif isinstance(error.orig, DiskFull | IoError):
            yield fail(name, first_line(error), _FULL)
        else:
            raise


def _lock(name: str, engine: Engine) -> Iterator[Finding]:
    """Find what writes wait for, in a transaction of its own, so that nobody waits for that."""
    try:
        with transaction(engine, "READ WRITE") as sql:
            sql.exec_driver_sql(_LOCK)
    except DBAPIError as error:
        if not isinstance(error.orig, LockNotAvailable | QueryCanceled):
            raise
        yield given_up(name, engine, error, _AGAINST_WRITES)


def _hidden_waits(name: str, engine: Engine) -> Iterator[Finding]:
    with transaction(engine) as sql:
        if sql.scalar(_ARE_HIDDEN):
            _, role = sql.execute(_NAMES).one()
            yield warn(
                name,
                "whether commits wait for a synchronous standby is unknown: the login works under"
                f" {role}, to which Postgres does not show them",
                f"GRANT pg_read_all_stats TO {role}: the service needs it, too, to notice them.",
            )
