"""The database's schema: bring it up to date, and tell whether it is new enough."""

from pathlib import Path

from sqlalchemy import Connection, Engine, text

_MIGRATIONS = Path(__file__).parents[1] / "migrations"
_LOCK_KEY = 0x61726B6C6F6F70  # "arkloop": two migrations at once wait for each other


def migrate(engine: Engine) -> str:
    """Run all migrations that are missing; returns the schema's version then."""
    # Not above: every web process reads versions and none migrates, and alembic is 9 MiB there.
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS))
    with engine.connect() as connection:
        connection.execute(text("SELECT set_config('statement_timeout', '0', false)"))
        connection.execute(text("SELECT set_config('lock_timeout', '0', false)"))
        connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": _LOCK_KEY})
        connection.commit()
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        connection.commit()
        version = current_version(connection)
        # The lock is the session's, and this session has lost its limits: end it.
        connection.invalidate()
    return version or ""


def current_version(connection: Connection) -> str | None:
    """The version stored in the database, None if it was never migrated."""
    if connection.scalar(text("SELECT to_regclass('alembic_version')")) is None:
        return None
    version: str | None = connection.scalar(text("SELECT version_num FROM alembic_version"))
    return version


def needed_version() -> str:
    """The newest version that this code knows, by the names of the files; they sort as text."""
    return max(file.name.partition("_")[0] for file in (_MIGRATIONS / "versions").glob("*_*.py"))
