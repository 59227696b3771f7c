"""The clients of a noisy org take no time of the machine from what a benchmark measures."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from bench import noise

AUTOGROUP = Path("/proc/self/autogroup")
ROOT = Path(__file__).parents[2]
#: It ends without tidying up: on a busy machine it has hardly any time from there on.
CHILD = f"""
import os
from bench import noise
noise.give_way()
group = open("{AUTOGROUP}").read() if os.path.exists("{AUTOGROUP}") else "nice 19"
own = os.getsid(0) == os.getpid()
os.write(1, f"{{os.sched_getscheduler(0)}} {{own}} {{group.split()[-1]}}".encode())
os._exit(0)
"""


def test_a_noisy_client_gives_way_as_a_session_of_its_own() -> None:
    """The kernel shares time among sessions first: a policy alone would give way within one."""
    child = subprocess.run([sys.executable, "-c", CHILD], cwd=ROOT, capture_output=True, text=True)

    assert f"{os.SCHED_IDLE} True 19" == child.stdout, child.stderr


def test_noise_goes_on_after_a_lost_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server closes a connection whose client had no time; what is measured needs the noise."""
    monkeypatch.setattr(noise, "give_way", lambda: None)
    stop, begun = threading.Event(), 0

    def make(_stop: noise.Stop) -> None:
        nonlocal begun
        begun += 1
        if begun < 3:
            raise ConnectionError

    noise._nicely(make, stop)

    assert 3 == begun
