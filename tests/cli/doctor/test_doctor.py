"""`arkloop doctor` against real servers, in good states and in bad ones."""

import json
import re
import secrets
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import redis
from click.testing import CliRunner
from sqlalchemy import create_engine, make_url, text

from arkloop.cli.dev.embedded_postgres import EmbeddedPostgres
from arkloop.cli.dev.embedded_redis import EmbeddedRedis
from arkloop.cli.dev.embedded_server import free_port
from arkloop.cli.main import main
from arkloop.shared.config import Settings
from tests import walls
from tests.pgbouncer import needs_pgbouncer, pgbouncer
from tests.standby import replicated_postgres
from tests.stored_runs import StoredRuns, ago


@dataclass(frozen=True)
class Report:
    """Output of the command with `--json`, and its exit status."""

    status: int
    text: str

    def __post_init__(self) -> None:
        assert (self.data["status"] == "fail") == (self.status == 1)

    @property
    def data(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.text)
        return found

    def of(self, check: str) -> list[tuple[str, str]]:
        """Return level and text of the findings of a check."""
        return [(f["status"], f["text"]) for f in self.data["findings"] if f["check"] == check]

    def failed(self) -> list[str]:
        return [f["check"] for f in self.data["findings"] if f["status"] == "fail"]

    def advice(self, check: str) -> str:
        [advice] = [f["advice"] for f in self.data["findings"] if f["check"] == check]
        return str(advice)


def seconds(text: str, pattern: str) -> int:
    """Return the number of seconds that a finding names, where `pattern` has its group."""
    found = re.search(pattern, text)
    assert found is not None, text
    return int(found[1].replace(",", ""))


Examine = Callable[..., Report]


@pytest.fixture
def examine(settings: Settings, own_redis: EmbeddedRedis) -> Examine:
    """Call it with variables that differ from those of an installation that works."""
    usual = {
        "ARKLOOP_DATABASE_URL": settings.database_url,
        "ARKLOOP_REDIS_URL": own_redis.url,
        "ARKLOOP_JWT_SECRET": settings.jwt_secret,
        "ARKLOOP_ENCRYPTION_KEY": str(settings.encryption_key),
        "ARKLOOP_FILES_DIR": settings.files_dir,
        "OPENAI_API_KEY": "sk-none",
    }

    def examine(**changes: str) -> Report:
        done = CliRunner().invoke(main, ["doctor", "--json"], env={**usual, **changes})
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        return Report(done.exit_code, done.output)

    return examine


@pytest.fixture(scope="module")
def own_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedRedis]:
    with EmbeddedRedis(tmp_path_factory.mktemp("doctor") / "redis", persist=False) as server:
        yield server


@pytest.fixture
def configure(own_redis: EmbeddedRedis) -> Iterator[Callable[..., None]]:
    """Call it to change settings of Redis until the end of the test."""
    client = redis.Redis.from_url(own_redis.url)
    usual = client.config_get("maxmemory*", "requirepass")

    def configure(**values: str) -> None:
        for name, value in values.items():
            client.config_set(name.replace("_", "-"), value)

    yield configure
    client.replicaof("NO", "ONE")
    for name in ("maxmemory", "maxmemory-policy"):
        client.config_set(name, usual[name])
    client.close()


def test_an_installation_that_works_passes(
    examine: Examine, configure: Callable[..., None], stored: StoredRuns
) -> None:
    """Nothing fails, and nothing is found to look into but the settings of the tests' Postgres."""
    configure(maxmemory="64mb", maxmemory_policy="volatile-ttl")
    stored.worker()

    report = examine()

    assert 0 == report.status
    assert (
        {"postgres fsync", "postgres full_page_writes"}
        <= {finding["check"] for finding in report.data["findings"] if finding["status"] == "warn"}
        <= {f"postgres {name}" for name in ("fsync", "full_page_writes", "synchronous_commit")}
        | {
            "postgres autovacuum",
            "row security",  # with `--walled`
        }
    )
    assert [("ok", "1 alive")] == report.of("workers")
    for check in ("postgres", "postgres clock", "redis", "redis clock", "redis memory", "schema"):
        assert ["ok"] == [level for level, _ in report.of(check)], check


