"""Ends of claims: by the run's end, a cancel, a restart, or another claim."""

from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest

from arkloop.shared.claim import Claim
from arkloop.shared.errors import LeaseLost
from arkloop.shared.events.types import RunCompleted, RunError, ToolResult
from arkloop.shared.ids import new_id
from arkloop.shared.runs import claims, input_requests
from arkloop.shared.runs.states import RunState
from arkloop.shared.storage.connections import Transaction
from arkloop.shared.times import EPOCH
from tests.stored_runs import CANCELLED, USED, StoredRuns, end_run, numbered
from tests.waiting import in_parallel

COMPLETED = RunCompleted(None, USED.usage, USED.cost_usd, "stop")


RESULT = ToolResult("call", "calculator", "42", False, 7)


Write = Callable[[StoredRuns, Transaction, Claim], Any]


WRITES: dict[str, Write] = {
    "finish": lambda stored, tx, claim: end_run(
        tx, claim, RunState.COMPLETED, numbered(99, COMPLETED), message=(new_id(), "late")
    ),
    "cancel": lambda stored, tx, claim: end_run(
        tx, claim, RunState.CANCELLED, numbered(99, CANCELLED)
    ),
    "release": lambda stored, tx, claim: claims.release(
        tx, claim, numbered(99, COMPLETED), USED, progressed=True
    ),
    "park": lambda stored, tx, claim: claims.park(
        tx,
        claim,
        numbered(99, COMPLETED),
        pending_input={},
        expires_at=None,
        totals=USED,
    ),
    "begin_tool_call": lambda stored, tx, claim: claims.begin_tool_call(tx, claim, "call"),
    "end_tool_call": lambda stored, tx, claim: claims.end_tool_call(tx, claim, RESULT),
    "require_input": lambda stored, tx, claim: input_requests.require_input(
        tx, claim, "call", "{}"
    ),
    "continue_tool_call": lambda stored, tx, claim: input_requests.continue_tool_call(
        tx, claim, "call"
    ),
}


def test_a_claim_ends_on_a_server_that_was_restarted(stored: StoredRuns) -> None:
    """It has all that was committed: the same claim continues."""
    claim = replace(stored.claimed(), server=EPOCH)

    assert stored.finish(claim)

    assert ["run.started", "run.completed"] == stored.types(claim.run_id)


@pytest.mark.parametrize("how", ["finish", "cancel", "release", "park"])
def test_a_claim_does_not_end_after_events_that_are_lost(
    stored: StoredRuns, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    """What its worker has committed is gone since a failover: the run is resumed instead."""
    # 99 is numbered from memory, and 98 is not there.
    claim = replace(stored.claimed(), server=EPOCH)
    before = (stored.row(claim.run_id), stored.events(claim.run_id))

    with pytest.raises(LeaseLost), stored.connections.transaction() as tx:
        WRITES[how](stored, tx, claim)

    assert before == (stored.row(claim.run_id), stored.events(claim.run_id))
    [error] = [record for record in caplog.records if "lost committed events" in record.message]
    assert (str(claim.run_id), str(claim.org_id), claim.trace_id) == (
        *(getattr(error, name) for name in ("run_id", "org_id", "trace_id")),
    )


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
@pytest.mark.parametrize("how", ["taken over", "ended", "queued again"])
def test_a_claim_that_is_over_writes_nothing(stored: StoredRuns, write: Write, how: str) -> None:
    """`LeaseLost`, and neither status nor events nor messages have changed."""
    zombie = stored.claimed()
    with stored.connections.transaction() as tx:
        claims.begin_tool_call(tx, zombie, "call")
    if how == "ended":
        assert stored.finish(zombie)
    else:
        stored.set(zombie.run_id, state=RunState.QUEUED, resume_reason="worker_lost")
        if how == "taken over":
            assert stored.claim(zombie.run_id) is not None
    before = (stored.row(zombie.run_id), stored.events(zombie.run_id))

    with pytest.raises(LeaseLost), stored.connections.transaction() as tx:
        write(stored, tx, zombie)

    assert before == (stored.row(zombie.run_id), stored.events(zombie.run_id))
    assert [] == stored.messages(zombie.run_id)


def test_a_completed_run_has_everything_at_once(stored: StoredRuns) -> None:
    """Status, terminal event, totals and the thread's message are one transaction."""
    claim = stored.claimed()
    message_id = new_id()

    assert stored.finish(claim, message=(message_id, "the answer\x00"))

    row = stored.row(claim.run_id)
    assert ("completed", 10, 5, 2, Decimal("0.5"), "reported") == tuple(
        row[name]
        for name in (
            "state",
            "input_tokens",
            "output_tokens",
            "cache_read_tokens",
            "cost_usd",
            "usage_source",
        )
    )
    assert row["ended_at"] is not None
    assert "run.completed" == stored.types(claim.run_id)[-1]
    assert [("the answer\ufffd", False)] == stored.messages(claim.run_id)


def test_a_failed_run_keeps_its_error_and_a_partial_message(stored: StoredRuns) -> None:
    """Code, message and whether it is worth another try."""
    claim = stored.claimed()

    assert stored.finish(
        claim, RunState.FAILED, (new_id(), "a part"), RunError("run.timeout", "late", True)
    )

    row = stored.row(claim.run_id)
    assert ("failed", "run.timeout", "late", True) == tuple(
        row[name] for name in ("state", "error_code", "error_message", "error_retryable")
    )
    assert [("a part", True)] == stored.messages(claim.run_id)


@pytest.mark.parametrize("name", ["finish", "release", "park"])
def test_an_accepted_cancel_comes_before_every_other_end(stored: StoredRuns, name: str) -> None:
    """The write has no effect and says so; then the run can end as cancelled."""
    claim = stored.claimed()
    stored.cancel(claim.run_id)
    before = (stored.row(claim.run_id), stored.events(claim.run_id))

    with stored.connections.transaction() as tx:
        assert WRITES[name](stored, tx, claim) is False

    assert before == (stored.row(claim.run_id), stored.events(claim.run_id))
    assert stored.finish(claim, RunState.CANCELLED)
    assert "cancelled" == stored.state(claim.run_id)


def test_of_an_end_and_a_cancel_at_once_one_wins(stored: StoredRuns) -> None:
    """Whichever commits first; the run ends once, and never stays executing with a cancel."""
    ends = set()
    for _ in range(20):
        claim = stored.claimed()

        def race(number: int, claim: Claim = claim) -> bool | None:
            return stored.cancel(claim.run_id) if number else stored.finish(claim)

        completed = in_parallel(2, race)[0]
        if not completed:
            assert stored.finish(claim, RunState.CANCELLED)
        state = stored.state(claim.run_id)
        ends.add(state)
        assert ("completed" if completed else "cancelled") == state
        assert f"run.{state}" == stored.types(claim.run_id)[-1]
        assert 2 == stored.last_seq(claim.run_id)
    assert ends <= {"completed", "cancelled"}
