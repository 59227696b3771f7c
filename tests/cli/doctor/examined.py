"""Reports of `arkloop doctor` on an installation that works, and with what a test changes of it."""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import redis
from click.testing import CliRunner
from sqlalchemy import text

from arkloop.cli.dev.embedded_redis import EmbeddedRedis
from arkloop.cli.main import main
from arkloop.shared.config import Settings
from tests.stored_runs import StoredRuns


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


@contextmanager
def database_of(stored: StoredRuns) -> Iterator[None]:
    """Begin without runs and workers, and end so."""
    for _ in range(2):
        with stored.connections.transaction() as tx:
            tx.sql.execute(text("TRUNCATE workers, runs CASCADE"))
        if _ == 0:
            yield
