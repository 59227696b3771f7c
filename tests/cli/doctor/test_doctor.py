"""`arkloop doctor` against real servers, in good states and in bad ones."""

import errno
import os
import secrets
import socket
import ssl
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import trustme
from click.testing import CliRunner
from sqlalchemy import ColumnElement, delete, func, insert, text, update

from arkloop.cli.dev.embedded_redis import EmbeddedRedis
from arkloop.cli.doctor import work_checks
from arkloop.cli.main import main
from arkloop.shared import folders
from arkloop.shared.config import Settings
from arkloop.shared.ids import new_id
from arkloop.shared.storage.connections import Connections
from arkloop.shared.storage.tables.billing import run_usage, usage_days_until
from tests import stored_deliveries
from tests.cli.doctor.examined import (
    Examine,
    configure,
    database_of,
    examine,
    own_redis,
    seconds,
)
from tests.clients import Register, User
from tests.closed_port import closed_port
from tests.full_disk import full_disk
from tests.stored_runs import StoredRuns, ago

pytestmark = pytest.mark.processes

__all__ = ["configure", "examine", "own_redis"]  # fixtures


def test_an_installation_that_works_passes(
    examine: Examine, configure: Callable[..., None], stored: StoredRuns
) -> None:
    """Nothing fails, and nothing is found to look into but the settings of the tests' Postgres."""
    configure(maxmemory="64mb", maxmemory_policy="volatile-lru")
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
    database, redis_ = closed_port(), closed_port()
    began = time.monotonic()

    report = examine(
        ARKLOOP_DATABASE_URL=f"postgres://bob:{password}@127.0.0.1:{database}/runs",
        ARKLOOP_REDIS_URL=f"redis://:{password}@127.0.0.1:{redis_}/0",
        ARKLOOP_ENCRYPTION_KEY=password * 4,
    )

    assert time.monotonic() - began < 15
    assert ["postgres", "redis"] == report.failed()
    assert f"127.0.0.1:{database}/runs" in report.of("postgres")[0][1]
    assert f"127.0.0.1:{redis_}/0" in report.of("redis")[0][1]
    assert "host and port in ARKLOOP_DATABASE_URL" in report.advice("postgres")
    assert password not in report.text


def test_a_finding_names_the_variable_that_is_set(examine: Examine) -> None:
    """A platform sets its own: those of the service are not there to be corrected."""
    report = examine(
        ARKLOOP_DATABASE_URL="",
        DATABASE_URL=f"postgres://bob@127.0.0.1:{closed_port()}/runs",
        ARKLOOP_REDIS_URL="",
        REDIS_URL=f"redis://127.0.0.1:{closed_port()}/0",
    )

    assert "host and port in DATABASE_URL" in report.advice("postgres")
    assert "or correct REDIS_URL" in report.advice("redis")


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
    assert time.monotonic() - began < 30


def test_a_misspelled_setting_is_named(examine: Examine) -> None:
    """A variable that nothing reads is reported with the setting that it resembles."""
    others = ("ARKLOOP_OWNER_DATABASE_URL", "ARKLOOP_TARGET_DATABASE_URL")  # of commands
    report = examine(ARKLOOP_RETENTION_DAY="7", **dict.fromkeys(others, "postgresql://db/x"))

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


def test_a_folder_of_metrics_that_cannot_be_used_fails(examine: Examine) -> None:
    """It matters where metrics are counted."""
    folder = "/etc/passwd/counts"
    assert [] == examine(ARKLOOP_METRICS_DIR=folder).failed()

    report = examine(ARKLOOP_METRICS_DIR=folder, ARKLOOP_METRICS_PORT="9464")

    assert ["metrics"] == report.failed()
    assert f"ARKLOOP_METRICS_DIR: {folder!r} cannot be used: " in report.of("metrics")[0][1]


def test_a_folder_without_room_is_found(examine: Examine, tmp_path: Path) -> None:
    """The rights of the folder say nothing of the disk."""
    counts = {"ARKLOOP_METRICS_PORT": "9464", "ARKLOOP_METRICS_DIR": str(tmp_path)}
    with full_disk():
        report = examine(**counts)

    assert ["files"] == report.failed()
    assert "stores no file: File too large" in report.of("files")[0][1]
    [(level, why)] = report.of("metrics")
    assert ("warn", True) == (level, why.startswith(f"no count can be stored in {tmp_path}"))
    assert [] == examine(**counts).of("metrics")
    assert [] == list(tmp_path.iterdir())


