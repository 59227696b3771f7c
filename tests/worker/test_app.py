"""The worker's composition root, imported by processes of their own."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.first_process import end_at
from tests.system import CELERY

pytestmark = pytest.mark.processes

ROOT = Path(__file__).parents[2]
ENVIRON = {
    "ARKLOOP_DATABASE_URL": "postgresql://nobody@127.0.0.1:1/nothing",
    "ARKLOOP_REDIS_URL": "redis://127.0.0.1:1",
    "ARKLOOP_JWT_SECRET": "0" * 64,
    "ARKLOOP_SCRIPTED": "1",
}
#: As Celery does after SIGHUP, whose function at exit is registered last.
RESTART = """
import os
from celery import signals
from arkloop.worker import app
for number in range(3_000):
    app.log.info("line %d", number)
signals.worker_shutdown.send(None)
os.execv("/bin/true", ["true"])
"""


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"ARKLOOP_WORKER_CONCURRENCY": "many"}, b"Invalid configuration:\n"),
        ({"ARKLOOP_PLUGINS": "{tmp_path}"}, b"A tool or plugin cannot be used:\n"),
    ],
)
def test_the_reason_not_to_start_is_written_at_once(
    wrong: dict[str, str], reason: bytes, tmp_path: Path
) -> None:
    """No line of the log can be written between the text and its end of line."""
    file = tmp_path / "agents" / "clerk.py"
    file.parent.mkdir()
    file.write_text("import no_such_module")
    environ = {name: value.format(tmp_path=tmp_path) for name, value in wrong.items()}
    # Each write is a message of its own there.
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        with theirs:
            done = subprocess.run(
                [sys.executable, "-c", "import arkloop.worker.app"],
                cwd=ROOT,
                env=ENVIRON | environ,
                stderr=theirs,
            )
        writes = [*iter(lambda: ours.recv(1 << 16), b"")]

    assert 1 == done.returncode
    [text] = [one for one in writes if one.startswith(reason)]
    assert text.endswith(b"\n") and b"\n" not in writes


def test_lines_before_a_restart_are_written() -> None:
    """The program that replaces a worker's loses none of the lines that wait."""
    done = subprocess.run(
        [sys.executable, "-c", RESTART], cwd=ROOT, env=ENVIRON, capture_output=True, text=True
    )

    messages = [json.loads(line)["message"] for line in done.stderr.splitlines()]
    lines = [one for one in messages if one.startswith("line ")]
    assert [f"line {number}" for number in range(3_000)] == lines


def test_a_worker_that_waits_for_the_schema_stops_at_once() -> None:
    """SIGTERM ends it with status 0, also where it is process 1, as in a container."""
    assert (0, b"") == end_at(b"waiting for the database", CELERY, ENVIRON)


def test_a_worker_that_is_being_loaded_stops_at_once() -> None:
    """SIGTERM ends it with status 0 while its module still imports others."""
    environ = ENVIRON | {"PYTHONPROFILEIMPORTTIME": "1"}  # writes a line after each import

    status, log = end_at(b" arkloop.shared.errors\n", CELERY, environ)

    assert 0 == status, log
    assert b"Traceback" not in log and b" arkloop.worker.poller\n" not in log
