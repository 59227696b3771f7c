"""Requests of several orgs that share connections behind the wall: none sees what another may."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import event, make_url, text

from arkloop.cli.dev.embedded_postgres import EmbeddedPostgres
from arkloop.shared.config import Settings
from arkloop.shared.storage.checkouts import Patience
from arkloop.shared.storage.connections import Connections, connect
from tests import walls
from tests.api.auth.test_auth_row_security import app_on, remove
from tests.clients import Register, User
from tests.pgbouncer import needs_pgbouncer, pgbouncer
from tests.shared_app import PATIENT
from tests.waiting import in_parallel

ORGS = 4
ROUNDS = 15


@pytest.fixture(scope="module")
def walled_url(settings: Settings) -> str:
    return walls.put_up(settings.database_url)


@pytest.fixture
def direct(settings: Settings, walled_url: str) -> Iterator[Connections]:
    """Open one connection for all requests, so that each follows one of another org."""
    yield from opened(settings, walled_url)


@pytest.fixture
def pooled(
    settings: Settings, walled_url: str, postgres: EmbeddedPostgres, tmp_path: Path
) -> Iterator[Connections]:
    """Share one session of the server among several connections, by PgBouncer."""
    mode = {"pool_mode": "transaction", "max_prepared_statements": 0, "default_pool_size": 1}
    with pgbouncer(postgres, tmp_path, user=walls.ROLE, **mode) as port:
        database = make_url(walled_url).database
        url = f"postgresql+psycopg://{walls.ROLE}@127.0.0.1:{port}/{database}"
        yield from opened(settings, url, size=4)


def opened(settings: Settings, url: str, size: int = 1) -> Iterator[Connections]:
    patient = replace(settings, database_url=url, lease_seconds=180)
    timeouts = replace(PATIENT, checkout=Patience(60, 60))  # many callers share the connection
    made = connect(patient, application="tests-walled", timeouts=timeouts, pool_size=size)
    yield made
    made.close_pool()


@pytest.fixture
def orgs(register: Register) -> list[User]:
    """Owners of orgs, each with one thread of its own."""
    users = [register() for _ in range(ORGS)]
    for user in users:
        user.post("/v1/threads", {"title": str(user.org_id)})
    return users


def check(connections: Connections, orgs: list[User]) -> None:
    """Let requests of all orgs take turns, whose statements have no filter by org any more."""
    with app_on(connections) as app:
        event.listen(connections.engine, "before_cursor_execute", remove, retval=True)

        def titles(number: int) -> tuple[str, list[str]]:
            user = orgs[number % ORGS]
            client = replace(user, client=app.test_client())
            if number % 5 == 4:  # an error must take nothing along either
                assert 404 == client.get(f"/v1/threads/{user.org_id}").status_code
            response = client.get("/v1/threads")
            assert 200 == response.status_code, response.text
            return str(user.org_id), [one["title"] for one in response.json or ()]

        in_turn = [titles(number) for number in range(ORGS * ROUNDS)]
        at_once = in_parallel(ORGS * 3, titles)
        # Without the filter, a thread is found as one of the org and as a private one.
        assert all({org} == {*seen} for org, seen in in_turn + at_once), in_turn + at_once
        with connections.reading() as sql:  # the service itself sees all of them
            assert ORGS <= sql.scalar(text("SELECT count(DISTINCT org_id) FROM threads"))


def test_orgs_share_one_connection(direct: Connections, orgs: list[User]) -> None:
    """Their requests come one after the other and at once, in autocommit."""
    check(direct, orgs)


@pytest.mark.poolers
@needs_pgbouncer
def test_orgs_share_one_session_behind_pgbouncer(pooled: Connections, orgs: list[User]) -> None:
    """In transaction mode no setting of a transaction reaches the next one."""
    check(pooled, orgs)
    with pooled.engine.connect() as sql:
        assert "" == (sql.scalar(text("SELECT current_setting('arkloop.orgs', true)")) or "")
