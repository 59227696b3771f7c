"""The service whose logs nobody reads: standard error of each process is a pipe that is full."""

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from tests.system import running_system
from tests.waiting import eventually

pytestmark = pytest.mark.processes


@pytest.fixture
def full_pipe(tmp_path: Path) -> Iterator[Callable[[str], int]]:
    """Call it with a name for a full pipe of this name; returns what reads it."""
    made: list[tuple[Path, int]] = []

    def new(name: str) -> int:
        path = tmp_path / name
        os.mkfifo(path)
        reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        made.append((path, reader))
        writer = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
        with suppress(BlockingIOError):
            while True:
                os.write(writer, b"\n")
        os.close(writer)
        return reader

    yield new
    for path, reader in made:
        os.close(reader)
        path.unlink()  # a search in the logs of all tests would wait for it


def _read(reader: int, text: list[bytes]) -> bytes:
    with suppress(BlockingIOError):
        text.append(os.read(reader, 1 << 20))
    return b"".join(text)


def test_runs_are_executed_and_requests_answered_while_no_log_is_read(
    tmp_path: Path, new_database: Callable[[], str], full_pipe: Callable[[str], int]
) -> None:
    """Nothing waits for the readers, and lines from before they read again are there."""
    readers = {name: full_pipe(f"{name}.log") for name in ("web0", "worker")}
    environ = {"ARKLOOP_REQUEST_LOG": "1"}
    with running_system(new_database, tmp_path, web=1, environ=environ) as system:
        caller = system.caller()
        run_id = caller.run("hello")
        assert "completed" == caller.ended(run_id)["status"]
        assert 200 == httpx.get(f"{system.web[0].url}/healthz").status_code
        for reader in readers.values():
            text: list[bytes] = []
            eventually(lambda r=reader, t=text: run_id.encode() in _read(r, t))
