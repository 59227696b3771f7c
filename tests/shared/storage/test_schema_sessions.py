"""The settings of sessions that hold locks for as long as migrations and copies take."""

from collections.abc import Iterator

import pytest
from sqlalchemy import Connection, Engine, create_engine, text

from arkloop.cli.dev.embedded_postgres import EmbeddedPostgres
from arkloop.cli.dev.embedded_server import free_port
from arkloop.cli.operator import org_copies
from arkloop.shared.storage import schema
from arkloop.shared.storage.schema import LOST_CLIENTS

pytestmark = pytest.mark.processes

_LIMITS = ("idle_session_timeout", "lock_timeout", "statement_timeout", "transaction_timeout")
_READ = "SELECT name, setting FROM pg_settings"


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """A server on TCP, since sessions on a Unix socket lose no machine; each limit is an hour."""
    port = free_port()
    options = {"fsync": "off", "listen_addresses": "127.0.0.1", "port": str(port)}
    options |= dict.fromkeys(_LIMITS, "1h")
    with EmbeddedPostgres(tmp_path_factory.mktemp("tcp") / "postgres", options=options):
        made = create_engine(f"postgresql+psycopg://postgres@127.0.0.1:{port}/postgres")
        yield made
        made.dispose()


def settings_of(session: Connection) -> dict[str, str]:
    return {row.name: row.setting for row in session.execute(text(_READ))}


def test_a_migration_has_no_time_limits(engine: Engine) -> None:
    """It takes as long as it takes, also in one transaction."""
    with schema.locked(engine) as session:
        settings = settings_of(session)

    assert dict.fromkeys(_LIMITS, "0") == {name: settings[name] for name in _LIMITS}


def test_the_lock_of_a_lost_machine_is_released_within_a_minute(engine: Engine) -> None:
    """The settings of TCP say so, for the whole session."""
    with schema.locked(engine) as session:
        settings = settings_of(session)

    assert settings.items() >= LOST_CLIENTS.items()
    idle, interval, count = (
        int(settings[f"tcp_keepalives_{name}"]) for name in ("idle", "interval", "count")
    )
    assert (60, "60000") == (idle + interval * count, settings["tcp_user_timeout"])


def test_a_table_that_a_lost_machine_has_locked_is_released(engine: Engine) -> None:
    """Each step of row-level security is a transaction that locks a table."""
    schema.change(engine, [f"CREATE TABLE seen AS {_READ}"], lock_seconds=0)

    with engine.connect() as sql:
        seen = {row.name: row.setting for row in sql.execute(text("SELECT * FROM seen"))}
    assert seen.items() >= LOST_CLIENTS.items()


def test_a_copy_has_no_time_limits_and_releases_what_it_locks(engine: Engine) -> None:
    """Its settings are those of its transaction: poolers pass them on to nobody."""
    with org_copies.opened(str(engine.url)) as connection, org_copies.changing(connection):
        settings = dict(connection.execute(_READ).fetchall())

    limits = ("statement_timeout", "transaction_timeout", "idle_in_transaction_session_timeout")
    assert ["0"] * 3 == [settings[name] for name in limits]
    assert settings.items() >= LOST_CLIENTS.items()
