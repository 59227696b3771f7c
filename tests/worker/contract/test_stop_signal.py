"""The stop signal: set from any thread, felt at once wherever the run is."""

import threading
import time
from typing import Any

import pytest

from arkloop.shared import logs
from arkloop.shared.errors import LeaseLost
from arkloop.worker.contract.outcomes import CancelRequested, DeadlineExceeded, TimeToLand
from arkloop.worker.contract.stop_signal import StopSignal
from tests.waiting import eventually


def test_nothing_happens_before_it_is_set() -> None:
    """Checking and waiting go through."""
    stop = StopSignal()

    stop.check()
    stop.wait(0)
    with stop.aborting(lambda: pytest.fail("not set")):
        pass

    assert not stop.lease_lost


def test_the_first_reason_wins() -> None:
    """A run that is being cancelled does not also run into its deadline."""
    stop = StopSignal()
    stop.set(CancelRequested())
    stop.set(DeadlineExceeded(1.0))

    with pytest.raises(CancelRequested):
        stop.check()


def test_a_run_that_has_landed_continues() -> None:
    """It is stopped once, by a reason that gives way to every other."""
    stop = StopSignal()
    stop.can_land = True
    stop.set(TimeToLand())

    with pytest.raises(TimeToLand):
        stop.check()
    stop.begin_landing()
    stop.check()
    stop.set(TimeToLand())
    stop.wait(0)
    stop.set(CancelRequested())
    stop.begin_landing()
    with pytest.raises(CancelRequested):
        stop.check()


@pytest.mark.parametrize(("can_land", "is_answering"), [(False, False), (True, True)])
def test_only_a_loop_that_is_not_answering_is_made_to_land(
    can_land: bool, is_answering: bool
) -> None:
    """What may be the answer is not interrupted, and every other reason comes first."""
    stop = StopSignal()
    stop.can_land, stop.is_answering = can_land, is_answering
    stop.set(TimeToLand())
    stop.check()

    stop.can_land, stop.is_answering = True, False
    stop.set(TimeToLand())
    stop.set(DeadlineExceeded(1.0))
    with pytest.raises(DeadlineExceeded):
        stop.check()


def test_a_lost_lease_comes_before_every_other_reason() -> None:
    """A worker that has lost its run must not write, not even that it was cancelled."""
    stop = StopSignal()
    stop.set(CancelRequested())
    stop.set(LeaseLost())
    stop.set(CancelRequested())

    assert stop.lease_lost
    with pytest.raises(LeaseLost):
        stop.check()


def test_who_waits_is_woken() -> None:
    """A waiting thread is woken at once, not when its time is over."""
    stop = StopSignal()
    threading.Timer(0.02, stop.set, [CancelRequested()]).start()
    began = time.monotonic()

    with pytest.raises(CancelRequested):
        stop.wait(60)

    assert time.monotonic() - began < 30


def test_a_block_is_aborted_and_fails_with_the_reason() -> None:
    """An error that the abort causes inside, such as a closed connection, turns into the reason."""
    stop = StopSignal()
    aborted = threading.Event()
    threading.Timer(0.02, stop.set, [CancelRequested()]).start()

    with pytest.raises(CancelRequested), stop.aborting(aborted.set):
        assert aborted.wait(60)
        raise ConnectionError


def test_blocks_side_by_side_are_all_aborted() -> None:
    """Calls of one turn: none is forgotten because another began after it, or has ended."""
    stop = StopSignal()
    aborted = [threading.Event(), threading.Event()]

    with pytest.raises(CancelRequested), stop.aborting(aborted[0].set):
        with stop.aborting(lambda: pytest.fail("it has ended")):
            pass
        with stop.aborting(aborted[1].set):
            stop.set(CancelRequested())

    assert all(event.is_set() for event in aborted)


def test_an_abort_that_raises_holds_up_no_other(caplog: pytest.LogCaptureFixture) -> None:
    """The thread that sets the signal continues, and the other aborts are called."""
    stop = StopSignal()
    aborted = threading.Event()

    def raises() -> None:
        raise RuntimeError("of a plugin")

    with pytest.raises(CancelRequested), stop.aborting(raises), stop.aborting(aborted.set):
        stop.set(CancelRequested())

    assert aborted.is_set()
    assert "RuntimeError: of a plugin" in caplog.text


def test_an_abort_that_may_block_holds_up_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """It has a thread of its own, and what it logs names its run."""
    stop = StopSignal()
    began, release, ended = (threading.Event() for _ in range(3))
    bound: list[Any] = []

    def blocks() -> None:
        began.set()
        release.wait(30)
        bound.append(logs.bound.get())
        ended.set()
        raise RuntimeError("of a plugin")

    logs.clear()
    logs.bind(run_id="the-run")
    with pytest.raises(CancelRequested), stop.aborting(blocks, may_block=True):
        logs.clear()
        stop.set(CancelRequested())
        assert began.wait(30)
        assert not ended.is_set()
    release.set()

    assert ended.wait(30)
    eventually(lambda: "RuntimeError: of a plugin" in caplog.text)
    assert [{"run_id": "the-run"}] == bound


def test_a_block_that_ends_by_itself_feels_the_signal_too() -> None:
    """An abort that only ends the stream early must not pass for a whole answer."""
    stop = StopSignal()

    with pytest.raises(CancelRequested), stop.aborting(lambda: None):
        stop.set(CancelRequested())


def test_a_block_is_not_begun_after_the_signal() -> None:
    """No new connection for a run that has to stop."""
    stop = StopSignal()
    stop.set(CancelRequested())

    with pytest.raises(CancelRequested), stop.aborting(lambda: None):
        pytest.fail("begun")


def test_a_failure_of_the_block_itself_stays_what_it_is() -> None:
    """Without a signal an error of the block stays what it is."""
    with pytest.raises(ConnectionError), StopSignal().aborting(lambda: None):
        raise ConnectionError


def test_after_the_block_nothing_is_aborted() -> None:
    """A connection that was given back is not closed under somebody else."""
    stop = StopSignal()
    with stop.aborting(lambda: pytest.fail("too late")):
        pass

    stop.set(CancelRequested())
