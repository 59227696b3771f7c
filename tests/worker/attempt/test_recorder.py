"""The outcome of an attempt, as it is recorded."""

import logging
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from uuid import UUID

import pytest

from arkloop.shared.catalog import model_routes
from arkloop.shared.config import Settings
from arkloop.shared.errors import Unavailable
from arkloop.shared.events.event_log import data_of
from arkloop.shared.events.types import RunDelegated
from arkloop.shared.files.configured_storage import storage_of
from arkloop.shared.ids import new_id
from arkloop.shared.outage_log import OutageLog
from arkloop.shared.runs.endings import Ending, Outcome, RunEnder
from arkloop.worker.attempt import claimed_run, execution
from arkloop.worker.attempt.claimed_run import ClaimedRun
from arkloop.worker.attempt.outcome import Cancelled
from arkloop.worker.attempt.recorder import Recorder
from arkloop.worker.contract.stop_signal import StopSignal
from arkloop.worker.process.file_loader import FileLoader
from arkloop.worker.process.history_loader import HistoryLoader
from arkloop.worker.process.process import WorkerProcess
from arkloop.worker.process.route_limits import RouteLimits
from arkloop.worker.process.run_log import RunLog
from tests.query_plans import noted
from tests.stored_runs import StoredRuns
from tests.waiting import eventually
from tests.worker.attempt.executed_runs import said_by, scripted

_READS_CAUSE = "SELECT cancel_requested_by, superseded_by"


@pytest.fixture
def process(settings: Settings) -> Iterator[WorkerProcess]:
    """A worker process that does nothing unasked."""
    patient = replace(settings, sweep_seconds=3600, heartbeat_seconds=3600)
    made = WorkerProcess(patient, model_routes.load(patient))
    assert made.lease.wait_until_valid(60)
    yield made
    made.close()


def cancelled_by(
    stored: StoredRuns, process: WorkerProcess, cancel: Callable[[UUID], object]
) -> tuple[UUID, list[str]]:
    """Execute a run until `cancel` has stopped it; return its id and what was sent meanwhile that
    is about runs: other loops of the process ask for endpoints of webhooks.
    """
    run_id = scripted(stored, {"say": "one "}, {"hang": 60})
    attempt = threading.Thread(target=execution.execute, args=(process, run_id))
    attempt.start()
    eventually(lambda: said_by(stored, run_id) != "")
    with noted(process.connections) as statements:
        cancel(run_id)
        attempt.join(60)
    assert "cancelled" == stored.state(run_id)
    return run_id, [sql for sql, _ in statements if re.search(r"\bruns\b", sql)]


def test_a_plain_cancel_ends_the_run_in_one_statement(
    stored: StoredRuns, process: WorkerProcess
) -> None:
    """The signal has the user, and there is nothing else to read."""
    run_id, sent = cancelled_by(stored, process, stored.cancel)

    assert 1 == len(sent)
    requested = next(e for e in stored.events(run_id) if e.type == "run.cancel_requested")
    assert {"by_user_id": str(stored.actor.user_id)} == data_of(requested.payload)


def test_a_cancel_with_a_cause_names_it(stored: StoredRuns, process: WorkerProcess) -> None:
    """What takes the run's place is read from its row, also when it is cancelled once more."""
    successor = new_id()

    def supersede(run_id: UUID) -> None:
        stored.set(run_id, superseded_by=successor)
        stored.cancel(run_id)

    run_id, sent = cancelled_by(stored, process, supersede)

    assert any(_READS_CAUSE in sql for sql in sent)
    assert str(successor) == data_of(stored.events(run_id)[-1].payload)["superseded_by"]


@pytest.fixture
def claimed(stored: StoredRuns) -> ClaimedRun:
    """A run that is claimed by nobody who executes it."""
    claim, connections, stop = stored.claimed(), stored.connections, StopSignal()
    log = RunLog(claim.run_id, claim.fence, claim.last_seq, stop, lambda _: None)
    storage = storage_of(connections.settings)
    files = FileLoader(connections, storage, HistoryLoader(connections).memory)
    return ClaimedRun(connections, claim, log, stop, RouteLimits(connections), files)


def test_an_abandoned_call_writes_nothing_behind_the_end(
    stored: StoredRuns, claimed: ClaimedRun
) -> None:
    """What it announces while the end waits for Postgres would be stored before that."""
    ender = RunEnder(stored.connections)

    def end_late(ending: Ending) -> Outcome:
        claimed.emit(RunDelegated("call_1", str(new_id()), str(new_id()), "assistant@1"))
        return ender(ending)

    recorder = Recorder(stored.connections, claimed, end_late)
    assert recorder.record(Cancelled(stored.actor.user_id))

    assert [] == claimed.log.withdraw()
    assert "run.cancelled" == stored.types(claimed.claim.run_id)[-1]


def test_an_end_that_is_written_at_last_ends_the_outage(
    stored: StoredRuns,
    claimed: ClaimedRun,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The end is the last write of a run: the log has a line for the outage, and one after it."""
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(claimed_run, "_writes", OutageLog(claimed_run.log, "writing runs' states"))
    ender, outages = RunEnder(stored.connections), [Unavailable(), Unavailable()]

    def end(ending: Ending) -> Outcome:
        if outages:
            raise outages.pop()
        return ender(ending)

    assert Recorder(stored.connections, claimed, end).record(Cancelled(stored.actor.user_id))

    lines = [one.getMessage() for one in caplog.records if one.name == claimed_run.log.name]
    assert 2 == len(lines), lines
    assert lines[0].startswith("retrying to write the run's state: ")
    assert lines[1].startswith("writing runs' states works again after ")
