"""Results of tool calls that come from outside: stored in the ledger, the last one resumes."""

from contextlib import nullcontext
from dataclasses import replace
from datetime import timedelta
from uuid import UUID

import pytest
from sqlalchemy import select, update

from arkloop.shared.claim import Claim
from arkloop.shared.errors import InvalidRequest, NotWaiting, ToolResultConflict
from arkloop.shared.events.types import RunWaitingForInput, ToolResult
from arkloop.shared.ids import new_id
from arkloop.shared.runs import claims, commands, pending_calls, sweep
from arkloop.shared.runs.pending_calls import CallResult
from arkloop.shared.runs.states import ResultSource, RunState
from arkloop.shared.runs.transitions import Totals
from arkloop.shared.storage.tables.runs import tool_calls
from arkloop.shared.storage.tables.threads import threads
from arkloop.shared.times import now, rfc3339
from arkloop.worker.agent.conversation import Turn
from arkloop.worker.contract.messages import ToolCall
from arkloop.worker.process import history
from tests.stored_runs import StoredRuns, ago, numbered
from tests.waiting import in_parallel


def begin(stored: StoredRuns, claim: Claim, call: str, result_from: ResultSource | None) -> None:
    with stored.connections.transaction() as tx:
        claims.begin_tool_call(tx, claim, call, result_from)


def expect(stored: StoredRuns, claim: Claim, call: str) -> None:
    with stored.connections.transaction() as tx:
        claims.expect_result(tx, claim, call)


def shown_ago(seconds: float) -> str:
    return rfc3339(now() - timedelta(seconds=seconds))


def park(stored: StoredRuns, claim: Claim, *calls: str, **expired: float) -> None:
    """Let the run wait; `expired` are calls whose own time has been over for these seconds."""
    shown = [{"tool_call_id": call, "name": "t", "arguments": {}} for call in calls]
    for call in shown:
        if call["tool_call_id"] in expired:
            call["expires_at"] = shown_ago(expired[str(call["tool_call_id"])])
    pending = {"request_id": str(new_id()), "kind": "tool_results", "prompt": "?", "calls": shown}
    pending["expires_at"] = shown_ago(-3600)
    with stored.connections.transaction() as tx:
        waiting = numbered(claim.last_seq, RunWaitingForInput(**pending))
        later = ago(seconds=-3600)
        assert claims.park(
            tx, claim, waiting, pending_input=pending, expires_at=later, totals=Totals()
        )


def give(stored: StoredRuns, run_id: UUID, *calls: str, output: str = "done") -> None:
    results = [CallResult(tool_call_id=call, output=output) for call in calls]
    with stored.connections.transaction() as tx:
        commands.give_results(tx, stored.actor, run_id, results)


def settle(stored: StoredRuns, run_id: UUID, call: str) -> None:
    with stored.connections.transaction() as tx:
        pending_calls.settle(tx, run_id, CallResult(tool_call_id=call, output="done"))


def results_of(stored: StoredRuns, run_id: UUID, *calls: str) -> dict[str, str]:
    """Return what a resumed attempt finds in the ledger."""
    turn = Turn("m", "", [ToolCall(call, "t", {}) for call in calls])
    with stored.connections.reading() as sql:
        history.take_done_calls(sql, run_id, turn)
    return {call: result.output for call, result in turn.ledger_results.items()}


def test_an_end_user_sends_the_results_of_client_tools_alone(stored: StoredRuns) -> None:
    """What a tool of the org has done, a page must not say: that an order is paid, for example."""
    claim = stored.claimed()
    begin(stored, claim, "a", ResultSource.CLIENT)
    begin(stored, claim, "b", ResultSource.HTTP)
    expect(stored, claim, "b")
    park(stored, claim, "a", "b")
    of_run = threads.c.id == stored.row(claim.run_id)["thread_id"]
    with stored.connections.transaction() as tx:
        tx.sql.execute(update(threads).where(of_run).values(end_user_id="eve"))
    eve = replace(stored.actor, end_user_id="eve")

    for call in ("a", "b"):
        result = CallResult(tool_call_id=call, output="paid")
        refused = pytest.raises(InvalidRequest) if call == "b" else nullcontext()
        with refused, stored.connections.transaction() as tx:
            commands.give_results(tx, eve, claim.run_id, [result])
    give(stored, claim.run_id, "b")

    assert {"a": "paid", "b": "done"} == results_of(stored, claim.run_id, "a", "b")
    assert RunState.QUEUED == stored.state(claim.run_id)


