"""The loop of a background thread: its pace, its errors and its end."""

import logging
import threading

import pytest

from arkloop.shared.background_loop import BackgroundLoop
from arkloop.shared.errors import Unavailable
from tests.waiting import eventually


def test_a_step_that_fails_comes_again(caplog: pytest.LogCaptureFixture) -> None:
    """An outage is one line in the log, any other error has its traceback."""
    calls: list[int] = []

    def step() -> None:
        calls.append(len(calls))
        if len(calls) == 1:
            raise Unavailable() from ConnectionError("Postgres is gone")
        if len(calls) == 2:
            raise ZeroDivisionError

    with caplog.at_level(logging.WARNING):
        loop = BackgroundLoop("counting", step, seconds=0.01)
        eventually(lambda: len(calls) > 2)
        loop.stop()

    skipped, failed = caplog.records
    assert ("counting skipped: Postgres is gone", None) == (skipped.getMessage(), skipped.exc_info)
    assert "counting failed" == failed.getMessage()
    assert failed.exc_info is not None


def test_an_outage_is_not_logged_by_each_step(caplog: pytest.LogCaptureFixture) -> None:
    """A loop that fails again and again has one line, and one when it works again."""
    calls: list[int] = []

    def step() -> None:
        calls.append(len(calls))
        if len(calls) < 5:
            raise Unavailable() from ConnectionError("Postgres is gone")

    with caplog.at_level(logging.INFO):
        loop = BackgroundLoop("counting", step, seconds=0.01)
        eventually(lambda: len(calls) > 5)
        loop.stop()

    found = [record.getMessage() for record in caplog.records]
    skipped, over = (line for line in found if "counting" in line)
    assert "counting skipped: Postgres is gone" == skipped
    assert over.startswith("the background loop 'counting' works again after")


def test_a_step_that_fails_after_the_stop_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    """A process that ends closes connections under a step in progress: one line, no traceback."""
    ended = threading.Event()
    stopped = threading.Event()

    def step() -> None:
        stopped.set()
        raise OSError(9, "closed in another greenlet")

    with caplog.at_level(logging.INFO):
        BackgroundLoop("sweep", step, seconds=0, stopped=stopped, after=ended.set)
        assert ended.wait(60)

    [line] = caplog.records
    assert (logging.INFO, None) == (line.levelno, line.exc_info)
    assert "sweep stopped in the middle of a step: OSError" in line.getMessage()


def test_a_step_says_when_it_comes_next() -> None:
    """A step that left work behind is called again at once, others after the usual pause."""
    calls: list[int] = []

    def step() -> float | None:
        calls.append(len(calls))
        return 0 if len(calls) < 5 else None

    loop = BackgroundLoop("counting", step, seconds=60, first_seconds=0)

    eventually(lambda: len(calls) == 5)
    loop.stop()
    assert [0, 1, 2, 3, 4] == calls


def test_a_stopped_loop_cleans_up_in_its_thread() -> None:
    """What `before` has opened, `after` closes, also where no step was made."""
    done: list[str] = []
    stopped = threading.Event()
    stopped.set()

    def before(event: threading.Event) -> None:
        assert event is stopped
        done.append(f"before {threading.current_thread().name}")

    BackgroundLoop(
        "working",
        lambda: None,
        seconds=0,
        stopped=stopped,
        before=before,
        after=lambda: done.append(f"after {threading.current_thread().name}"),
    )

    eventually(lambda: done == ["before working", "after working"])
