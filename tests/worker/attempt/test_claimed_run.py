"""An attempt of a run: messages that people send to it, and how it is stopped."""

import threading
import time

import pytest

from arkloop.shared.events.event_log import data_of
from arkloop.shared.files.configured_storage import storage_of
from arkloop.worker.attempt.claimed_run import ClaimedRun
from arkloop.worker.contract.messages import Steered
from arkloop.worker.contract.outcomes import CancelRequested, TimeToLand
from arkloop.worker.contract.stop_signal import StopSignal
from arkloop.worker.process.file_loader import FileLoader
from arkloop.worker.process.history_loader import HistoryLoader
from arkloop.worker.process.route_limits import RouteLimits
from arkloop.worker.process.run_log import RunLog
from tests.shared.runs.busy_thread import BusyThread
from tests.stored_runs import StoredRuns


@pytest.fixture
def thread(stored: StoredRuns) -> BusyThread:
    return BusyThread(stored)


@pytest.fixture
def claimed(thread: BusyThread) -> ClaimedRun:
    """A run of a thread, with a second message that is sent to it after its claim."""
    connections = thread.stored.connections
    claim = thread.claim(thread.say("a").run_id)
    thread.say("b", "steer")
    stop = StopSignal()
    log = RunLog(claim.run_id, claim.fence, claim.last_seq, stop, lambda _: None)
    files = FileLoader(
        connections, storage_of(connections.settings), HistoryLoader(connections).memory
    )
    return ClaimedRun(connections, claim, log, stop, RouteLimits(connections), files)


def test_a_message_that_comes_as_the_run_lands_is_read(claimed: ClaimedRun) -> None:
    """Its event is written before the run learns that it has to land: the last call has it."""
    claimed.log.has_offered = claimed.stop.can_land = True
    claimed.stop.set(TimeToLand())
    steered: list[Steered] = []

    with pytest.raises(TimeToLand):
        claimed.take_messages(steered)

    assert ["b"] == [one.message.content for one in steered]
    assert [event.seq for event in claimed.log.withdraw()] == [one.seq for one in steered]


def test_a_message_that_the_last_call_does_not_have_is_left(
    claimed: ClaimedRun, thread: BusyThread
) -> None:
    """It has arrived while the model was about to reply, and becomes a run of its own."""
    claimed.log.has_offered = claimed.stop.can_land = True
    read = {event.message_id for event in claimed.offered_messages([])}
    thread.say("c", "steer")
    claimed.stop.set(TimeToLand())
    steered: list[Steered] = []

    with pytest.raises(TimeToLand):
        claimed.take_messages(steered, read)

    assert ["b"] == [one.message.content for one in steered]
    assert 1 == len(claimed.log.withdraw())


def test_a_message_that_is_taken_within_a_turn_does_not_end_it(claimed: ClaimedRun) -> None:
    """The last call takes it before its first text, but behind the reasoning."""
    first = claimed.claim.last_seq + 1
    claimed.log.has_offered = claimed.stop.can_land = True
    claimed.stream_thinking("Hm")
    claimed.stop.set(TimeToLand())
    with pytest.raises(TimeToLand):
        claimed.take_messages([])
    claimed.stream_text("En français")

    claimed.void_text("timeout")

    *_, taken, voided = claimed.log.withdraw()
    assert ("run.steered", "message.reset") == (taken.type, voided.type)
    assert first == data_of(voided.payload)["from_seq"]


def test_a_wait_ends_no_turn(claimed: ClaimedRun) -> None:
    """A custom agent waits for money, or for the memory of a file, after it has said something."""
    first = claimed.claim.last_seq + 1
    claimed.stream_text("Part one. ")
    claimed.wait_for_memory(0.01)
    claimed.stream_text("Part two.")
    said = claimed.open_text

    claimed.void_text("resumed")

    assert "Part one. Part two." == said
    *_, throttled, voided = claimed.log.withdraw()
    assert ("run.throttled", "message.reset") == (throttled.type, voided.type)
    assert first == data_of(voided.payload)["from_seq"]


def test_an_abort_of_a_tool_that_blocks_does_not_hold_up_whatever_stops_the_run(
    claimed: ClaimedRun,
) -> None:
    """The thread of the heartbeat, for example: it would lose all runs of the process."""
    began, release = threading.Event(), threading.Event()

    def blocks() -> None:
        began.set()
        release.wait(30)

    with pytest.raises(CancelRequested), claimed.aborting(blocks):
        before = time.monotonic()
        claimed.stop.set(CancelRequested())
        seconds = time.monotonic() - before
        assert began.wait(30)
    release.set()

    assert seconds < 20
