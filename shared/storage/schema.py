"""The database's schema: bring it up to date, and tell whether it is new enough."""

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from psycopg.errors import LockNotAvailable
from sqlalchemy import Connection, Engine, event, text
from sqlalchemy.exc import OperationalError

from arkloop.shared.storage.commit_waits import require_confirmation

_MIGRATIONS = Path(__file__).parents[2] / "migrations"
_FORM = re.compile("[0-9]{4}")  # of our versions; others' are hexadecimal by default
_LOCK_KEY = 0x61726B6C6F6F70  # "arkloop": two migrations at once wait for each other
#: Wait for a table's lock at most this long: every query of that table waits behind it.
_LOCK_SECONDS = 1
_LOCK_TIMEOUT = f"lock_timeout = '{_LOCK_SECONDS}s'"
_MAX_MILLISECONDS = 2**31 - 1  # of a setting
_PAUSE_SECONDS = 2.0
_TURN_PAUSE_SECONDS = 0.25
_REPORT_AFTER_SECONDS = 2.0
#: Settings of sessions that hold locks: Postgres ends such a session a minute after the machine of
#: its client was lost. By default it notices that, and releases the locks, after two hours.
LOST_CLIENTS = {
    "tcp_keepalives_idle": "30",
    "tcp_keepalives_interval": "10",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "60000",
}
_WITHOUT_LIMITS = {
    "statement_timeout": "0",
    "lock_timeout": "0",
    "idle_session_timeout": "0",  # Postgres before 14 has none
    "transaction_timeout": "0",  # Postgres before 17 has none
    **LOST_CLIENTS,
}
_SET = text(
    "SELECT set_config(name, s.value, :is_local) FROM pg_settings"
    " JOIN unnest(CAST(:names AS text[]), CAST(:values AS text[])) AS s (name, value) USING (name)"
)
# Its address is NULL where it uses a Unix socket, or where this role may not see it.
_HOLDER = text("""
    SELECT l.pid, host(a.client_addr) AS address,
        a.wait_event = 'SyncRep' AND a.query_start < now() - interval '1 second' AS lacks_standby
    FROM pg_locks l LEFT JOIN pg_stat_activity a USING (pid)
    WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
        AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
        AND (CAST(l.classid AS bigint) << 32) | CAST(l.objid AS bigint) = :key
""")


def migrate(engine: Engine, *, lock_seconds: float = 0.0) -> str:
    """Run all migrations that are missing, with the lock held; see `upgrade`."""
    with locked(engine) as session:
        return upgrade(session, lock_seconds=lock_seconds)


@contextmanager
def locked(engine: Engine, *, report: Callable[[str], None] | None = None) -> Iterator[Connection]:
    """Lend a session beside which no other one changes the schema, policies or privileges.

    It waits until those before it have finished, and has no time limits. At the end of the block it
    is closed, and the lock with it. `report` is called once, if it waits for longer than 2 s, with
    a line about the session that has the lock.
    """
    with engine.connect() as session:
        try:
            # It is idle while other sessions of the block work.
            lift_limits(session)
            # Without it a migration would find no rows behind row-level security.
            session.execute(text("SELECT set_config('arkloop.orgs', '*', false)"))
            take_turn(session, _LOCK_KEY, report=report)
            yield session
        finally:
            session.invalidate()


def take_turn(
    session: Connection, key: int, *, report: Callable[[str], None] | None = None
) -> None:
    """Take a lock of the session's, and wait until others give it back; `report` as for `locked`.

    A statement that waits has a snapshot. The session before builds indexes beside others, which
    wait for the end of every older snapshot: each would wait for the other.
    """
    begin = time.monotonic()
    while not session.scalar(text("SELECT pg_try_advisory_lock(:key)"), {"key": key}):
        if report is not None and time.monotonic() - begin > _REPORT_AFTER_SECONDS:
            holder = _holder(session, key)
            if holder is not None:  # else it has just finished
                report(f"Waiting for another `arkloop migrate`: {holder}")
                report = None
        session.commit()
        time.sleep(_TURN_PAUSE_SECONDS)
    session.commit()


def lift_limits(session: Connection) -> None:
    """Let the session wait and work for any time, but not for a client whose machine is lost."""
    _set(session, _WITHOUT_LIMITS, is_local=False)


def _set(session: Connection, settings: Mapping[str, str], *, is_local: bool) -> None:
    """Make the settings that this server has, for the transaction if they are local."""
    values = {"names": [*settings], "values": [*settings.values()], "is_local": is_local}
    session.execute(_SET, values)


def _holder(session: Connection, key: int) -> str | None:
    """Return which session has the lock, None if there is none."""
    holder = session.execute(_HOLDER, {"key": key}).first()
    if holder is None:
        return None
    process = f"process {holder.pid} of Postgres"
    if holder.address is not None:
        process += f", at {holder.address}"
    if holder.lacks_standby:
        process += (
            ". Its commit waits for a synchronous standby: start that, and do not end the process"
        )
    return process


