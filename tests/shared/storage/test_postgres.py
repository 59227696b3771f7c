"""Statements end: by Postgres' own limits while it works, by the client's when it is silent."""

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import Connection, create_engine, make_url, text
from sqlalchemy.exc import DBAPIError, OperationalError

from arkloop.shared.config import Settings
from arkloop.shared.errors import Unavailable
from arkloop.shared.storage import postgres
from arkloop.shared.storage.arrays import TextArray, plain_array
from arkloop.shared.storage.checkouts import Patience
from arkloop.shared.storage.connections import Connections, connect
from tests.shared_app import connect_patiently
from tests.standby import replicated_postgres
from tests.waiting import eventually, in_parallel

pytestmark = pytest.mark.processes

_BEGAN = "SELECT backend_start FROM pg_stat_activity WHERE pid = pg_backend_pid()"
QUICK = postgres.Timeouts(lock=0.2, statement=1.5, answer=3, checkout=Patience(1, 1))


@pytest.fixture
def limited(settings: Settings) -> Iterator[Connections]:
    """Connections whose statements end soon."""
    opened = connect(settings, application="tests-limited", timeouts=QUICK)
    yield opened
    opened.close()


def test_a_statement_without_an_answer_is_given_up(limited: Connections) -> None:
    """Its connection is closed, and the next one works as soon as the server does."""
    with pytest.raises(Unavailable), limited.transaction() as tx:
        backend = tx.sql.scalar(text("SELECT pg_backend_pid()"))
        assert isinstance(backend, int)
        os.kill(backend, signal.SIGSTOP)
        try:
            tx.sql.execute(text("SELECT 1"))
        finally:
            os.kill(backend, signal.SIGCONT)

    assert limited.postgres_outage.is_on
    eventually(lambda: answers(limited))
    assert not limited.postgres_outage.is_on


def test_a_slow_statement_is_no_outage(limited: Connections) -> None:
    """Postgres ends it by itself; its caller gets a 503, others continue."""
    with pytest.raises(Unavailable), limited.reading() as sql:
        sql.execute(text("SELECT pg_sleep(5)"))

    assert not limited.postgres_outage.is_on
    assert answers(limited)


@pytest.mark.owner
def test_a_statement_alone_reads_what_others_have_committed(
    settings: Settings, new_database: Callable[[], str]
) -> None:
    """The default of the database is not asked: a statement may wait for a lock, and reads then."""
    url = with_default(new_database(), "default_transaction_isolation = 'repeatable read'")
    opened = connect_patiently(replace(settings, database_url=url))

    with opened.statement() as tx:
        assert "read committed" == tx.sql.scalar(text("SHOW transaction_isolation"))
    opened.close()


def test_the_settings_of_a_role_do_not_matter(settings: Settings) -> None:
    """Times are read in any case, and a connection that has rested is still there."""
    theirs = {"options": "-c datestyle=German -c idle_session_timeout=100"}
    url = make_url(settings.database_url).update_query_dict(theirs)
    shown = url.render_as_string(hide_password=False)
    opened = connect(replace(settings, database_url=shown), application="tests", pool_size=1)

    with opened.reading() as sql:
        before = sql.scalar(text(_BEGAN))
    time.sleep(0.5)
    with opened.reading() as sql:
        after = sql.scalar(text(_BEGAN))
    assert isinstance(before, datetime)
    assert before == after
    opened.close()


@pytest.mark.owner
@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
def test_text_is_stored_whole_whatever_encoding_a_database_sets_for_clients(
    encoding: str, settings: Settings, new_database: Callable[[], str]
) -> None:
    """The driver and our own arrays write UTF-8, and Postgres reads it as such."""
    text_of_user = "Grüße, 5 € 😀"
    url = with_default(new_database(), f"client_encoding = '{encoding}'")
    opened = connect_patiently(replace(settings, database_url=url))

    with opened.reading() as sql:
        values = (text_of_user, TextArray([text_of_user]))
        stored = sql.exec_driver_sql("SELECT %s::text, (%s::text[])[1]", values).one()
        sizes = sql.exec_driver_sql(
            "SELECT octet_length(%s::text), octet_length((%s::text[])[1])", values
        ).one()
    opened.close()

    assert (text_of_user, text_of_user) == stored
    assert (len(text_of_user.encode()),) * 2 == sizes


