"""A client of a stream, woken at any moment."""

import subprocess
import sys
from uuid import uuid4

import pytest

from arkloop.api.http.parking import MOST_PARKED, ParkedConnection
from arkloop.api.streaming.watch import IDLE_SECONDS, Watch
from arkloop.shared.actors import Actor

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

_GIVEN_AS_TIME_RUNS_OUT = """
from gevent import monkey; monkey.patch_all()
import gevent
from uuid import uuid4
from arkloop.api.streaming.stream_pages import Page
from arkloop.api.streaming.watch import Watch

watch, page = Watch(uuid4(), None), Page(b"data: a", 1, 1, False)
gevent.spawn_later(0.01, monkey.get_original("time", "sleep"), 0.1)  # until both are overdue
gevent.spawn_later(0.04, watch.give, page)
print(watch.wait(0.05) is page, gevent.with_timeout(0.05, watch.wait, timeout_value="waits"))
"""


def test_a_stream_that_is_woken_while_it_is_parked_runs_again() -> None:
    """No wake-up is lost between the look at the watch and its parking."""
    done = subprocess.run(
        [sys.executable, "-c", _WOKEN_MEANWHILE], capture_output=True, text=True, check=True
    )

    assert ["1"] * 4 == done.stdout.split()


def test_a_page_given_as_the_time_runs_out_wakes_once() -> None:
    """The next wait would end at once, and a ping follow the page."""
    done = subprocess.run(
        [sys.executable, "-c", _GIVEN_AS_TIME_RUNS_OUT], capture_output=True, text=True, check=True
    )

    assert ["True", "waits"] == done.stdout.split()


@pytest.mark.parametrize(("parked", "is_idle"), [(MOST_PARKED - 1, True), (MOST_PARKED, False)])
def test_the_parked_streams_of_a_process_are_limited(
    monkeypatch: pytest.MonkeyPatch, parked: int, is_idle: bool
) -> None:
    """Beyond them an idle stream keeps its greenlet, which gunicorn counts."""
    monkeypatch.setattr(ParkedConnection, "count", parked)
    reader = Actor(org_id=uuid4(), user_id=uuid4(), role="owner", permissions=frozenset())
    watch = Watch(uuid4(), reader, can_park=True)
    watch.waits = True
    watch.wrote_at -= IDLE_SECONDS

    watch.rest(ping_seconds=60)

    assert is_idle == watch.is_idle
