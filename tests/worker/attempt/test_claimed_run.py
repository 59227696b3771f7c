"""Messages that people send to a run while an attempt of it is executed."""

import pytest

from arkloop.shared.files.configured_storage import storage_of
from arkloop.worker.attempt.claimed_run import ClaimedRun
from arkloop.worker.contract.messages import Steered
from arkloop.worker.contract.outcomes import TimeToLand
from arkloop.worker.contract.stop_signal import StopSignal
from arkloop.worker.process.file_loader import FileLoader
from arkloop.worker.process.history_loader import HistoryLoader
from arkloop.worker.process.route_limits import RouteLimits
from arkloop.worker.process.run_log import RunLog
from tests.shared.runs.busy_thread import BusyThread
from tests.stored_runs import StoredRuns


def test_a_message_that_comes_as_the_run_lands_is_read(stored: StoredRuns) -> None:
    """Its event is written before the run learns that it has to land: the last call has it."""
    thread, connections = BusyThread(stored), stored.connections
    claim = thread.claim(thread.say("a").run_id)
    thread.say("b", "steer")
    stop = StopSignal()
    log = RunLog(claim.run_id, claim.fence, claim.last_seq, stop, lambda _: None)
    files = FileLoader(
        connections, storage_of(connections.settings), HistoryLoader(connections).memory
    )
    run = ClaimedRun(connections, claim, log, stop, RouteLimits(connections), files)
    log.has_offered = stop.can_land = True
    stop.set(TimeToLand())
    steered: list[Steered] = []

    with pytest.raises(TimeToLand):
        run.take_messages(steered)

    assert ["b"] == [one.message.content for one in steered]
    assert [event.seq for event in log.withdraw()] == [one.seq for one in steered]
