"""Time limits: what takes too long gets its call, in whatever order the blocks began."""

import os
import threading
import time

import pytest

from arkloop.shared.time_limits import limited
from tests.waiting import eventually


def test_a_block_that_takes_too_long_gets_its_call_once() -> None:
    """The call comes while the block is being executed."""
    late = threading.Semaphore(0)

    with limited(0.02, late.release):
        assert late.acquire(timeout=10)

    assert not late.acquire(timeout=0.1)


def test_a_block_that_ends_in_time_gets_no_call() -> None:
    """Blocks that end or fail within their limit are no longer watched; another one still is."""
    late: list[str] = []

    with limited(30, lambda: late.append("long")):
        with limited(0.05, lambda: late.append("short")):
            pass
        with pytest.raises(ValueError), limited(0.05, lambda: late.append("failed")):
            raise ValueError
        time.sleep(0.2)

    assert [] == late


def test_a_shorter_limit_that_begins_later_ends_first() -> None:
    """The thread that waits for the end of a long limit looks again."""
    late: list[str] = []

    with limited(0.5, lambda: late.append("long")):
        time.sleep(0.05)
        with limited(0.05, lambda: late.append("short")):
            eventually(lambda: len(late) == 2)

    assert ["short", "long"] == late


def test_a_call_that_fails_prevents_no_other_one(caplog: pytest.LogCaptureFixture) -> None:
    """The failure is logged, and the other block that is late gets its call."""
    late = threading.Event()

    def fail() -> None:
        raise OSError("no such socket")

    with limited(0.02, fail), limited(0.04, late.set):
        assert late.wait(10)

    assert "no such socket" in caplog.text


@pytest.mark.processes
def test_a_forked_process_has_a_watch_of_its_own() -> None:
    """Its limits are watched although the thread of its parent is not there."""
    with limited(30, lambda: None):
        child = os.fork()
        if not child:
            late = threading.Event()
            with limited(0.02, late.set):
                os._exit(0 if late.wait(10) else 1)
        _, status = os.waitpid(child, 0)

    assert 0 == os.waitstatus_to_exitcode(status)
