"""The sweep: rows that are already old, one pass, what they are then."""

import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import func, select, text

from arkloop.shared import metrics
from arkloop.shared.errors import LeaseLost
from arkloop.shared.events.types import (
    MessageCompleted,
    MessageDelta,
    RunCost,
    RunWaitingForInput,
    ToolResult,
)
from arkloop.shared.events.usage import Usage
from arkloop.shared.ids import new_id
from arkloop.shared.runs import recovery, sweep
from arkloop.shared.runs.states import RunState
from arkloop.shared.storage.tables.runs import inputs
from tests.shared.runs.swept_runs import (
    SILENT,
    connections,
    lost,
    nothing_left_over,
    postgres_is_up_for_longer_than_a_lease,
    with_lease,
    witness,
)
from tests.stored_runs import StoredRuns, ago
from tests.waiting import eventually

__all__ = [
    "connections",
    "nothing_left_over",
    "postgres_is_up_for_longer_than_a_lease",
    "witness",
]  # fixtures


@pytest.fixture
def recovered() -> Iterator[list[float]]:
    """The metric of runs that were taken from lost workers, as its one cell."""
    cell = [0.0]
    metrics.RUNS_RECOVERED.enable(lambda *_series: (cell, 0), threading.Lock())
    yield cell
    metrics.RUNS_RECOVERED.disable()


@pytest.mark.usefixtures("witness")
def test_a_run_of_a_silent_worker_is_queued_again(stored: StoredRuns) -> None:
    """The workers are notified; the next claim says that a worker was lost."""
    claim = lost(stored)

    sweep.sweep(stored.connections)

    assert ("queued", 1) == (stored.state(claim.run_id), stored.row(claim.run_id)["crashes"])
    assert [claim.run_id] == stored.sent
    again = stored.held(claim.run_id)
    assert again.fence > claim.fence + 1
    assert '"data":{"attempt":2,"reason":"worker_lost"}' in stored.events(claim.run_id)[-1].payload


@pytest.mark.usefixtures("witness")
def test_a_silent_worker_that_comes_back_writes_nothing(stored: StoredRuns) -> None:
    """Its fence is no longer the row's, whether or not somebody has claimed the run."""
    claim = lost(stored)
    sweep.sweep(stored.connections)

    with pytest.raises(LeaseLost):
        stored.finish(claim)

    assert ["run.started"] == stored.types(claim.run_id)


def test_a_run_of_a_worker_that_nobody_knows_is_lost(stored: StoredRuns) -> None:
    """A run whose worker's row is gone is lost."""
    worker_id = stored.worker()
    claim = stored.claimed(worker_id)
    with stored.connections.transaction() as tx:
        tx.sql.execute(text("DELETE FROM workers WHERE id = :id"), {"id": worker_id})

    sweep.sweep(stored.connections)

    assert "queued" == stored.state(claim.run_id)


def test_a_living_workers_run_is_left_alone(stored: StoredRuns) -> None:
    """It was seen within a lease and a heartbeat."""
    claim = stored.claimed(seen_at=ago(seconds=1))
    before = stored.row(claim.run_id)

    sweep.sweep(stored.connections)

    assert before == stored.row(claim.run_id)


@pytest.mark.usefixtures("witness")
@pytest.mark.parametrize("lock_key", [1, 2**33 + 7, 2**62 - 1])
@pytest.mark.parametrize("is_locked", [True, False])
def test_a_worker_whose_lock_is_gone_is_lost_soon(
    stored: StoredRuns, lock_key: int, is_locked: bool
) -> None:
    """The kernel freed it: a missed heartbeat is enough then, long before the lease is over."""
    claim = stored.claimed(stored.worker(lock_key=lock_key), seen_at=ago(seconds=1))
    with stored.connections.engine.connect() as session:
        if is_locked:
            session.execute(select(func.pg_advisory_lock(lock_key)))

        sweep.sweep(with_lease(stored, lease=14, heartbeat=0.2))

        assert ("executing" if is_locked else "queued") == stored.state(claim.run_id)
        session.execute(select(func.pg_advisory_unlock_all()))


