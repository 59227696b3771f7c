"""The database's schema: bring it up to date, and tell whether it is new enough."""

import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from psycopg.errors import LockNotAvailable
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import OperationalError

if TYPE_CHECKING:
    from alembic.config import Config

_MIGRATIONS = Path(__file__).parents[2] / "migrations"
_LOCK_KEY = 0x61726B6C6F6F70  # "arkloop": two migrations at once wait for each other
#: Wait for a table's lock at most this long: every query of that table waits behind it.
_LOCK_TIMEOUT = "1s"
_PAUSE_SECONDS = 2.0
_TURN_PAUSE_SECONDS = 0.25


def migrate(engine: Engine, *, lock_seconds: float = 0.0) -> str:
    """Run all migrations that are missing; returns the schema's version then.

    A schema that is newer than this code stays as it is.

    `lock_seconds`: how long to try where others hold a table, as dumps do.

    Raises:
        OperationalError: the database failed; with `LockNotAvailable` as its `orig`, a table was
            held all the time, and the migration that needs it has changed nothing.
    """
    # Not above: every web process reads versions and none migrates, and alembic is 9 MiB there.
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS))
    with engine.connect() as connection:
        try:
            connection.execute(text("SELECT set_config('statement_timeout', '0', false)"))
            connection.execute(text("SELECT set_config('lock_timeout', '0', false)"))
            # Without it a migration would find no rows behind row-level security.
            connection.execute(text("SELECT set_config('arkloop.orgs', '*', false)"))
            _take_turn(connection)
            connection.execute(text(f"SET lock_timeout = '{_LOCK_TIMEOUT}'"))
            connection.commit()
            config.attributes["connection"] = connection
            # Only now: a later release may have migrated while this one waited for its turn.
            if not is_newer(current_version(connection) or ""):
                _upgrade(config, connection, lock_seconds)
            return current_version(connection) or ""
        finally:
            # The lock is the session's, and this session has lost its limits: end it.
            connection.invalidate()


def _take_turn(connection: Connection) -> None:
    """Wait until no other session migrates; then this one holds the lock until it ends."""
    # A statement that waits has a snapshot. The one before builds indexes beside others, which
    # wait for the end of every older snapshot: each would wait for the other.
    while not connection.scalar(text("SELECT pg_try_advisory_lock(:key)"), {"key": _LOCK_KEY}):
        connection.commit()
        time.sleep(_TURN_PAUSE_SECONDS)


def _upgrade(config: "Config", connection: Connection, lock_seconds: float) -> None:
    from alembic import command

    def upgrade() -> None:
        # What a try that had to wait for too long has left.
        connection.rollback()
        command.upgrade(config, "head")
        connection.commit()

    _patiently(upgrade, lock_seconds)


def change(engine: Engine, steps: Sequence[str], *, lock_seconds: float) -> None:
    """Execute these statements in one transaction. Raises: as `migrate`."""

    def execute() -> None:
        with engine.begin() as sql:
            sql.exec_driver_sql(f"SET LOCAL lock_timeout = '{_LOCK_TIMEOUT}'")
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
def needed_version() -> str:
    """Return the newest version in this code, by the names of the files, which sort as text."""
    return max(file.name.partition("_")[0] for file in (_MIGRATIONS / "versions").glob("*_*.py"))


def is_newer(stored: str) -> bool:
    """Return whether a stored version is that of a later release."""
    return stored > needed_version()


def shortfall(stored: str | None) -> str | None:
    """Return what is wrong with a stored version, None if this code can use it.

    A newer one is fine: during a deploy the old code runs on the new schema.
    """
    if stored is not None and stored >= needed_version():
        return None
    return (
        f"The database schema is {stored or 'empty'}, but this version requires"
        f" {needed_version()}: run `arkloop migrate`."
    )
