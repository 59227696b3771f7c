"""The guide's restore, rehearsed: a dump of a service that works becomes a service that works."""

import json
import secrets
import shutil
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path

import psycopg
import pytest

from arkloop.cli.dev.dev import path_of_children
from arkloop.cli.dev.embedded_postgres import EmbeddedPostgres
from arkloop.shared.storage import rewinds
from tests.caller import Caller
from tests.dumps import dumped, load
from tests.restore_guide import GIVES_TIME
from tests.system import System, running_system
from tests.waiting import eventually
from tests.web_server import INHERITED

pytestmark = pytest.mark.processes


@pytest.mark.owner
def test_a_dump_becomes_a_service_again(
    new_database: Callable[[], str], postgres: EmbeddedPostgres, tmp_path: Path
) -> None:
    """After the loss of everything but a dump and the files, ended runs and files read as before,
    waiting runs are answered and continue, what came after the dump is not there, and new runs are
    executed.
    """
    lost, restored = (new_database() for _ in range(2))
    names = "ARKLOOP_JWT_SECRET", "ARKLOOP_ENCRYPTION_KEY"
    # Doctor would find that runs may end their worker.
    environ = {name: secrets.token_hex(32) for name in names} | {"ARKLOOP_FAULTS": ""}
    folders = [tmp_path / name for name in ("before", "after")]
    for folder in folders:
        folder.mkdir()

    with running_system(lambda: lost, folders[0], web=1, environ=environ) as system:
        caller = system.caller()
        ended = caller.run({"say": "Hello."})
        caller.ended(ended)
        waiting = caller.run({"tool": "ask_user", "args": {"question": "?"}}, {"say": "Thanks."})
        caller.until(waiting, "status", "waiting_for_input")
        events = caller.events_so_far(ended)
        sent = caller.http.post("/v1/files", files={"file": ("kept.txt", b"Kept.")}).json()
        dump = dumped(postgres, lost)  # while everything is in use
        shutil.copytree(folders[0] / "files", folders[1] / "files")
        late = caller.run({"say": "Too late."})
        caller.ended(late)

    load(postgres, dump, restored)
    _give_time(restored)
    with running_system(lambda: restored, folders[1], web=1, environ=environ) as system:
        _command(system, "migrate")
        _command(system, "rotate-epoch")
        found = caller.at(system.web[0].url)
        assert events == found.events_so_far(ended)
        assert 404 == found.http.get(f"/v1/runs/{late}").status_code
        assert b"Kept." == found.http.get(f"/v1/files/{sent['id']}/content").content
        assert 200 == found.answer(waiting, "yes").status_code
        assert "completed" == found.ended(waiting)["status"]
        _numbers_are_whole(found, waiting)
        assert "completed" == found.ended(found.run({"say": "New."}))["status"]
        report = json.loads(_command(system, "doctor", "--json"))
    assert [] == [one for one in report["findings"] if one["status"] == "fail"]


def test_workers_take_from_the_queue_of_a_new_identity(
    new_database: Callable[[], str], tmp_path: Path
) -> None:
    """The running processes change to it, say so, and leave nothing in the queue."""
    with running_system(new_database, tmp_path, web=1) as system:
        caller, connections = system.caller(), system.connections
        before = connections.keys.installation
        with connections.transaction() as tx:
            rewinds.rotate(tx.sql)
        rewinds.check(connections)
        now = connections.keys.installation
        for process in (system.web[0], system.worker):
            changed = partial(_has_line, process.log, f"is now {now} (was {before})")
            eventually(changed)

        for run_id in [caller.run("hello") for _ in range(5)]:
            assert "completed" == caller.ended(run_id)["status"]

        eventually(lambda: connections.broker.llen(f"{now}:celery") == 0, seconds=10)


def _has_line(log: Path, text: str) -> bool:
    return text in log.read_text()


def _numbers_are_whole(caller: Caller, run_id: str) -> None:
    """Assert that no number of the run's events is missing or repeated."""
    numbers = [event["seq"] for event in caller.events_so_far(run_id)]
    assert list(range(1, len(numbers) + 1)) == numbers


def _give_time(url: str) -> None:
    """Give waiting runs time again, by the guide's statement: the backup is older than theirs."""
    with psycopg.connect(url.replace("+psycopg", "", 1)) as sql:
        late = "UPDATE runs SET input_expires_at = now() - interval '1h' WHERE state = 'waiting'"
        assert 1 == sql.execute(late).rowcount
        sql.execute(GIVES_TIME)


def _command(system: System, *arguments: str) -> str:
    """Return what a command of the operator prints, with the environment of the processes."""
    done = subprocess.run(
        ["arkloop", *arguments],
        env={**INHERITED, **system.environ, "PATH": path_of_children()},
        capture_output=True,
        text=True,
    )
    assert 0 == done.returncode, done.stdout + done.stderr
    return done.stdout
