"""The points at which trials kill a process: one that is not reached ends the trials."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench import points
from bench.http_tools.trials import Receiver
from bench.service import Service

pytestmark = pytest.mark.processes

POINT = "worker.in_tool"
NOT_REACHED = f"^{POINT} is not reached$"


@pytest.fixture
def doomed() -> Iterator[subprocess.Popen[bytes]]:
    """A process that lives until it is killed."""
    command = [sys.executable, "-c", "import time; time.sleep(600)"]
    with subprocess.Popen(command) as process:
        yield process
        process.kill()


def test_a_process_that_lives_has_not_reached_its_point(doomed: subprocess.Popen[bytes]) -> None:
    """Trials without the kill would show that nothing is lost where nothing was killed."""
    with pytest.raises(TimeoutError, match=NOT_REACHED):
        points.wait_for_death(POINT, doomed.pid, 0.1)


def test_a_dead_process_has_reached_its_point(doomed: subprocess.Popen[bytes]) -> None:
    """It counts before its parent has noticed, and after."""
    doomed.send_signal(signal.SIGKILL)
    points.wait_for_death(POINT, doomed.pid, 60)
    doomed.wait()
    points.wait_for_death(POINT, doomed.pid, 0)


def test_a_receiver_that_lives_has_not_reached_its_point(tmp_path: Path) -> None:
    """The tool's server is not started again beside one that lives."""
    service = Service()
    service.urls.append("http://127.0.0.1:9")
    service.api_key = "-"

    with Receiver(tmp_path, service) as receiver, pytest.raises(TimeoutError, match=NOT_REACHED):
        receiver.wait_for_death(POINT, 0.1)