def test_a_full_folder_for_temporary_files_is_found(
    examine: Examine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The counts are there in any case: another folder would be that of this process alone."""
    monkeypatch.setattr(tempfile, "tempdir", None)  # what an earlier look has found
    with full_disk():
        report = examine(ARKLOOP_METRICS_PORT="9464", TMPDIR=str(tmp_path))

    [(level, why)] = report.of("metrics")
    assert ("warn", True) == (level, why.startswith(f"no count can be stored in {tmp_path}/"))


def test_folders_without_inodes_are_found(
    examine: Examine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Uploads fail; a process that can create no file for its counts works without one."""

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    report = examine(ARKLOOP_METRICS_PORT="9464", ARKLOOP_METRICS_DIR=str(tmp_path))

    assert ["files"] == report.failed()
    [(level, why)] = report.of("metrics")
    assert ("warn", True) == (level, why.endswith("No space left on device"))


def test_folders_that_hang_are_found(
    examine: Examine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All else is looked at; a process starts without its files, and not without its counts."""
    released = threading.Event()
    counts = {"ARKLOOP_METRICS_PORT": "9464", "ARKLOOP_METRICS_DIR": str(tmp_path)}
    monkeypatch.setattr(folders, "RESPONSE_SECONDS", 0.2)
    silent = "it does not respond within 0.2 s"

    def hang(*_: object, **__: object) -> bool:
        return released.wait(20)

    try:
        with monkeypatch.context() as patched:
            patched.setattr(tempfile, "TemporaryFile", hang)
            stores_none = examine(**counts)
        monkeypatch.setattr(os, "access", hang)
        hangs = examine(**counts)
    finally:
        released.set()

    assert (["files"], ["metrics"]) == (stores_none.failed(), hangs.failed())
    for report, levels in ((stores_none, ["fail", "warn"]), (hangs, ["warn", "fail"])):
        found = report.of("files") + report.of("metrics")
        assert levels == [level for level, text in found if silent in text]
        assert "Look at the" in report.advice("files") or "Check its" in report.advice("files")
    assert "ok" in [level for level, _ in hangs.of("postgres")]


@pytest.mark.parametrize(
    ("own", "named", "expected"),
    [
        (0, "", ("ok", "MCP servers that are programs run as nobody")),
        (0, "root", ("warn", "MCP servers that are programs run as the user of the worker")),
        (65_534, "", ("warn", "MCP servers that are programs run as the user of the worker")),
        (65_534, "root", ("fail", "ARKLOOP_MCP_STDIO_USER: only root can start programs")),
    ],
)
def test_the_user_of_mcp_programs_is_reported(
    examine: Examine,
    monkeypatch: pytest.MonkeyPatch,
    own: int,
    named: str,
    expected: tuple[str, str],
) -> None:
    """Only root can give programs a user of their own."""
    monkeypatch.setattr(os, "geteuid", lambda: own)
    report = examine(ARKLOOP_MCP_STDIO="1", ARKLOOP_MCP_STDIO_USER=named)

    assert expected in [(level, text[: len(expected[1])]) for level, text in report.of("settings")]


def test_an_s3_server_that_is_down_is_found(examine: Examine) -> None:
    """Processes start without it, so it is something to look into."""
    report = examine(
        ARKLOOP_S3_BUCKET="files",
        ARKLOOP_S3_ENDPOINT_URL=f"http://127.0.0.1:{closed_port()}",
        ARKLOOP_S3_ACCESS_KEY_ID="key",
        ARKLOOP_S3_SECRET_ACCESS_KEY="secret-of-s3",
    )

    [(level, why)] = report.of("files")
    assert ("warn", True) == (level, "cannot be reached" in why)
    assert "secret-of-s3" not in report.text


def test_an_s3_server_with_a_certificate_that_is_not_trusted_is_found(
    examine: Examine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The advice is not to start a server that responds."""
    monkeypatch.delenv("AWS_CA_BUNDLE", raising=False)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("localhost").configure_cert(context)
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        server.handle_error = lambda *_: None  # type: ignore[method-assign]  # a rejected handshake
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        report = examine(
            ARKLOOP_S3_BUCKET="files",
            ARKLOOP_S3_ENDPOINT_URL=f"https://localhost:{server.server_port}",
            ARKLOOP_S3_ACCESS_KEY_ID="key",
            ARKLOOP_S3_SECRET_ACCESS_KEY="secret-of-s3",
        )
        server.shutdown()

    [(level, why)] = report.of("files")
    assert ("warn", True) == (level, "certificate is not trusted" in why)
    assert "Name a file with its authority in AWS_CA_BUNDLE" in report.advice("files")


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
        [(level, why)] = (report := examine()).of("sweep")
        assert ("fail", True) == (level, why.startswith("1 runs belong to workers that are gone"))
        assert report.advice("sweep").startswith("Start a worker: while none is alive")

        stored.worker()
        assert "Their logs say why" in examine().advice("sweep")


def test_deliveries_that_could_be_attempted_are_late(
    examine: Examine, connections: Connections, alice: User, register: Register
) -> None:
    """An endpoint that was disabled is no finding, nor is anything else that no worker claims."""
    stored_deliveries.unclaimed(connections, alice, register(), ago(days=9), ago(seconds=-60))
    none = examine().of("webhooks")
    with connections.transaction() as tx:
        endpoint = stored_deliveries.endpoint(tx, alice.org_id)
        stored_deliveries.deliveries(tx, alice.org_id, endpoint, ago(seconds=90), ago(seconds=300))
    found = examine().of("webhooks")
    stored_deliveries.delete_all(connections)

    assert [] == none
    assert [("warn", "1 deliveries that are due for more than a minute")] == found


def test_runs_that_are_not_summed_up_are_found(
    examine: Examine, stored: StoredRuns, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The transaction that they wait for is named, if there is one."""
    with usage_of(stored, ago(seconds=2 * 3600), summed_up_until=ago(seconds=3 * 3600)):
        [(level, why)] = (report := examine()).of("usage")
        assert ("warn", True) == (level, why.startswith("runs that ended after 20"))
        assert "tidying up failed" in report.advice("usage")

        monkeypatch.setattr(work_checks, "_SUMMED_UP", timedelta(seconds=0.1))
        with stored.connections.transaction() as tx:
            pid, _ = tx.sql.execute(text("SELECT pg_backend_pid(), pg_current_xact_id()")).one()
            time.sleep(0.2)
            assert f"pg_terminate_backend({pid})" in examine().advice("usage")


@pytest.mark.parametrize(("ended", "summed_up"), [(1800, 3 * 3600), (3 * 3600, 2 * 3600)])
def test_runs_that_are_summed_up_in_time_are_no_finding(
    examine: Examine, stored: StoredRuns, ended: int, summed_up: int
) -> None:
    """An installation whose processes were all stopped has none to sum up, either."""
    with usage_of(stored, ago(seconds=ended), summed_up_until=ago(seconds=summed_up)):
        assert [] == examine().of("usage")


@contextmanager
def usage_of(
    stored: StoredRuns, ended_at: ColumnElement[Any], *, summed_up_until: ColumnElement[Any]
) -> Iterator[None]:
    """Store the usage of a run, and how far usage is summed up."""
    day = func.date(func.timezone("UTC", summed_up_until))
    run = {"run_id": new_id(), "org_id": stored.actor.org_id, "user_id": stored.actor.user_id}
    what = {"route_id": "one", "model": "small", "persona_key": "assistant"}
    price = {"usage_source": "reported", "cost_usd": 0, "month": func.current_date()}
    with stored.connections.transaction() as tx:
        tx.sql.execute(insert(run_usage).values(**run, **what, **price, ended_at=ended_at))
        tx.sql.execute(update(usage_days_until).values(day=day, interval_at=summed_up_until))
    yield
    with stored.connections.transaction() as tx:
        tx.sql.execute(delete(run_usage))
        tx.sql.execute(update(usage_days_until).values(day=None, interval_at=None))