@pytest.mark.usefixtures("witness")
def test_a_worker_that_cannot_hold_a_lock_keeps_its_lease(stored: StoredRuns) -> None:
    """Behind a pooler a missed heartbeat is no sign of death; only the end of the lease is."""
    claim = stored.claimed(stored.worker(lock_key=sweep.NO_LOCK), seen_at=ago(seconds=1))

    sweep.sweep(with_lease(stored, lease=14, heartbeat=0.2))
    kept = stored.state(claim.run_id)
    sweep.sweep(with_lease(stored, lease=0.5, heartbeat=0.2))

    assert ("executing", "queued") == (kept, stored.state(claim.run_id))


@pytest.mark.usefixtures("witness")
def test_after_a_restart_of_postgres_nobody_is_lost(stored: StoredRuns) -> None:
    """All locks are gone then, and say nothing for the length of a lease."""
    claim = stored.claimed(seen_at=ago(seconds=60))

    # This server has been up for less than such a lease.
    sweep.sweep(with_lease(stored, lease=86_400, heartbeat=2))

    assert "executing" == stored.state(claim.run_id)


@pytest.mark.usefixtures("witness")
def test_the_third_crash_within_a_step_ends_the_run(
    stored: StoredRuns, caplog: pytest.LogCaptureFixture
) -> None:
    """`worker.crashed`, not worth another try; text and usage so far are kept."""
    claim = lost(stored, crashes=2)
    usage = Usage(input_tokens=7)
    stored.write(claim, RunCost(usage, 0), MessageDelta("a "), MessageDelta("part"))

    sweep.sweep(stored.connections)

    row = stored.row(claim.run_id)
    assert ("failed", "worker.crashed", False) == tuple(
        row[name] for name in ("state", "error_code", "error_retryable")
    )
    assert 7 < row["input_tokens"], "and the call that was lost"
    [line] = [record for record in caplog.records if "run failed" in record.getMessage()]
    assert (str(claim.run_id), "worker.crashed") == (line.run_id, line.error_code)
    assert "run.failed" == stored.types(claim.run_id)[-1]
    assert [("a part", True)] == stored.messages(claim.run_id)
    assert [] == stored.sent


@pytest.mark.usefixtures("witness")
@pytest.mark.parametrize(
    "progress", [MessageCompleted("m", "a", Usage()), ToolResult("c", "t", "o", False, 1)]
)
def test_a_finished_step_lets_the_crashes_count_anew(stored: StoredRuns, progress: Any) -> None:
    """A step finished by this claim resets the crashes; one finished before it does not."""
    claim = lost(stored, crashes=2)
    stored.write(claim, progress)
    sweep.sweep(stored.connections)
    assert ("queued", 1) == (stored.state(claim.run_id), stored.row(claim.run_id)["crashes"])

    for crashes in (2, 3):
        again = stored.worker()
        assert stored.claim(claim.run_id, again) is not None
        stored.set_worker(again, seen_at=SILENT)
        sweep.sweep(stored.connections)
        assert crashes == (stored.row(claim.run_id)["crashes"] if crashes < 3 else 3)
    assert "failed" == stored.state(claim.run_id)


def test_a_lost_run_that_was_being_cancelled_is_cancelled(stored: StoredRuns) -> None:
    """The cancelled run keeps its partial text without void text, with no worker alive."""
    claim = lost(stored)
    stored.write(claim, MessageDelta("a part"))
    stored.cancel(claim.run_id)

    sweep.sweep(stored.connections)

    assert "cancelled" == stored.state(claim.run_id)
    assert ["message.delta", "run.cost", "run.cancelled"] == stored.types(claim.run_id)[1:]
    assert [("a part", True)] == stored.messages(claim.run_id)


def test_a_queued_run_that_was_being_cancelled_is_cancelled(stored: StoredRuns) -> None:
    """It went back to the queue at the moment of the cancel."""
    run_id = stored.create(cancel_requested_at=func.now(), cancel_requested_by=stored.actor.user_id)

    sweep.sweep(stored.connections)

    assert ("cancelled", ["run.cancelled"]) == (stored.state(run_id), stored.types(run_id))


