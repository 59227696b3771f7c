"""A client of a stream, woken at any moment."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.processes

# With gevent's locks, as in a web process: they let other greenlets run where nobody expects it.
_WOKEN_MEANWHILE = """
from gevent import monkey; monkey.patch_all()
import gevent
from uuid import uuid4
from arkloop.api.streaming.watch import Watch

class Parked:
    resumed = 0
    def resume(self): self.resumed += 1

for wake in (Watch.end, Watch.interrupt, Watch.leave, Watch.wake):
    watch, parked = Watch(uuid4(), None), Parked()
    gevent.spawn(wake, watch)
    if watch.park(parked):
        gevent.sleep(0)
        print(parked.resumed)
    else:
        print("not parked")
"""


def test_a_stream_that_is_woken_while_it_is_parked_runs_again() -> None:
    """No wake-up is lost between the look at the watch and its parking."""
    done = subprocess.run(
        [sys.executable, "-c", _WOKEN_MEANWHILE], capture_output=True, text=True, check=True
    )

    assert ["1"] * 4 == done.stdout.split()