def test_it_says_the_same_to_people(settings: Settings, own_redis: EmbeddedRedis) -> None:
    """Each finding is a line with its level, and its advice another one."""
    environ = {"ARKLOOP_JWT_SECRET": settings.jwt_secret}
    done = CliRunner().invoke(main, ["doctor"], env=environ)

    assert 1 == done.exit_code
    assert "fail  settings  ARKLOOP_DATABASE_URL is required" in done.output
    assert "→ Set it in the environment of all processes." in done.output
    assert done.output.endswith("0 ok, 0 to look into, 2 to repair\n")


def test_servers_that_are_down_take_seconds_and_show_no_password(examine: Examine) -> None:
    """Both are reported, each with its address, and no secret is printed."""
    password = secrets.token_hex(8)
    database, redis_ = free_port(), free_port()
    began = time.monotonic()

    report = examine(
        ARKLOOP_DATABASE_URL=f"postgres://bob:{password}@127.0.0.1:{database}/runs",
        ARKLOOP_REDIS_URL=f"redis://:{password}@127.0.0.1:{redis_}/0",
        ARKLOOP_ENCRYPTION_KEY=password * 4,
    )

    assert time.monotonic() - began < 5
    assert ["postgres", "redis"] == report.failed()
    assert f"127.0.0.1:{database}/runs" in report.of("postgres")[0][1]
    assert f"127.0.0.1:{redis_}/0" in report.of("redis")[0][1]
    assert "host and port in ARKLOOP_DATABASE_URL" in report.advice("postgres")
    assert password not in report.text


def test_servers_that_are_silent_take_seconds(examine: Examine) -> None:
    """A server that accepts a connection and says nothing is given up."""
    with socket.create_server(("127.0.0.1", 0)) as frozen:
        port = frozen.getsockname()[1]
        began = time.monotonic()
        report = examine(
            ARKLOOP_DATABASE_URL=f"postgresql://127.0.0.1:{port}/runs",
            ARKLOOP_REDIS_URL=f"redis://127.0.0.1:{port}/0",
        )

    assert ["postgres", "redis"] == report.failed()
    assert time.monotonic() - began < 10


def test_a_misspelled_setting_is_named(examine: Examine) -> None:
    """A variable that nothing reads is reported with the setting that it resembles."""
    report = examine(ARKLOOP_RETENTION_DAY="7", ARKLOOP_OWNER_DATABASE_URL="postgresql://db/x")

    assert [("warn", "ARKLOOP_RETENTION_DAY is not a setting")] == report.of("settings")
    assert "Did you mean ARKLOOP_RETENTION_DAYS?" == report.advice("settings")


def test_every_wrong_setting_is_reported(examine: Examine) -> None:
    """All problems at once, as a process that exits with them reports them."""
    report = examine(ARKLOOP_JWT_SECRET="short", ARKLOOP_PORT="many")

    assert ["settings", "settings"] == report.failed()
    assert "short" not in report.text


@pytest.mark.parametrize(
    ("name", "value", "check"),
    [
        ("ARKLOOP_FAULTS", "1", "settings"),
        ("ARKLOOP_ROUTES", "/nowhere/routes.yaml", "models"),
        ("ARKLOOP_FILES_DIR", "/etc/passwd/files", "files"),
    ],
)
def test_settings_with_which_processes_do_not_work_fail(
    examine: Examine, name: str, value: str, check: str
) -> None:
    """What processes exit with at their start, or tests alone may use, is a failure here."""
    assert [check] == examine(**{name: value}).failed()


def test_an_s3_server_that_is_down_is_found(examine: Examine) -> None:
    """Processes start without it, so it is something to look into."""
    report = examine(
        ARKLOOP_S3_BUCKET="files",
        ARKLOOP_S3_ENDPOINT_URL=f"http://127.0.0.1:{free_port()}",
        ARKLOOP_S3_ACCESS_KEY_ID="key",
        ARKLOOP_S3_SECRET_ACCESS_KEY="secret-of-s3",
    )

    [(level, why)] = report.of("files")
    assert ("warn", True) == (level, "cannot be reached" in why)
    assert "secret-of-s3" not in report.text