def test_a_clock_that_was_set_back_gives_no_negative_duration(stored: StoredRuns) -> None:
    """A call that began while the clock was ahead has taken no time."""
    claim = stored.claimed()
    begin(stored, claim, "a", ResultSource.CLIENT)
    park(stored, claim, "a")
    of_run = tool_calls.c.run_id == claim.run_id
    with stored.connections.transaction() as tx:
        tx.sql.execute(update(tool_calls).where(of_run).values(started_at=ago(seconds=-3600)))

    give(stored, claim.run_id, "a")

    with stored.connections.reading() as sql:
        assert 0 == sql.scalar(select(tool_calls.c.duration_ms).where(of_run))


@pytest.mark.parametrize("last", ["client", "sub-run"])
def test_the_last_result_queues_the_run_again(stored: StoredRuns, last: str) -> None:
    """Results of clients and of sub-runs count alike; while only sub-runs run it is suspended."""
    claim = stored.claimed()
    begin(stored, claim, "a", ResultSource.CLIENT)
    begin(stored, claim, "b", ResultSource.RUN)
    expect(stored, claim, "b")
    park(stored, claim, "a")
    stored.sent.clear()

    if last == "client":
        settle(stored, claim.run_id, "b")
        assert RunState.WAITING == stored.state(claim.run_id)
        give(stored, claim.run_id, "a")
    else:
        give(stored, claim.run_id, "a")
        assert RunState.SUSPENDED == stored.state(claim.run_id)
        settle(stored, claim.run_id, "b")

    row = stored.row(claim.run_id)
    assert (RunState.QUEUED, None) == (row["state"], row["pending_input"])
    assert ("input" if last == "client" else "sub_runs") == row["resume_reason"]
    assert [claim.run_id] == stored.sent
    assert {"a": "done", "b": "done"} == results_of(stored, claim.run_id, "a", "b")


def test_results_that_arrive_before_the_run_waits_are_kept(stored: StoredRuns) -> None:
    """A run that would wait for nothing is queued again in the transaction that parks it."""
    claim = stored.claimed()
    begin(stored, claim, "a", ResultSource.HTTP)
    give(stored, claim.run_id, "a")
    begin(stored, claim, "b", ResultSource.RUN)
    expect(stored, claim, "a")
    expect(stored, claim, "b")
    settle(stored, claim.run_id, "b")
    assert RunState.EXECUTING == stored.state(claim.run_id)

    park(stored, claim, "a")

    assert RunState.QUEUED == stored.state(claim.run_id)
    assert {"a": "done", "b": "done"} == results_of(stored, claim.run_id, "a", "b")


def test_a_client_cannot_be_early(stored: StoredRuns) -> None:
    """Its result is refused until the run waits: a limit may still cut the turn off."""
    claim = stored.claimed()
    begin(stored, claim, "a", ResultSource.CLIENT)

    with pytest.raises(NotWaiting):
        give(stored, claim.run_id, "a")

    assert {} == results_of(stored, claim.run_id, "a")


def test_of_equal_results_at_once_one_is_stored(stored: StoredRuns) -> None:
    """Eight requests with both results: the run is queued once, with each result once."""
    claim = stored.claimed()
    for call in ("a", "b"):
        begin(stored, claim, call, ResultSource.CLIENT)
    park(stored, claim, "a", "b")

    stored.sent.clear()
    in_parallel(8, lambda _: give(stored, claim.run_id, "a", "b"))

    assert [claim.run_id] == stored.sent
    assert {"a": "done", "b": "done"} == results_of(stored, claim.run_id, "a", "b")


