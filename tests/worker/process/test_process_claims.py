"""Claims of a process for many threads at once."""

from collections.abc import Iterator
from dataclasses import replace
from uuid import UUID

import pytest
from sqlalchemy.exc import DataError

from arkloop.shared.catalog import model_routes
from arkloop.shared.claim import Claim
from arkloop.shared.config import Settings
from arkloop.worker.process.process import WorkerProcess
from tests.stored_runs import StoredRuns
from tests.waiting import eventually, in_parallel


@pytest.fixture
def process(settings: Settings) -> Iterator[WorkerProcess]:
    # What it has claimed and does not execute is not to be recovered by its next heartbeats.
    patient = replace(settings, heartbeat_seconds=60, lease_seconds=180, sweep_seconds=60)
    made = WorkerProcess(patient, model_routes.load(patient))
    made.lease.wait_until_valid(60)
    yield made
    made.close()


def test_a_run_that_cannot_resume_takes_no_new_one_along(
    process: WorkerProcess, stored: StoredRuns
) -> None:
    """Its claim is an error each time; those who claim new runs beside it get them, and know."""
    broken = stored.claimed().run_id
    stored.set(broken, state="queued", resume_reason="worker_lost", attempt=2**31 - 1)
    new = [stored.create() for _ in range(12)]

    def claim(number: int) -> Claim | None:
        with process.track(new[number // 2] if number % 2 else broken) as run:
            try:
                return process.claim(run)
            except DataError:
                assert broken == run.run_id
                return None

    claimed: list[UUID] = [one.run_id for one in in_parallel(24, claim) if one is not None]

    assert set(new) == set(claimed)
    eventually(lambda: "queued" == stored.state(broken))


def test_a_late_report_of_a_lost_claim_leaves_the_next_one_as_it_is(
    process: WorkerProcess, stored: StoredRuns
) -> None:
    """That one was abandoned in an outage of Postgres, too, which is no crash of its run."""
    lost = stored.claimed(process.worker_id)
    process.mark_outage(lost.run_id)
    process._recover(lost.run_id, lost.fence)
    again = stored.held(lost.run_id, process.worker_id)
    process.mark_outage(again.run_id)

    process._recover(lost.run_id, lost.fence)

    assert "executing" == stored.state(again.run_id)
    process._recover(again.run_id, again.fence)
    row = stored.row(again.run_id)
    assert ("queued", 0) == (row["state"], row["crashes"])