# ---- Postgres ------------------------------------------------------------------------


@contextmanager
def database(postgres: EmbeddedPostgres, options: str = "") -> Iterator[str]:
    """Create a database that was never migrated; yields its URL."""
    name = f"doctor_{secrets.token_hex(4)}"
    engine = create_engine(postgres.url, isolation_level="AUTOCOMMIT")
    with engine.connect() as sql:
        sql.execute(text(f"CREATE DATABASE {name} {options}"))
        yield postgres.url_of(name)
        sql.execute(text(f"DROP DATABASE {name}"))
    engine.dispose()


def test_a_database_without_schema_fails(examine: Examine, postgres: EmbeddedPostgres) -> None:
    """The advice is to migrate; what needs tables is not looked at."""
    with database(postgres) as url:
        report = examine(ARKLOOP_DATABASE_URL=url)

    assert ["schema"] == report.failed()
    assert "arkloop migrate" in report.advice("schema")
    assert [] == report.of("workers")


def test_a_database_that_does_not_exist_fails(examine: Examine, postgres: EmbeddedPostgres) -> None:
    """The advice is to create it."""
    report = examine(ARKLOOP_DATABASE_URL=postgres.url_of("nowhere"))

    assert ["postgres"] == report.failed()
    assert "Create it" in report.advice("postgres")


def test_another_encoding_fails(examine: Examine, postgres: EmbeddedPostgres) -> None:
    """Such a database cannot store every text."""
    with database(postgres, "ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0") as url:
        report = examine(ARKLOOP_DATABASE_URL=url)

    assert ["postgres encoding", "schema"] == report.failed()


def test_a_standby_fails(examine: Examine, tmp_path: Path) -> None:
    """It accepts no writes; the advice is to point to the primary."""
    with replicated_postgres(tmp_path) as pair:
        report = examine(ARKLOOP_DATABASE_URL=pair.url(pair.standby))

        assert ["postgres"] == report.failed()
        assert "primary" in report.advice("postgres")
        assert [] == examine(ARKLOOP_DATABASE_URL=pair.url(pair.standby, pair.primary)).failed()


@pytest.mark.poolers
@needs_pgbouncer
def test_a_pooler_without_a_way_around_it_is_found(
    examine: Examine, postgres: EmbeddedPostgres, settings: Settings, tmp_path: Path
) -> None:
    """Leases need a session of their own, of the same database and not through the pooler."""
    url = make_url(settings.database_url)
    with pgbouncer(postgres, tmp_path, pool_mode="transaction") as port:
        pooled = f"postgresql://postgres@127.0.0.1:{port}/{url.database}"

        def pooler(direct: str = "") -> Sequence[tuple[str, str]]:
            return examine(ARKLOOP_DATABASE_URL=pooled, ARKLOOP_DIRECT_DATABASE_URL=direct).of(
                "pooler"
            )

        [(level, why)] = pooler()
        assert ("warn", True) == (level, "ARKLOOP_DIRECT_DATABASE_URL is not set" in why)
        [(level, why)] = pooler(pooled)
        assert ("fail", True) == (level, "a pooler, too" in why)
        [(level, why)] = pooler(postgres.url)
        assert ("fail", True) == (level, "another database" in why)
        assert [("ok", "leases and migrations go around it")] == pooler(settings.database_url)


def test_a_role_without_privileges_fails(
    examine: Examine, new_database: Callable[[], str], postgres: EmbeddedPostgres
) -> None:
    """A table that the service's role may not write is named."""
    url = new_database()
    walls.put_up(url)
    with walls.owner(url) as engine, engine.begin() as sql:
        sql.execute(text(f"REVOKE INSERT ON run_events FROM {walls.ROLE}"))

    report = examine(ARKLOOP_DATABASE_URL=walls.behind(url))

    assert ["privileges"] == report.failed()
    assert "run_events" in report.of("privileges")[0][1]


