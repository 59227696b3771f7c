"""The CPU seconds that `--cpu` prints."""

import subprocess
import sys

import psutil
import pytest

from tests.cpu_of_files import seconds_of

pytestmark = pytest.mark.processes


def test_processes_that_have_ended_count() -> None:
    """What a command took is in the sum, while it runs and afterwards."""
    me = psutil.Process()
    before = seconds_of(me)
    busy = "import time\nwhile time.process_time() < 0.3: pass\nprint(flush=True)\ninput()"

    with subprocess.Popen(
        [sys.executable, "-c", busy], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        running = seconds_of(me)
        process.communicate(b"\n")

    assert running - before >= 0.25
    assert seconds_of(me) - before >= 0.25
