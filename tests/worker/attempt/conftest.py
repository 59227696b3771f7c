"""The worker process in which the tests of attempts execute runs, and one run that it claims."""

from collections.abc import Iterator
from dataclasses import replace

import pytest

from arkloop.shared.catalog import model_routes
from arkloop.shared.config import Settings
from arkloop.shared.files.configured_storage import storage_of
from arkloop.worker.attempt.claimed_run import ClaimedRun
from arkloop.worker.contract.stop_signal import StopSignal
from arkloop.worker.process.file_loader import FileLoader
from arkloop.worker.process.history_loader import HistoryLoader
from arkloop.worker.process.process import WorkerProcess
from arkloop.worker.process.route_limits import RouteLimits
from arkloop.worker.process.run_log import RunLog
from tests.stored_runs import StoredRuns


@pytest.fixture
def process(settings: Settings) -> Iterator[WorkerProcess]:
    """A worker process that does nothing unasked."""
    patient = replace(settings, sweep_seconds=3600, heartbeat_seconds=0.2)
    made = WorkerProcess(patient, model_routes.load(patient))
    assert made.lease.wait_until_valid(60)
    yield made
    made.close()


@pytest.fixture
def attempt(stored: StoredRuns) -> ClaimedRun:
    claim, connections, stop = stored.claimed(), stored.connections, StopSignal()
    log = RunLog(claim.run_id, claim.fence, claim.last_seq, stop, lambda _: None)
    files = FileLoader(
        connections, storage_of(connections.settings), HistoryLoader(connections).memory
    )
    return ClaimedRun(connections, claim, log, stop, RouteLimits(connections), files)
