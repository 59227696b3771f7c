"""The worker process in which the tests of attempts execute runs."""

from collections.abc import Iterator
from dataclasses import replace

import pytest

from arkloop.shared.catalog import model_routes
from arkloop.shared.config import Settings
from arkloop.worker.process.process import WorkerProcess


@pytest.fixture
def process(settings: Settings) -> Iterator[WorkerProcess]:
    """A worker process that does nothing unasked."""
    patient = replace(settings, sweep_seconds=3600, heartbeat_seconds=0.2)
    made = WorkerProcess(patient, model_routes.load(patient))
    assert made.lease.wait_until_valid(10)
    yield made
    made.close()