def test_an_ended_run_is_left_alone(stored: StoredRuns) -> None:
    """The end of a sub-run that its parent does not wait for any more changes nothing."""
    claim = stored.claimed()
    begin(stored, claim, "a", ResultSource.RUN)
    expect(stored, claim, "a")
    park(stored, claim)
    stored.cancel(claim.run_id)

    settle(stored, claim.run_id, "a")

    assert RunState.CANCELLED == stored.state(claim.run_id)
    assert {} == results_of(stored, claim.run_id, "a")


def test_a_result_from_outside_that_is_first_counts(stored: StoredRuns) -> None:
    """The worker that gives the call up reads it; a later one from outside is refused."""
    claim = stored.claimed()
    given_up = ToolResult("a", "t", "given up", True, 7)
    for call in ("a", "b"):
        begin(stored, claim, call, ResultSource.HTTP)
    give(stored, claim.run_id, "a")

    with stored.connections.transaction() as tx:
        counts = claims.end_tool_call(tx, claim, given_up)
        later = claims.end_tool_call(tx, claim, replace(given_up, tool_call_id="b"))

    assert ("done", False) == (counts.output, counts.is_error)
    assert "given up" == later.output
    with pytest.raises(ToolResultConflict):
        give(stored, claim.run_id, "b")


def test_a_client_tool_has_a_time_of_its_own(stored: StoredRuns) -> None:
    """When it is over the model reads that; the other results are awaited for as long as before."""
    claim = stored.claimed()
    for call in ("a", "b", "c"):
        begin(stored, claim, call, ResultSource.CLIENT)
    park(stored, claim, "a", "b", "c", a=1, c=-600)
    stored.set(claim.run_id, input_expires_at=ago(seconds=1))
    with pytest.raises(NotWaiting):
        give(stored, claim.run_id, "a")

    sweep.sweep(stored.connections)

    row = stored.row(claim.run_id)
    assert RunState.WAITING == row["state"]
    assert ["b", "c"] == [call["tool_call_id"] for call in row["pending_input"]["calls"]]
    assert row["input_expires_at"] > now() + timedelta(
        seconds=500
    )  # the time of `c` is the next one
    with pytest.raises(ToolResultConflict):
        give(stored, claim.run_id, "a")
    give(stored, claim.run_id, "b", "c")
    assert RunState.QUEUED == stored.state(claim.run_id)
    assert pending_calls.TOO_LATE == results_of(stored, claim.run_id, "a", "b", "c")["a"]


def test_a_run_resumes_when_the_time_of_its_last_call_is_over(stored: StoredRuns) -> None:
    """It does not fail, as it would if nobody had answered: a tool that is late is a result."""
    claim = stored.claimed()
    begin(stored, claim, "a", ResultSource.CLIENT)
    park(stored, claim, "a", a=1)
    stored.set(claim.run_id, input_expires_at=ago(seconds=1))

    sweep.sweep(stored.connections)

    assert RunState.QUEUED == stored.state(claim.run_id)


def test_a_result_in_time_leaves_the_others_their_own_time(stored: StoredRuns) -> None:
    """The time of a call that has its result is no end of the wait for another one."""
    claim = stored.claimed()
    for call in ("a", "b"):
        begin(stored, claim, call, ResultSource.CLIENT)
    park(stored, claim, "a", "b", a=-60)
    stored.set(claim.run_id, input_expires_at=ago(seconds=-60))
    give(stored, claim.run_id, "a")
    ends_at = stored.row(claim.run_id)["input_expires_at"]
    stored.set(claim.run_id, input_expires_at=ends_at - timedelta(seconds=120))

    sweep.sweep(stored.connections)

    assert RunState.WAITING == stored.state(claim.run_id)
    give(stored, claim.run_id, "b")
    assert RunState.QUEUED == stored.state(claim.run_id)
