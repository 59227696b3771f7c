"""Runs of any org, as an operator moves them: the lease decides."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from uuid import UUID

import pytest
from sqlalchemy import func, text, update

from arkloop.shared.errors import LeaseLost, RunNotFound
from arkloop.shared.ids import new_id
from arkloop.shared.runs import operated_runs
from arkloop.shared.runs.operated_runs import Outcome, Requeued
from arkloop.shared.runs.states import RunState
from arkloop.shared.storage.tables.runs import runs
from arkloop.shared.storage.tables.threads import threads
from tests.stored_runs import StoredRuns, ago
from tests.waiting import eventually, in_parallel


def requeue(stored: StoredRuns, run_id: UUID) -> Requeued:
    stored.sent.clear()
    with stored.connections.transaction() as tx:
        return operated_runs.requeue(tx, run_id)


def test_a_held_run_is_left_to_its_worker(stored: StoredRuns) -> None:
    """Its worker writes as before, and no message says that it is queued."""
    claim = stored.claimed()
    fence = stored.row(claim.run_id)["fence"]

    done = requeue(stored, claim.run_id)

    assert (Outcome.HELD, RunState.EXECUTING) == (done.outcome, done.was)
    assert done.lease_expires_at is not None
    assert ([], fence) == (stored.sent, stored.row(claim.run_id)["fence"])
    assert stored.finish(claim)


def test_a_run_that_is_claimed_meanwhile_is_left_to_its_worker(stored: StoredRuns) -> None:
    """The run is queued when it is looked for, and its worker has it when its row is free."""
    run_id, worker_id = stored.create(), stored.worker()
    claim = {"state": RunState.EXECUTING, "owner": worker_id, "fence": 1, "attempt": 1}
    blocked = text("SELECT count(*) FROM pg_stat_activity WHERE :pid = ANY(pg_blocking_pids(pid))")

    def is_waiting() -> bool:
        with stored.connections.reading() as sql:
            return bool(sql.scalar(blocked, {"pid": holder}))

    with ThreadPoolExecutor(1) as threads:
        with stored.connections.transaction() as tx:
            holder = tx.sql.scalar(text("SELECT pg_backend_pid()"))
            tx.sql.execute(update(runs).where(runs.c.id == run_id).values(claim))
            done = threads.submit(requeue, stored, run_id)
            eventually(is_waiting)

    assert (Outcome.HELD, RunState.EXECUTING) == (done.result().outcome, done.result().was)
    assert ("executing", 1) == (stored.state(run_id), stored.row(run_id)["fence"])


def test_a_run_of_a_worker_without_a_lease_is_taken_once(stored: StoredRuns) -> None:
    """Two operators at once queue it once; its former worker writes nothing any more."""
    lease = stored.connections.settings.lease_seconds
    claim = stored.claimed(seen_at=ago(seconds=lease + 1))

    done = in_parallel(2, lambda _: requeue(stored, claim.run_id))

    assert [Outcome.QUEUED] * 2 == [one.outcome for one in done]
    assert {RunState.EXECUTING, RunState.QUEUED} == {one.was for one in done}
    row = stored.row(claim.run_id)
    assert ("queued", claim.fence + 1, 0) == (row["state"], row["fence"], row["crashes"])
    with pytest.raises(LeaseLost):
        stored.finish(claim)
    assert stored.claim(claim.run_id) is not None


def test_a_queued_run_is_announced_again(stored: StoredRuns) -> None:
    """Nothing but a message comes of it, however often."""
    run_id = stored.create()
    before = dict(stored.row(run_id))

    assert Outcome.QUEUED == requeue(stored, run_id).outcome
    assert [run_id] == stored.sent
    assert before == dict(stored.row(run_id))


def test_a_run_that_waits_for_a_person_goes_on_waiting(stored: StoredRuns) -> None:
    """Nothing is answered in somebody's place."""
    claim = stored.claimed()
    assert stored.park(claim, new_id())

    assert Outcome.WAITING == requeue(stored, claim.run_id).outcome
    assert ("waiting", []) == (stored.state(claim.run_id), stored.sent)


def test_a_run_that_has_ended_stays_as_it_is(stored: StoredRuns) -> None:
    """It is not started anew: a retry of its thread does that."""
    claim = stored.claimed()
    stored.finish(claim)

    assert Outcome.ENDED == requeue(stored, claim.run_id).outcome
    assert "completed" == stored.state(claim.run_id)


def test_a_cancel_that_nobody_carries_out_is_carried_out(stored: StoredRuns) -> None:
    """A queued run that is to be cancelled ends, and so does one of a lost worker."""
    queued, lost = stored.create(), stored.claimed(seen_at=ago(seconds=3600)).run_id
    for run_id in (queued, lost):
        stored.set(run_id, cancel_requested_at=ago(seconds=60), cancel_requested_by=new_id())

    outcomes = [requeue(stored, run_id).outcome for run_id in (queued, lost)]

    assert [Outcome.ENDED] * 2 == outcomes
    assert ["cancelled"] * 2 == [stored.state(run_id) for run_id in (queued, lost)]


def test_a_cancel_names_the_operator(stored: StoredRuns) -> None:
    """A worker may hold the run or not; a second cancel finds nothing to do."""
    by = new_id()
    queued = stored.create()
    with stored.connections.transaction() as tx:
        first = operated_runs.cancel(tx, queued, by)
    with stored.connections.transaction() as tx:
        second = operated_runs.cancel(tx, queued, by)

    assert [(stored.actor.org_id, True), (stored.actor.org_id, False)] == [first, second]
    assert ("cancelled", by) == (stored.state(queued), stored.row(queued)["cancel_requested_by"])


def test_a_run_of_a_deleted_thread_is_cancelled(stored: StoredRuns) -> None:
    """Nobody else can do that: the org does not see the thread any more."""
    run_id = stored.create()
    gone = update(threads).where(threads.c.id == stored.row(run_id)["thread_id"])
    with stored.connections.transaction() as tx:
        tx.sql.execute(gone.values(deleted_at=func.now()))

    with stored.connections.transaction() as tx:
        assert (stored.actor.org_id, True) == operated_runs.cancel(tx, run_id)

    assert "cancelled" == stored.state(run_id)


def test_a_run_that_does_not_exist_is_not_found(stored: StoredRuns) -> None:
    """Each of the actions raises the same error."""
    with stored.connections.transaction() as tx, pytest.raises(RunNotFound):
        operated_runs.requeue(tx, new_id())
    with stored.connections.transaction() as tx, pytest.raises(RunNotFound):
        operated_runs.cancel(tx, new_id())


def test_the_lease_is_that_of_the_settings(stored: StoredRuns) -> None:
    """A longer one holds what a shorter one has lost."""
    claim = stored.claimed(seen_at=ago(seconds=20))
    settings = replace(stored.connections.settings, lease_seconds=60)
    patient = replace(stored, connections=replace(stored.connections, settings=settings))

    assert Outcome.HELD == requeue(patient, claim.run_id).outcome
    assert Outcome.QUEUED == requeue(stored, claim.run_id).outcome
