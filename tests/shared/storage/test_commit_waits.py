"""Writes of a process while commits wait for a synchronous standby that is away."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import create_engine, text

from arkloop.cli.dev.embedded_postgres import EmbeddedPostgres
from arkloop.shared.config import Settings
from arkloop.shared.errors import Unavailable
from arkloop.shared.outage_log import reason_of
from arkloop.shared.storage import postgres, schema
from arkloop.shared.storage.checkouts import Patience
from arkloop.shared.storage.connections import Connections, connect
from tests.waiting import eventually

pytestmark = pytest.mark.processes

TIMEOUTS = postgres.Timeouts(lock=1.5, statement=1.8, answer=2.0, checkout=Patience(10, 10))
_WAITS = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedPostgres]:
    with EmbeddedPostgres(tmp_path / "postgres", options={"fsync": "off"}) as made:
        engine = create_engine(made.url)
        schema.migrate(engine)
        engine.dispose()
        yield made


@pytest.fixture
def service(server: EmbeddedPostgres, settings: Settings) -> Iterator[Connections]:
    """Connections with the limits of requests, to a server of the test's own."""
    of_server = replace(settings, database_url=server.url)
    made = connect(of_server, application="tests", timeouts=TIMEOUTS)
    yield made
    made.close()


def configure(server: EmbeddedPostgres, standby: str) -> None:
    """Let commits wait for this standby; for none if it is empty."""
    with psycopg.connect(server.url.replace("+psycopg", ""), autocommit=True) as sql:
        sql.execute(f"ALTER SYSTEM SET synchronous_standby_names = '{standby}'")
        sql.execute("SELECT pg_reload_conf()")


def write(connections: Connections, by_statement: bool) -> str | None:
    """Write something, and return why that failed."""
    begin = connections.statement if by_statement else connections.transaction
    try:
        with begin() as tx:
            tx.sql.execute(text("UPDATE installation SET epoch = gen_random_uuid()"))
    except Unavailable as error:
        return reason_of(error)
    return None


@pytest.mark.parametrize("by_statement", [True, False])
def test_commits_that_wait_for_a_standby_take_no_more_connections(
    server: EmbeddedPostgres, service: Connections, by_statement: bool
) -> None:
    """The first one is given up and stays in Postgres; later ones are not begun until it is over,
    and reads continue.
    """
    assert write(service, by_statement) is None
    configure(server, "missing")
    eventually(lambda: "no response within 2 s" == write(service, by_statement))

    other = service.with_pool(application="tests", size=1, timeouts=TIMEOUTS)
    eventually(lambda: reads(service))
    for connections in (service, other, service):
        eventually(partial(is_refused, connections, by_statement))
        assert reads(service)
        assert 1 == waits(service)

    configure(server, "")
    eventually(lambda: write(service, by_statement) is None)
    assert 0 == waits(service)
    assert not service.commit_outage.is_on
    other.close_pool()


def test_commits_of_a_login_that_works_under_another_role_are_found(
    server: EmbeddedPostgres, settings: Settings
) -> None:
    """Postgres shows the activity of the login, to a role that may see it."""
    with psycopg.connect(server.url.replace("+psycopg", ""), autocommit=True) as sql:
        sql.execute("CREATE ROLE service NOLOGIN IN ROLE pg_read_all_stats")
        sql.execute("GRANT SELECT, UPDATE ON ALL TABLES IN SCHEMA public TO service")
        sql.execute("CREATE ROLE rotated LOGIN IN ROLE service")
        sql.execute("ALTER ROLE rotated SET role = service")
    of_login = replace(settings, database_url=server.url.replace("postgres@", "rotated@"))
    with closing(connect(of_login, application="tests", timeouts=TIMEOUTS)) as connections:
        assert write(connections, True) is None
        configure(server, "missing")
        eventually(lambda: "no response within 2 s" == write(connections, True))

        eventually(lambda: is_refused(connections, True))

        assert 1 == waits(connections)
        configure(server, "")
        eventually(lambda: write(connections, True) is None)


def is_refused(connections: Connections, by_statement: bool) -> bool:
    return write(connections, by_statement) == "commits wait for a synchronous standby of Postgres"


def reads(connections: Connections) -> bool:
    try:
        return waits(connections) >= 0
    except Unavailable:
        return False


def waits(connections: Connections) -> int:
    with connections.reading() as sql:
        return int(sql.scalar(text(_WAITS)) or 0)
