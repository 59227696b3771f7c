"""Queued runs that no message brought are found in Postgres."""

from collections.abc import Iterator
from dataclasses import replace

import pytest

from arkloop.shared.catalog import model_routes
from arkloop.shared.config import Settings
from arkloop.shared.errors import Unavailable
from arkloop.worker import poller
from arkloop.worker.process import process as process_module
from arkloop.worker.process.process import WorkerProcess
from tests.clients import Register
from tests.stored_runs import StoredRuns, ago
from tests.waiting import eventually

pytestmark = pytest.mark.processes


@pytest.fixture
def process(settings: Settings) -> Iterator[WorkerProcess]:
    """A worker process that does nothing unasked, with room for three runs."""
    patient = replace(settings, worker_concurrency=3, sweep_seconds=3600, heartbeat_seconds=0.2)
    made = WorkerProcess(patient, model_routes.load(patient))
    assert made.lease.wait_until_valid(60)
    yield made
    made.close()


def test_a_run_without_a_message_is_executed(
    stored: StoredRuns, process: WorkerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A moment after it was queued; before that its message may still come."""
    monkeypatch.setattr(poller, "UNCLAIMED_SECONDS", 60.0)  # a test may take the usual one
    old, young = stored.create(queued_at=ago(seconds=90)), stored.create()

    assert 1 == poller.poll(process, 100)

    eventually(lambda: stored.state(old) == "completed")
    assert "queued" == stored.state(young)
    assert 0 == poller.poll(process, 100)
    stored.cancel(young)  # so that no other test's process finds it


def test_more_runs_than_there_is_room_for_are_taken_one_after_the_other(
    stored: StoredRuns, settings: Settings
) -> None:
    """Runs beyond the free slots start as slots get free, before the next sweep."""
    runs = [stored.create(queued_at=ago(seconds=5)) for _ in range(20)]
    narrow = replace(settings, worker_concurrency=3, sweep_seconds=0.5, heartbeat_seconds=0.2)
    process = WorkerProcess(narrow, model_routes.load(narrow))
    assert process.lease.wait_until_valid(60)

    poller.start(process)

    eventually(lambda: {"completed"} == {stored.state(run) for run in runs})
    process.close()


def test_polling_without_a_lease_is_a_failure(process: WorkerProcess) -> None:
    """An outage of Postgres is not over for the log because polling asks nothing in it."""
    process.lease.stop(10)
    process.lease._renewed_at = float("-inf")

    with pytest.raises(Unavailable):
        poller._step(process)


def test_a_long_queue_is_left_to_its_messages(
    stored: StoredRuns, process: WorkerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While they come, in order: only a run that they have passed by has lost its own."""
    monkeypatch.setattr(process_module, "DELIVERY_SECONDS", 60.0)  # for a busy machine
    passed_by = stored.create(queued_at=ago(seconds=9))
    delivered = stored.create(queued_at=ago(seconds=6))
    still_to_come = stored.create(queued_at=ago(seconds=3))
    process.mark_delivered(stored.row(delivered)["queued_at"])

    assert 1 == poller.poll(process, 100)
    eventually(lambda: stored.state(passed_by) == "completed")

    process._delivered_at -= 60.0  # and then no message comes any more
    assert 2 == poller.poll(process, 100)
    eventually(lambda: {"completed"} == {stored.state(r) for r in (delivered, still_to_come)})


def test_one_suspect_at_a_time_is_executed(stored: StoredRuns, process: WorkerProcess) -> None:
    """If it kills its worker, no other run loses its last try with it."""
    suspects = [stored.create(queued_at=ago(seconds=5), crashes=2) for _ in range(3)]
    with process.track(suspects[0]) as held:
        assert process.enter_quarantine(held)

        assert 0 == poller.poll(process, 100)

        process.leave_quarantine(held)
    while "queued" in [stored.state(run) for run in suspects]:
        poller.poll(process, 100)
        eventually(lambda: not process.active_runs())
    # The last one may have been claimed between the two questions.
    eventually(lambda: {"completed"} == {stored.state(run) for run in suspects})


def test_a_run_whose_call_waits_here_is_resumed_out_of_turn(
    stored: StoredRuns, process: WorkerProcess, register: Register
) -> None:
    """While the queue is long, a look at such a run starts no other one in its place."""
    others = StoredRuns.of(stored.connections, register())
    org_id = stored.actor.org_id
    run_id = stored.create()
    other = others.create(queued_at=ago(seconds=60))
    process.queue_is_long = True
    process._fair_queue._last_org_id, process._fair_queue._begun = org_id, 1  # its turn is over
    with process.mcp._using(org_id) as sidecar:
        process.mcp.held.add("token", sidecar, str(run_id))

        poller._look_at_held(process)
        eventually(lambda: stored.state(run_id) == "completed")

        process.mcp.held.remove("token")
    assert "queued" == others.state(other)
    others.cancel(other)