def upgrade(session: Connection, *, lock_seconds: float) -> str:
    """Run all migrations that are missing; returns the schema's version then.

    A schema that is newer than this code stays as it is.

    `session`: that of `locked`; `lock_seconds`: how long to try where others hold a table, as dumps
    do, and to wait for their older transactions where an index is built or dropped concurrently.

    Raises:
        OperationalError: the database failed; with `LockNotAvailable` as its `orig`, others held a
            table, or had an older transaction open, all the time. The migration that met them can
            be repeated, also if it has committed a part.
        StandbyLost: a migration is missing, and its commit would wait.
    """
    # Not above: every web process reads versions and none migrates, and alembic is 9 MiB there.
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS))
    config.attributes["connection"] = session

    def run() -> None:
        # What a try that had to wait for too long has left.
        session.rollback()
        session.exec_driver_sql(f"SET {_LOCK_TIMEOUT}")
        session.commit()
        command.upgrade(config, "head")
        session.commit()

    session.exec_driver_sql(f"SET {_LOCK_TIMEOUT}")
    _let_indexes_wait(session, max(lock_seconds, _LOCK_SECONDS))
    # Only now: a later release may have migrated while this one waited for its turn.
    stored = current_version(session)
    if shortfall(stored) is not None:
        require_confirmation(session)
    session.commit()
    if stored is None or not is_newer(stored):
        _patiently(run, lock_seconds)
        stored = current_version(session)
        session.commit()
    return stored or ""


def _let_indexes_wait(session: Connection, seconds: float) -> None:
    """Let each wait of a statement that builds or drops an index concurrently take `seconds`.

    It waits for older transactions and snapshots, such as those of reports, and its own lock makes
    no reader or writer queue. If it gives up, it begins anew.
    """
    longer = f"lock_timeout = {round(min(seconds * 1000, _MAX_MILLISECONDS))}"

    def set_for_indexes(timeout: str) -> Callable[..., None]:
        def set_timeout(_sql: Connection, cursor: Any, statement: str, *_: object) -> None:
            if "INDEX CONCURRENTLY" in statement:
                cursor.connection.execute(f"SET {timeout}")

        return set_timeout

    event.listen(session, "before_cursor_execute", set_for_indexes(longer))
    event.listen(session, "after_cursor_execute", set_for_indexes(_LOCK_TIMEOUT))


def change(engine: Engine, steps: Sequence[str], *, lock_seconds: float) -> None:
    """Execute these statements in one transaction. Raises: as `upgrade`."""
    with engine.connect() as sql:
        require_confirmation(sql)

    def execute() -> None:
        with engine.begin() as sql:
            _set(sql, LOST_CLIENTS, is_local=True)
            sql.exec_driver_sql(f"SET LOCAL {_LOCK_TIMEOUT}")
            for step in steps:
                sql.exec_driver_sql(step)

    _patiently(execute, lock_seconds)


def _patiently(work: Callable[[], None], lock_seconds: float) -> None:
    """Do the work; try again for `lock_seconds` while others hold a table."""
    deadline = None
    while True:
        try:
            work()
            return
        except OperationalError as error:
            now = time.monotonic()
            # From the first one on: what came before it may have taken much longer.
            deadline = now + lock_seconds if deadline is None else deadline
            if not isinstance(error.orig, LockNotAvailable) or now >= deadline:
                raise
            time.sleep(_PAUSE_SECONDS)


def current_version(connection: Connection) -> str | None:
    """Return the version stored in the database, None if it was never migrated."""
    if connection.scalar(text("SELECT to_regclass('alembic_version')")) is None:
        return None
    version: str | None = connection.scalar(text("SELECT version_num FROM alembic_version"))
    return version


@cache
def _versions() -> frozenset[str]:
    """Return all versions in this code, by the names of the files."""
    files = (_MIGRATIONS / "versions").glob("*_*.py")
    return frozenset(file.name.partition("_")[0] for file in files)


@cache
def needed_version() -> str:
    """Return the newest version in this code; they sort as text."""
    return max(_versions())


def is_newer(stored: str) -> bool:
    """Return whether a stored version is that of a later release."""
    return bool(_FORM.fullmatch(stored)) and stored > needed_version()


def is_foreign(stored: str) -> bool:
    """Return whether a stored version is that of another application, which uses Alembic, too."""
    return stored not in _versions() and not is_newer(stored)


def shortfall(stored: str | None) -> str | None:
    """Return what is wrong with a stored version, None if this code can use it.

    A newer one is fine: during a deploy the old code runs on the new schema.
    """
    if stored is not None and (stored == needed_version() or is_newer(stored)):
        return None
    if stored is not None and is_foreign(stored):
        return (
            f"The table alembic_version has {stored!r}, the version of another application: this"
            " service needs a database of its own."
        )
    return (
        f"The database schema is {stored or 'empty'}, but this version requires"
        f" {needed_version()}: run `arkloop migrate`."
    )