def test_a_wall_with_a_gap_fails(examine: Examine, new_database: Callable[[], str]) -> None:
    """A complete one is fine; a table without its policy is named, and a superuser is warned."""
    url = new_database()
    walls.put_up(url)
    behind = walls.behind(url)
    assert [("ok", "on")] == examine(ARKLOOP_DATABASE_URL=behind).of("row security")

    [(level, why)] = examine(ARKLOOP_DATABASE_URL=walls.as_user(url, "postgres")).of("row security")
    assert ("warn", True) == (level, "superuser" in why)

    with walls.owner(url) as engine, engine.begin() as sql:
        sql.execute(text("ALTER TABLE threads DISABLE ROW LEVEL SECURITY"))
    [(level, why)] = examine(ARKLOOP_DATABASE_URL=behind).of("row security")
    assert ("fail", "on, but not for threads") == (level, why)


# ---- Redis ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "level"),
    [
        ({"maxmemory": "64mb", "maxmemory_policy": "volatile-lru"}, "ok"),
        ({"maxmemory": "0", "maxmemory_policy": "noeviction"}, "warn"),
        ({"maxmemory": "64mb", "maxmemory_policy": "noeviction"}, "warn"),
        ({"maxmemory": "64mb", "maxmemory_policy": "allkeys-lru"}, "fail"),
        ({"maxmemory": "0", "maxmemory_policy": "allkeys-lfu"}, "fail"),
    ],
)
def test_the_policy_of_redis_is_judged(
    examine: Examine, configure: Callable[..., None], values: dict[str, str], level: str
) -> None:
    """One that evicts messages for workers fails; one that can only reject writes is found."""
    configure(**values)

    assert [level] == [found for found, _ in examine().of("redis memory")]


def test_a_replica_fails(
    examine: Examine, configure: Callable[..., None], own_redis: EmbeddedRedis
) -> None:
    """It rejects writes."""
    with redis.Redis.from_url(own_redis.url) as client:
        client.replicaof("127.0.0.1", 1)
        report = examine()

    assert ["redis writes"] == report.failed()


def test_a_broker_of_its_own_is_looked_at(examine: Examine) -> None:
    """It has findings of its own."""
    assert ["broker"] == examine(ARKLOOP_BROKER_URL=f"redis://127.0.0.1:{free_port()}").failed()


def test_a_user_who_may_not_ask_is_found(examine: Examine, own_redis: EmbeddedRedis) -> None:
    """A wrong password fails, and a user without INFO leads to the right that is missing."""
    with redis.Redis.from_url(own_redis.url) as client:
        client.acl_setuser(
            "shy", enabled=True, passwords=["+quiet"], keys=["*"], commands=["+@all", "-info"]
        )
        place = own_redis.url.rpartition("@")[2]
        assert ["redis"] == examine(ARKLOOP_REDIS_URL=f"redis://shy:loud@{place}").failed()
        report = examine(ARKLOOP_REDIS_URL=f"redis://shy:quiet@{place}")
        client.acl_deluser("shy")

    assert ["warn"] == [level for level, _ in report.of("redis")]
    assert "+info" in report.advice("redis")


# ---- work ----------------------------------------------------------------------------


def test_runs_that_wait_without_a_worker_fail(
    examine: Examine, new_database: Callable[[], str], stored: StoredRuns
) -> None:
    """No worker is a warning while nothing waits, and a failure when something does."""
    with database_of(stored):
        run_id = stored.create()
        stored.set(run_id, queued_at=ago(seconds=300))
        report = examine()
        assert ["workers"] == report.failed()
        [(level, why)] = report.of("queue")
        assert level == "warn"
        assert 300 <= seconds(why, r"1 runs, the oldest for ([\d,]+) s") < 330

        stored.worker(seen_at=ago(seconds=120))
        [_, (level, why)] = examine().of("workers")
        assert level == "warn"
        assert 120 <= seconds(why, r"was last heard ([\d,]+) s ago") < 150

        stored.claimed(seen_at=ago(seconds=600))
        [(level, why)] = examine().of("sweep")
        assert ("fail", True) == (level, why.startswith("1 runs belong to workers that are gone"))


@contextmanager
def database_of(stored: StoredRuns) -> Iterator[None]:
    """Begin without runs and workers, and end so."""
    for _ in range(2):
        with stored.connections.transaction() as tx:
            tx.sql.execute(text("TRUNCATE workers, runs CASCADE"))
        if _ == 0:
            yield
