"""Processes and commands that meet a database before `arkloop migrate` has run."""

import json
import secrets
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner
from sqlalchemy import create_engine, text

from arkloop.cli.main import main
from arkloop.shared.storage import schema
from tests.caller import client
from tests.system import PACE, Worker, register
from tests.waiting import eventually
from tests.web_server import web_server

pytestmark = [pytest.mark.owner, pytest.mark.processes]


@pytest.fixture
def unmigrated(new_database: Callable[[], str]) -> str:
    """The URL of a database without any table."""
    url = new_database()
    engine = create_engine(url)
    with engine.begin() as sql:
        sql.execute(text("DROP SCHEMA public CASCADE"))
        sql.execute(text("CREATE SCHEMA public"))
    engine.dispose()
    return url


@contextmanager
def working(environ: dict[str, str], log: Path) -> Iterator[Worker]:
    worker = Worker(environ, log)
    worker.start()
    try:
        yield worker
    finally:
        worker.stop(signal.SIGKILL)


def test_processes_wait_for_the_migration(unmigrated: str, redis_url: str, tmp_path: Path) -> None:
    """Each logs one line, requests are refused with the reason, and then everything works."""
    environ = {
        "ARKLOOP_DATABASE_URL": unmigrated,
        "ARKLOOP_REDIS_URL": redis_url,
        "ARKLOOP_JWT_SECRET": secrets.token_hex(32),
        "ARKLOOP_SCRIPTED": "1",
        "ARKLOOP_NEW_ORG_CREDITS": "1000000",
        **PACE,
    }
    worker_log = tmp_path / "worker.log"
    with (
        working(environ, worker_log),
        web_server(environ, tmp_path / "web.log") as web,
    ):
        eventually(lambda: "arkloop migrate" in worker_log.read_text())
        eventually(lambda: "arkloop migrate" in web.log.read_text())
        for _ in range(20):  # several rounds of everything that repeats itself
            refused = client(web.url).post(
                "/v1/auth/login", json={"login": "alice", "password": "wrong"}
            )
            assert 503 == refused.status_code
            assert "arkloop migrate" in refused.json()["message"]
        for log in (worker_log, web.log):
            whole = log.read_text().rpartition("\n")[0].splitlines()  # without one being written
            lines = [json.loads(line) for line in whole if line[:1] == "{"]
            waiting = [line for line in lines if "waiting for the database" in line["message"]]
            assert 1 == len(waiting), log.read_text()
            assert "Traceback" not in log.read_text()

        engine = create_engine(unmigrated)
        schema.migrate(engine)
        engine.dispose()

        user = register(web.url)
        assert "completed" == user.ended(user.run("hello"))["status"]


@pytest.mark.parametrize("command", [["users", "list"], ["credits", "check"]])
def test_commands_name_the_migration(command: list[str], unmigrated: str) -> None:
    """A command against the database ends with one line."""
    done = CliRunner().invoke(main, command, env={"ARKLOOP_DATABASE_URL": unmigrated})

    assert (1, 1) == (done.exit_code, done.output.count("\n"))
    assert "run `arkloop migrate`" in done.output
