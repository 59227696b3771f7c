"""A restore from a copy of Postgres' files, while Redis keeps what it had: rehearsed."""

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from sqlalchemy import create_engine

from arkloop.api.streaming import sse
from arkloop.api.streaming.stream_hub import StreamHub
from arkloop.cli.dev.embedded_postgres import EmbeddedPostgres
from arkloop.shared.accounts import accounts
from arkloop.shared.actors import PERMISSIONS_OF_ROLE, Actor
from arkloop.shared.config import Settings
from arkloop.shared.outage_log import OutageLog
from arkloop.shared.storage import rewinds, schema
from arkloop.shared.storage.connections import Connections
from tests.api.streaming.followed_runs import Client, FollowedRun
from tests.shared_app import connect_patiently
from tests.stored_runs import StoredRuns
from tests.waiting import in_parallel

pytestmark = pytest.mark.processes


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """The files of a Postgres that has been migrated, and is stopped."""
    files = tmp_path / "postgres"
    with EmbeddedPostgres(files, options={"fsync": "off"}) as server:
        engine = create_engine(server.url)
        schema.migrate(engine)
        engine.dispose()
    return files


@contextmanager
def started(settings: Settings, files: Path, processes: int = 1) -> Iterator[list[Connections]]:
    """Start Postgres on these files, with processes that have begun to work on it."""
    with ExitStack() as stack:
        server = stack.enter_context(EmbeddedPostgres(files, options={"fsync": "off"}))
        of_server = replace(settings, database_url=server.url)
        made = [connect_patiently(of_server) for _ in range(processes)]
        for connections in made:
            stack.callback(connections.close)
        in_parallel(processes, lambda i: rewinds.check(made[i]))
        yield made


def new_run(connections: Connections) -> FollowedRun:
    with connections.transaction() as tx:
        org_id = accounts.create_org(tx, "restored")
        user_id = accounts.create_user(
            tx,
            org_id=org_id,
            role="owner",
            login="owner",
            email="owner@example.com",
            password_hash="-",
        )
    permissions = PERMISSIONS_OF_ROLE["owner"]
    actor = Actor(org_id=org_id, user_id=user_id, role="owner", permissions=permissions)
    return FollowedRun.of(StoredRuns(connections, actor))


def at(run: FollowedRun, connections: Connections) -> FollowedRun:
    """Return the same run, on which another process works."""
    return FollowedRun(StoredRuns(connections, run.stored.actor), run.claim)


def test_followers_see_what_the_restored_database_has(settings: Settings, files: Path) -> None:
    """Redis keeps events of the same run that came after the copy was made, under numbers that
    other events get now.
    """
    copy = files.with_name("copy")
    with started(settings, files) as [process]:
        run = new_run(process)
        run.write("before")
    shutil.copytree(files, copy)
    with started(settings, files) as [process]:
        at(run, process).write("lost", "lost")
        rewinds.check(process)
        old = process.keys.events(run.id)
        assert 4 == process.redis.xlen(old)
    shutil.rmtree(files)
    shutil.copytree(copy, files)

    with started(settings, files) as [process]:
        assert 4 == process.redis.xlen(old)
        restored = at(run, process)
        restored.write("after", "after")
        hub = StreamHub(process)
        client = Client(hub, restored.watch())
        restored.end()
        received = client.whole()
        hub.close()

        assert sse.HELLO + sse.RETRY + b"".join(restored.frames) == received


def test_processes_that_start_together_begin_one_epoch(settings: Settings, files: Path) -> None:
    """They keep finding each other, by the queue of one installation."""
    copy = files.with_name("copy")
    shutil.copytree(files, copy)
    with started(settings, files) as [process]:
        before = process.keys.epoch
        new_run(process)
        rewinds.check(process)
    shutil.rmtree(files)
    shutil.copytree(copy, files)

    with started(settings, files, processes=5) as all_processes:
        for process in all_processes:
            rewinds.check(process)
        epochs = {process.keys.epoch for process in all_processes}

    assert 1 == len(epochs)
    assert before not in epochs


def test_a_restart_keeps_the_epoch(settings: Settings, files: Path) -> None:
    """Streams go on where they were."""
    epochs = set()
    for _ in range(3):
        with started(settings, files) as [process]:
            rewinds.check(process)
            epochs.add(process.keys.epoch)

    assert 1 == len(epochs)


def test_a_redis_that_refuses_the_password_is_logged_with_its_reason(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A process without requests has no other line that says why Redis cannot be used."""
    monkeypatch.setattr(rewinds, "_records", OutageLog(rewinds.log, "recording"))
    place = urlsplit(settings.redis_url)
    wrong = place._replace(netloc=f":wrong-password@{place.hostname}:{place.port}")
    process = connect_patiently(replace(settings, redis_url=wrong.geturl()))

    rewinds.check(process)
    process.close()

    [line] = [one for one in caplog.messages if one.startswith("recording the WAL position failed")]
    assert "invalid username-password pair" in line
    assert "wrong-password" not in line