def test_an_unanswered_question_ends_the_run(stored: StoredRuns) -> None:
    """`input.expired`, when its time is over and not before."""
    expired, patient, answered = stored.claimed(), stored.claimed(), stored.claimed()
    for claim in (expired, patient, answered):
        stored.park(claim, new_id(), expires_in=60)
    stored.answer(answered.run_id, "just in time")
    for claim in (expired, answered):
        stored.set(claim.run_id, input_expires_at=ago(seconds=1))

    sweep.sweep(stored.connections)

    assert ["failed", "waiting", "queued"] == [
        stored.state(claim.run_id) for claim in (expired, patient, answered)
    ]
    row = stored.row(expired.run_id)
    assert ("input.expired", None) == (row["error_code"], row["pending_input"])
    assert [RunWaitingForInput.type, "run.failed"] == stored.types(expired.run_id)[1:]


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        ("question", "No answer was given in time."),
        ("tool_confirmation", '{"decision": "deny", "reason": "No answer was given in time."}'),
    ],
)
def test_an_unanswered_question_lets_a_run_go_on_that_wants_to(
    stored: StoredRuns, kind: str, content: str
) -> None:
    """The run gets an answer that nobody gave, which its worker reads as any other."""
    claim = stored.claimed()
    stored.park(claim, request_id := new_id())
    pending = {"request_id": str(request_id), "kind": kind, "on_expiry": "continue"}
    stored.set(claim.run_id, pending_input=pending, input_expires_at=ago(seconds=1))
    stored.sent.clear()

    sweep.sweep(stored.connections)

    row = stored.row(claim.run_id)
    assert ("queued", "input", None, None) == tuple(
        row[name] for name in ("state", "resume_reason", "pending_input", "input_expires_at")
    )
    assert [claim.run_id] == stored.sent
    with stored.connections.reading() as sql:
        answered = sql.execute(select(inputs).where(inputs.c.run_id == claim.run_id)).one()
    assert (None, content) == (answered.created_by_user_id, answered.content)
    assert stored.claim(claim.run_id) is not None
    received = json.loads(stored.events(claim.run_id)[-1].payload)["data"]
    assert {"request_id": str(request_id), "content": content} == received


@pytest.mark.parametrize(("is_crash", "crashes"), [(True, 2), (False, 1)])
def test_a_run_that_no_thread_holds_is_taken_from_its_living_owner(
    stored: StoredRuns, is_crash: bool, crashes: int
) -> None:
    """A run is taken from a living owner only if that owner reports it, for the claim that it has
    lost and no later one, and only while it executes.
    """
    owner = stored.worker()
    claim = stored.claimed(owner)
    stored.set(claim.run_id, crashes=1)
    for reported in ((new_id(), claim.fence), (owner, claim.fence - 1)):
        recovery.recover_orphan(stored.connections, claim.run_id, *reported, is_crash)
        assert "executing" == stored.state(claim.run_id)

    recovery.recover_orphan(stored.connections, claim.run_id, owner, claim.fence, is_crash)

    row = stored.row(claim.run_id)
    assert (RunState.QUEUED, crashes) == (row["state"], row["crashes"])


@pytest.mark.usefixtures("witness")
def test_a_run_counts_as_recovered_if_its_worker_was_lost(
    stored: StoredRuns, recovered: list[float]
) -> None:
    """A living worker takes runs back after an outage; a run that could not be taken is none."""
    owner = stored.worker()
    claim = stored.claimed(owner)
    recovery.recover_orphan(stored.connections, claim.run_id, owner, claim.fence, False)
    broken = lost(stored, crashes=2)
    with stored.connections.transaction() as tx:
        # Its terminal event has no place: the number is beyond what the column holds.
        tx.sql.execute(
            text("INSERT INTO run_events VALUES (:id, 9223372036854775807, 'message.delta', '{}')"),
            {"id": broken.run_id},
        )
    sweep.sweep(stored.connections)
    assert "executing" == stored.state(broken.run_id)

    taken = lost(stored)
    sweep.sweep(stored.connections)

    assert "queued" == stored.state(taken.run_id)
    eventually(lambda: recovered == [1])


@pytest.mark.usefixtures("witness")
def test_runs_of_agent_workers_do_not_count_as_recovered(
    stored: StoredRuns, recovered: list[float]
) -> None:
    """A customer's process that is killed does not page the operator; its runs are recovered."""
    claims = lost(stored, agent="mine"), lost(stored)

    sweep.sweep(stored.connections)

    assert ["queued", "queued"] == [stored.state(claim.run_id) for claim in claims]
    assert [1] == recovered


def test_a_cancel_waits_for_no_worker(stored: StoredRuns) -> None:
    """The run of a lost owner is cancelled though nobody is there to take it over."""
    claim = stored.claimed(seen_at=SILENT)
    stored.cancel(claim.run_id)

    sweep.sweep(stored.connections)

    assert "cancelled" == stored.state(claim.run_id)