def test_the_encoding_of_the_environment_does_not_matter(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shell may set what its own programs read."""
    monkeypatch.setenv("PGCLIENTENCODING", "SQL_ASCII")
    opened = connect(settings, application="tests", pool_size=1)

    with opened.reading() as sql:
        assert "Grüße" == sql.exec_driver_sql("SELECT %s::text", ("Grüße",)).scalar_one()
    opened.close()


@pytest.mark.owner
@pytest.mark.parametrize(
    ("setting", "expression", "value"),
    [
        ("array_nulls = off", "%s::int[]", [1, None]),
        ("standard_conforming_strings = off", "%s::int[] WHERE '5' ~ '\\d'", [1]),
        ("extra_float_digits = -15", "%s::float8[]", [3600.5]),
    ],
)
def test_statements_mean_the_same_whatever_a_database_sets(
    setting: str,
    expression: str,
    value: list[float | None],
    settings: Settings,
    new_database: Callable[[], str],
) -> None:
    """NULL, backslashes and digits are read as they were written."""
    url = with_default(new_database(), setting)
    opened = connect_patiently(replace(settings, database_url=url))

    with opened.reading() as sql:
        statement = f"SELECT {expression}"
        assert value == sql.exec_driver_sql(statement, (plain_array(value),)).scalar()
    opened.close()


def test_while_a_server_is_silent_callers_are_told_at_once(
    settings: Settings, tmp_path: Path
) -> None:
    """One of them waits for it; the others do not, however many there are."""
    path = tmp_path / ".s.PGSQL.5432"
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(path))
        silent.listen(100)
        url = f"postgresql+psycopg://postgres@/postgres?host={tmp_path}"
        away = connect(replace(settings, database_url=url), application="tests", timeouts=QUICK)

        assert not answers(away)
        assert away.postgres_outage.is_on
        assert [False] * 50 == in_parallel(50, lambda _: answers(away))
        away.close()


def test_a_process_that_is_frozen_within_a_transaction_loses_its_locks(
    settings: Settings, limited: Connections
) -> None:
    """Its locks end before its lease, so that the next worker does not wait for them."""
    frozen = connect(replace(settings, lease_seconds=1.5), application="tests")
    with pytest.raises(Unavailable), frozen.transaction() as tx:
        tx.sql.execute(text("LOCK TABLE orgs IN ACCESS EXCLUSIVE MODE"))
        eventually(lambda: answers(limited, "SELECT count(*) FROM orgs"))
        tx.sql.execute(text("SELECT 1"))
    frozen.close()


def test_a_process_that_is_frozen_within_a_statement_loses_its_locks(
    settings: Settings, limited: Connections
) -> None:
    """Postgres waits for the rest of a message then, and runs no timer but that of transactions."""
    frozen = connect(replace(settings, lease_seconds=0.3), application="tests", timeouts=QUICK)

    def rows() -> Iterator[tuple[str]]:
        yield from [("never",)] * 300
        # Nothing more comes from here until the session has ended.
        eventually(lambda: answers(limited, "SELECT count(*) FROM orgs"))
        yield ("never",)

    with pytest.raises(Unavailable), frozen.transaction() as tx:
        tx.sql.execute(text("LOCK TABLE orgs IN ACCESS EXCLUSIVE MODE"))
        driver = tx.sql.connection.driver_connection
        assert driver is not None
        try:
            driver.cursor().executemany("SELECT %s::text", rows())
        except psycopg.OperationalError as error:
            raise OperationalError("", {}, error) from error
    frozen.close()


def test_a_connection_that_refuses_writes_is_replaced(settings: Settings) -> None:
    """A write that Postgres refuses as read-only is an outage, and the next one works again."""
    pooled = connect_patiently(replace(settings, database_pool_size=1))
    with pooled.reading() as sql:
        sql.execute(text("SET default_transaction_read_only = on"))

    with pytest.raises(Unavailable), pooled.transaction() as tx:
        tx.sql.execute(text("UPDATE workers SET pid = 0"))
    with pooled.transaction() as tx:
        tx.sql.execute(text("UPDATE workers SET pid = 0"))
    pooled.close()


@pytest.mark.parametrize("state", ["25006", "57P03", "08006"])
def test_a_server_that_is_no_primary_any_more_loses_all_connections(
    state: str, settings: Settings
) -> None:
    """The connection that reported it is ended, and the others with it."""
    pooled = connect_patiently(replace(settings, database_pool_size=2))
    with pooled.reading() as one, pooled.reading() as other:
        before = {backend(one), backend(other)}
        with pytest.raises(DBAPIError):
            one.execute(text(f"DO $$ BEGIN RAISE SQLSTATE '{state}'; END $$"))
    with pooled.reading() as one, pooled.reading() as other:
        kept = {backend(one), backend(other)} & before
    pooled.close()

    assert set() == kept


@pytest.mark.parametrize("state", ["53100", "53200", "53400", "58000", "58030", "58P01"])
def test_a_server_without_resources_keeps_its_connections(state: str, settings: Settings) -> None:
    """A write on a full disk gets a 503; reads use its session, since there may be no new one."""
    pooled = connect_patiently(replace(settings, database_pool_size=1))
    with pooled.reading() as sql:
        before = backend(sql)
    with pytest.raises(Unavailable), pooled.transaction() as tx:
        tx.sql.execute(text(f"DO $$ BEGIN RAISE SQLSTATE '{state}'; END $$"))
    with pooled.reading() as sql:
        assert before == backend(sql)
    pooled.close()


def test_what_a_statement_did_wrong_keeps_the_connection(settings: Settings) -> None:
    """Errors of the statement, its time limit among them, are no reason to connect again."""
    pooled = connect(replace(settings, database_pool_size=1), application="tests", timeouts=QUICK)
    with pooled.reading() as sql:
        before = backend(sql)
        for statement in ("SELECT 1 / 0", "SELECT pg_sleep(5)"):
            with pytest.raises(DBAPIError):
                sql.execute(text(statement))
    with pooled.reading() as sql:
        assert before == backend(sql)
    pooled.close()


def test_a_standby_is_passed_over_until_it_is_promoted(tmp_path: Path, settings: Settings) -> None:
    """The host of a list that accepts writes is used; a standby alone is an outage."""
    with replicated_postgres(tmp_path) as pair:
        url = pair.url(pair.standby, pair.primary)
        both = connect_patiently(replace(settings, database_url=url))
        url = pair.url(pair.standby)
        alone = connect_patiently(replace(settings, database_url=url))

        assert answers(both)
        assert not answers(alone)
        assert not alone.postgres_outage.is_on
        pair.primary.stop()
        assert not answers(both)
        pair.promote()
        eventually(lambda: answers(both) and answers(alone))
        with psycopg.connect(**postgres.connection_args(url)) as direct:
            assert direct.execute("UPDATE workers SET pid = 0").rowcount == 0
        both.close()
        alone.close()


def with_default(url: str, setting: str) -> str:
    """Make it the setting of the database, and return the URL."""
    engine = create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as sql:
        sql.execute(text(f"ALTER DATABASE {engine.url.database} SET {setting}"))
    engine.dispose()
    return url


def backend(sql: Connection) -> int:
    return int(sql.scalar(text("SELECT pg_backend_pid()")) or 0)


def answers(connections: Connections, question: str = "SELECT 1") -> bool:
    try:
        with connections.reading() as sql:
            return sql.scalar(text(question)) is not None
    except Unavailable:
        return False
