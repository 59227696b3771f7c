"""`/healthz` and `/readyz`."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest
from flask.testing import FlaskClient
from redis import Redis
from sqlalchemy import create_engine, delete, func, insert, make_url, text, update

from arkloop.api.app import create_app
from arkloop.cli.dev.embedded_postgres import EmbeddedPostgres
from arkloop.cli.dev.embedded_redis import EmbeddedRedis
from arkloop.shared.config import Settings
from arkloop.shared.ids import new_id
from arkloop.shared.storage import schema
from arkloop.shared.storage.connections import Connections, connect
from arkloop.shared.storage.outage import Outage
from arkloop.shared.storage.tables.runs import workers
from tests.clients import User, error_of
from tests.closed_port import closed_port
from tests.standby import replicated_postgres
from tests.unmigrated import foreign
from tests.waiting import eventually

pytestmark = pytest.mark.own_database

READ_ONLY = "Postgres accepts no writes: it is a standby, or set to read-only."


@pytest.fixture
def client_with(settings: Settings) -> Iterator[Callable[..., FlaskClient]]:
    """Call it for a client of an app with other settings."""
    with ExitStack() as stack:

        def new(**changes: object) -> FlaskClient:
            connections = connect(replace(settings, **changes), application="tests")
            stack.callback(connections.close)
            return create_app(connections=connections).test_client()

        yield new


@pytest.fixture(autouse=True)
def worker(connections: Connections) -> UUID:
    """A worker that was just heard, and counts as alive for as long as a test may take."""
    worker_id = new_id()
    values: dict[str, Any] = {"id": worker_id, "hostname": "test", "pid": 1, "lock_key": 1}
    values["seen_at"] = func.now() + timedelta(hours=1)
    with connections.transaction() as tx:
        tx.sql.execute(delete(workers))
        tx.sql.execute(insert(workers).values(**values))
    return worker_id


def test_healthz_says_ok(client: FlaskClient) -> None:
    """Liveness is reported without a token."""
    response = client.get("/healthz")

    assert (200, {"status": "ok"}) == (response.status_code, response.json)


def test_healthz_asks_nobody(client_with: Callable[..., FlaskClient]) -> None:
    """A process whose database and Redis are away is alive all the same."""
    url = f"redis://127.0.0.1:{closed_port()}"
    client = client_with(database_url=_nowhere(), redis_url=url)

    assert 200 == client.get("/healthz").status_code


def test_readyz_tells_the_version_of_the_schema(client: FlaskClient) -> None:
    """Readiness names the schema that it found."""
    response = client.get("/readyz")

    expected = {"status": "ok", "schema_version": schema.needed_version()}
    assert (200, expected) == (response.status_code, response.json)


def test_readyz_is_degraded_without_redis(client_with: Callable[..., FlaskClient]) -> None:
    """Without Redis runs are still accepted: the answer stays 200 and says what is missing."""
    response = client_with(redis_url=f"redis://127.0.0.1:{closed_port()}").get("/readyz")

    assert (200, ["redis"]) == (response.status_code, response.json["degraded"])


def _as_replica(redis: Redis) -> str:
    redis.replicaof("127.0.0.1", 1)
    return ""


def _full(redis: Redis) -> str:
    redis.config_set("maxmemory-policy", "volatile-lru")
    redis.config_set("maxmemory", "64kb")
    return ""


def _without_channels(redis: Redis) -> str:
    redis.acl_setuser(
        "mute", enabled=True, passwords=["+x"], keys=["*"], commands=["+@all"], channels=[]
    )
    return "mute:x"


@pytest.mark.processes
@pytest.mark.parametrize("spoil", [_as_replica, _full, _without_channels])
def test_readyz_is_degraded_where_redis_answers_and_does_not_work(
    client_with: Callable[..., FlaskClient], tmp_path: Path, spoil: Callable[[Redis], str]
) -> None:
    """A Redis that responds to PING alone brings no message to workers and no event to streams."""
    with EmbeddedRedis(tmp_path / "redis", persist=False) as server:
        client = client_with(redis_url=server.url)
        before = client.get("/readyz").json
        with Redis.from_url(server.url) as redis:
            login = spoil(redis)
        if login:
            client = client_with(redis_url=f"redis://{login}@127.0.0.1:{server.port}/0")
        response = client.get("/readyz")

    assert "degraded" not in before
    assert (200, ["redis"]) == (response.status_code, response.json["degraded"])


def test_readyz_is_degraded_without_workers(
    client: FlaskClient, client_with: Callable[..., FlaskClient], connections: Connections
) -> None:
    """Runs are accepted and wait: no worker has been heard for three heartbeats."""
    with connections.transaction() as tx:
        silent = func.now() - func.make_interval(0, 0, 0, 0, 0, 0, 7)
        tx.sql.execute(update(workers).values(seen_at=silent))

    response = client.get("/readyz")
    both = client_with(redis_url=f"redis://127.0.0.1:{closed_port()}").get("/readyz")

    assert (200, ["workers"]) == (response.status_code, response.json["degraded"])
    assert ["redis", "workers"] == both.json["degraded"]


def test_readyz_fails_without_postgres(client_with: Callable[..., FlaskClient]) -> None:
    """Without Postgres the process is not ready, and says when to ask again."""
    response = client_with(database_url=_nowhere()).get("/readyz")

    assert (503, "service.unavailable") == error_of(response)
    assert "1" == response.headers["Retry-After"]


def test_readyz_fails_while_postgres_is_read_only(
    client_with: Callable[..., FlaskClient], new_database: Callable[[], str]
) -> None:
    """A process that cannot write is not ready, also by a connection that it has had before."""
    client = client_with(database_url=new_database(), database_pool_size=1)
    ready = client.get("/readyz").status_code
    with client.application.extensions["arkloop"].reading() as sql:
        sql.execute(text("SET default_transaction_read_only = on"))

    assert (200, 503, 200) == (
        ready,
        client.get("/readyz").status_code,
        client.get("/readyz").status_code,
    )


def test_readyz_gives_the_reason_in_read_only_mode_for_as_long_as_it_lasts(
    client_with: Callable[..., FlaskClient],
    new_database: Callable[[], str],
    postgres: EmbeddedPostgres,
) -> None:
    """Later probes find no open connection, and no new one is made to a read-only server."""
    url = new_database()
    client = client_with(database_url=url)
    engine = create_engine(postgres.url, isolation_level="AUTOCOMMIT")
    with engine.connect() as sql:
        name = make_url(url).database
        sql.execute(text(f"ALTER DATABASE {name} SET default_transaction_read_only = on"))
    engine.dispose()

    assert [READ_ONLY] * 2 == [(client.get("/readyz").json or {})["message"] for _ in range(2)]
    assert (503, "service.unavailable") == error_of(client.get("/readyz"))


@pytest.mark.processes
def test_readyz_gives_the_reason_where_a_standby_alone_is_left(
    client_with: Callable[..., FlaskClient], tmp_path: Path
) -> None:
    """A standby that was not promoted yet is known, alone or beside a host that is gone."""
    with replicated_postgres(tmp_path) as pair:
        pair.primary.stop()
        for hosts in [(pair.standby,), (pair.primary, pair.standby), (pair.standby, pair.primary)]:
            client = client_with(database_url=pair.url(*hosts))
            assert READ_ONLY == (client.get("/readyz").json or {})["message"]


@pytest.mark.processes
def test_readyz_blames_no_standby_beside_a_primary_that_lives(
    client_with: Callable[..., FlaskClient], tmp_path: Path
) -> None:
    """A primary that rejects the login, as one that is full does, needs no promotion."""
    with replicated_postgres(tmp_path) as pair:
        url = pair.primary.url.replace("+psycopg", "")
        with psycopg.connect(url) as sql:
            (pair.primary.data / "pg_hba.conf").write_text("local all all reject\n")
            sql.execute("SELECT pg_reload_conf()")
        eventually(lambda: not _admits(url))
        for hosts in [(pair.primary, pair.standby), (pair.standby, pair.primary)]:
            response = client_with(database_url=pair.url(*hosts)).get("/readyz")
            assert (503, "service.unavailable") == error_of(response)
            assert READ_ONLY != (response.json or {})["message"]


@pytest.mark.parametrize(("stored", "status"), [("0001", 503), (None, 503), ("9999", 200)])
def test_readyz_wants_a_schema_that_is_new_enough(
    stored: str | None,
    status: int,
    client_with: Callable[..., FlaskClient],
    new_database: Callable[[], str],
) -> None:
    """An older or missing schema is not enough; a newer one is, for rolling deploys."""
    client = client_with(database_url=new_database())
    with client.application.extensions["arkloop"].transaction() as tx:
        tx.sql.execute(text("DELETE FROM alembic_version"))
        if stored:
            tx.sql.execute(text("INSERT INTO alembic_version VALUES (:v)"), {"v": stored})

    assert status == client.get("/readyz").status_code


@pytest.mark.parametrize("stored", ["ae1027a6acf", "3f2a9c01bd44", "001", "0000"])
def test_readyz_knows_the_schema_of_another_application(
    stored: str, client_with: Callable[..., FlaskClient], postgres: EmbeddedPostgres
) -> None:
    """Its versions come before or after those of the service, and none of its tables are there."""
    with foreign(postgres, stored) as url:
        response = client_with(database_url=url).get("/readyz")

    assert (503, "service.unavailable") == error_of(response)
    assert f"has {stored!r}, the version of another app" in (response.json or {})["message"]


def _admits(url: str) -> bool:
    with suppress(psycopg.OperationalError), psycopg.connect(url):
        return True
    return False


def _nowhere() -> str:
    return f"postgresql+psycopg://nobody@127.0.0.1:{closed_port()}/nothing"


@pytest.mark.owner
def test_readyz_says_that_postgres_refuses_to_write(
    client_with: Callable[..., FlaskClient], alice: User, connections: Connections
) -> None:
    """Reads work on a full disk, or behind a lock, and requests that write get 503."""
    client = client_with()
    with connections.transaction() as tx:
        tx.sql.execute(
            text(
                "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
                " RAISE 'No space left on device' USING ERRCODE = 'disk_full'; END $$"
            )
        )
        tx.sql.execute(
            text("CREATE TRIGGER refuse BEFORE INSERT ON threads EXECUTE FUNCTION refuse()")
        )
    assert "degraded" not in (client.get("/readyz").json or {})

    of_alice = {"Authorization": f"Bearer {alice.token}"}
    refused = client.post("/v1/threads", json={}, headers=of_alice)
    assert (503, "service.unavailable") == error_of(refused)

    response = client.get("/readyz")
    assert (200, ["writes"]) == (response.status_code, (response.json or {})["degraded"])
    with connections.transaction() as tx:
        tx.sql.execute(text("DROP TRIGGER refuse ON threads"))
        tx.sql.execute(text("DROP FUNCTION refuse()"))


def test_commits_without_a_response_are_a_degradation(
    client: FlaskClient, connections: Connections, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reads work while commits wait for a standby of Postgres."""
    outage = Outage(60)
    outage.failed()
    monkeypatch.setattr(connections, "commit_outage", outage)

    response = client.get("/readyz")
    assert 200 == response.status_code
    assert "writes" in (response.json or {})["degraded"]
