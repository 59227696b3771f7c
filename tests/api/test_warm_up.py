"""The warm-up of a web process."""

import logging
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import cast

import pytest
from flask import Flask
from sqlalchemy import Connection, QueuePool, text

from arkloop.api import warm_up as api_warm_up
from arkloop.api.app import create_app
from arkloop.api.warm_up import CONNECTIONS, warm_up
from arkloop.shared.config import Settings
from arkloop.shared.storage.connections import Connections, connect
from tests.clients import error_of
from tests.closed_port import closed_port
from tests.postgres_releases import skip_before
from tests.shared_app import connect_patiently

_PREPARED = "SELECT statement FROM pg_prepared_statements WHERE generic_plans > 0"


@pytest.fixture
def fresh(settings: Settings) -> Iterator[Flask]:
    """An app as at the start of a process, without a connection."""
    connections = connect_patiently(settings)
    yield create_app(connections=connections)
    connections.close()


def _logged(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what this thread has logged; those of other tests may log at the same time."""
    own = threading.get_ident()
    return [record.getMessage() for record in caplog.records if record.thread == own]


def _plans(sql: Connection) -> str:
    """Return the statements for which the connection's backend has plans for all values."""
    return "\n".join(sql.scalars(text(_PREPARED)))


def test_statements_of_the_first_requests_have_their_plans(
    fresh: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of the connections that are opened has planned creating, reading and following a run."""
    skip_before(fresh.extensions["arkloop"], 14)  # it does not count plans
    monkeypatch.setattr(api_warm_up, "SECONDS", 60.0)
    warm_up(fresh)

    connections: Connections = fresh.extensions["arkloop"]
    pool = cast(QueuePool, connections.engine.pool)
    assert CONNECTIONS == pool.checkedin()
    with ExitStack() as held:
        for _ in range(CONNECTIONS):
            plans = _plans(held.enter_context(connections.reading()))
            assert "INSERT INTO runs" in plans
            assert "AS last_seq" in plans
            assert "AS measured" in plans


def test_it_ends_while_postgres_is_slow(fresh: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process whose time for it is over serves, with what is warm by then."""
    skip_before(fresh.extensions["arkloop"], 14)  # it does not count plans
    monkeypatch.setattr(api_warm_up, "SECONDS", 0.0)

    warm_up(fresh)

    connections: Connections = fresh.extensions["arkloop"]
    with connections.reading() as sql:
        assert "INSERT INTO runs" not in _plans(sql)


def test_nothing_is_written(fresh: Flask, caplog: pytest.LogCaptureFixture) -> None:
    """Neither a run nor a thread is there afterwards, and nothing was logged."""
    count = text("SELECT (SELECT count(*) FROM runs), (SELECT count(*) FROM threads)")
    connections: Connections = fresh.extensions["arkloop"]
    with connections.reading() as sql:
        before = sql.execute(count).one()

    with caplog.at_level(logging.INFO):
        warm_up(fresh)

    with connections.reading() as sql:
        assert before == sql.execute(count).one()
    assert [] == _logged(caplog)


def test_a_process_starts_while_postgres_is_away(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    """It answers that Postgres is away, and has not complained about the warm-up."""
    nowhere = f"postgresql+psycopg://nobody@127.0.0.1:{closed_port()}/nothing"
    connections = connect(replace(settings, database_url=nowhere), application="tests")
    app = create_app(connections=connections)

    with caplog.at_level(logging.INFO):
        warm_up(app)

    assert [] == _logged(caplog)
    assert (503, "service.unavailable") == error_of(app.test_client().get("/readyz"))
    connections.close()
