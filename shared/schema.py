"""The database's schema: bring it up to date, and tell whether it is new enough."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, text

_LOCK_KEY = 0x61726B6C6F6F70  # "arkloop": two migrations at once wait for each other


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parents[1] / "migrations"))
    return config


def migrate(engine: Engine) -> str:
    """Run all migrations that are missing; returns the schema's version then."""
    with engine.connect() as connection:
        connection.execute(text("SELECT set_config('statement_timeout', '0', false)"))
        connection.execute(text("SELECT set_config('lock_timeout', '0', false)"))
        connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": _LOCK_KEY})
        connection.commit()
        config = _config()
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        connection.commit()
        version = current_version(connection)
        # The lock is the session's, and this session has lost its limits: end it.
        connection.invalidate()
    return version or ""


def current_version(connection: Connection) -> str | None:
    """The version stored in the database, None if it was never migrated."""
    return MigrationContext.configure(connection).get_current_revision()


def needed_version() -> str:
    """The newest version that this code knows; versions sort as text."""
    head = ScriptDirectory.from_config(_config()).get_current_head()
    if head is None:
        raise RuntimeError("migrations/versions is empty")
    return head
