"""The writes of a worker to the runs that it holds: each carries the fence of its claim."""

import json
from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest

from arkloop.shared.claim import Claim
from arkloop.shared.events import types
from arkloop.shared.events.stored_events import encode
from arkloop.shared.events.types import ToolResult
from arkloop.shared.ids import new_id
from arkloop.shared.runs import claims, input_requests, queries
from arkloop.shared.runs.states import RunState
from arkloop.worker.agent.conversation import Turn
from arkloop.worker.contract.input_requests import InputRequest
from arkloop.worker.contract.messages import ToolCall
from arkloop.worker.process import history
from tests.query_plans import noted
from tests.stored_runs import CANCELLED, USED, StoredRuns, ago, numbered
from tests.waiting import in_parallel


def test_of_eight_claims_at_once_one_wins(stored: StoredRuns) -> None:
    """One of eight concurrent claims wins, and writes `run.started` once, as seq 1."""
    for _ in range(5):
        run_id = stored.create()
        won = [
            claim
            for claim in in_parallel(8, lambda _, run_id=run_id: stored.claim(run_id))
            if claim
        ]

        assert 1 == len(won)
        assert ["run.started"] == stored.types(run_id)
        assert (1, 1) == (won[0].attempt, won[0].last_seq)


def test_a_claim_has_the_metadata_of_the_run(stored: StoredRuns) -> None:
    """Metadata comes with the claim itself: a worker that calls a tool need not ask for it."""
    run_id = stored.create(metadata={"plan": "pro"})

    claim = stored.claim(run_id)

    assert claim is not None and {"plan": "pro"} == claim.metadata


@pytest.mark.parametrize("state", [s for s in RunState if s != RunState.QUEUED])
def test_only_a_queued_run_can_be_claimed(stored: StoredRuns, state: RunState) -> None:
    """A doubled or late message changes nothing."""
    run_id = stored.create(state=state)
    before = stored.row(run_id)

    assert stored.claim(run_id) is None
    assert before == stored.row(run_id)
    assert [] == stored.events(run_id)


@pytest.mark.parametrize("seen_at", [ago(seconds=480), None])
def test_a_worker_that_is_not_heard_claims_nothing(stored: StoredRuns, seen_at: Any) -> None:
    """It must renew its lease first; without a row nobody would see it die."""
    patient = replace(stored.connections.settings, lease_seconds=600)
    stored = replace(stored, connections=replace(stored.connections, settings=patient))
    worker_id = new_id() if seen_at is None else stored.worker(seen_at=seen_at)
    new = stored.create()
    resumed = stored.claimed().run_id
    stored.set(resumed, state=RunState.QUEUED, resume_reason="worker_lost")

    assert {} == claims.claim(stored.connections, [new, resumed], worker_id)

    if seen_at is not None:
        stored.set_worker(worker_id, seen_at=ago(seconds=400))
        assert stored.claim(new, worker_id) is not None


def test_a_run_that_does_not_exist_cannot_be_claimed(stored: StoredRuns) -> None:
    """The message of a run that was deleted is harmless."""
    assert stored.claim(new_id()) is None


def test_a_claim_knows_what_its_worker_needs(stored: StoredRuns) -> None:
    """A claim has everything that its worker needs, without reading the row again."""
    run_id = stored.create()
    claim = stored.claim(run_id)
    row = stored.row(run_id)

    assert claim is not None
    for name in ("thread_id", "org_id", "persona_id", "route_id", "model", "trace_id", "position"):
        assert row[name] == getattr(claim, name), name
    assert 0 <= claim.used_seconds < 600


def test_a_second_claim_says_why_the_run_goes_on(stored: StoredRuns) -> None:
    """`run.resumed` with the same attempt, a higher fence, and the input that was waited for."""
    first = stored.claimed()
    request_id = new_id()
    stored.park(first, request_id)
    stored.answer(first.run_id, "blue", request_id)

    second = stored.claim(first.run_id)

    assert second is not None
    assert second.fence > first.fence
    assert (1, 4) == (second.attempt, second.last_seq)
    assert [
        "run.started",
        "run.waiting_for_input",
        "run.resumed",
        "run.input_received",
    ] == stored.types(first.run_id)
    assert '"content":"blue"' in stored.events(first.run_id)[-1].payload


def test_an_input_is_used_once(stored: StoredRuns) -> None:
    """The claim after the next one does not get it again."""
    first = stored.claimed()
    stored.park(first, request_id := new_id())
    stored.answer(first.run_id, "blue", request_id)
    second = stored.held(first.run_id)
    with stored.connections.transaction() as tx:
        cost = numbered(second.last_seq, types.RunCost(USED.usage, USED.cost_usd))
        assert claims.release(tx, second, cost, USED, progressed=False)

    assert stored.claim(first.run_id) is not None

    assert 1 == stored.types(first.run_id).count("run.input_received")
    assert [first.run_id] * 3 == stored.sent


def test_a_tool_call_begins_once(stored: StoredRuns) -> None:
    """A call is new for the claim that began it, and not for a later claim."""
    first = stored.claimed()

    def begin(claim: Claim, call: str) -> bool:
        with stored.connections.transaction() as tx:
            return claims.begin_tool_call(tx, claim, call)

    assert [True, True] == [begin(first, "c1"), begin(first, "c2")]
    assert begin(first, "c1")  # the same claim again: its answer got lost
    stored.set(first.run_id, state=RunState.QUEUED, resume_reason="worker_lost")
    second = stored.held(first.run_id)
    assert [False, True] == [begin(second, "c1"), begin(second, "c3")]
    assert not begin(replace(second), "c2")


def test_a_tool_call_that_asked_people_is_made_again_once(stored: StoredRuns) -> None:
    """What it asked is kept for the next attempt; a crash after that one has begun the call again
    leaves its outcome unknown.
    """
    first = stored.claimed()
    request = InputRequest(asked=[{"key": "k", "kind": "form", "prompt": "?"}], state="s")
    with stored.connections.transaction() as tx:
        claims.begin_tool_call(tx, first, "c1")
        input_requests.require_input(tx, first, "c1", request.to_text())
    turn = Turn("m", "", [ToolCall("c1", "book", {})])
    with stored.connections.reading() as sql:
        history.take_done_calls(sql, first.run_id, turn)
    assert {"c1": request} == turn.input_requests

    begun = []
    for _ in range(2):
        stored.set(first.run_id, state=RunState.QUEUED, resume_reason="worker_lost")
        claim = stored.held(first.run_id)
        for _ in range(2):  # the same claim again: its answer got lost
            with stored.connections.transaction() as tx:
                begun.append(input_requests.continue_tool_call(tx, claim, "c1"))

    assert [True, True, False, False] == begun


def test_what_came_of_a_tool_call_is_kept(stored: StoredRuns) -> None:
    """A call's result is kept for the next attempt if a crash prevents its event."""
    first = stored.claimed()
    result = ToolResult("c2", "calculator", "42", False, 7)
    with stored.connections.transaction() as tx:
        for call in ("c1", "c2", "c3"):
            claims.begin_tool_call(tx, first, call)
        claims.end_tool_call(tx, first, result)
    turn = Turn("m", "", [ToolCall(call, "calculator", {}) for call in ("c1", "c2")])

    with stored.connections.reading() as sql:
        history.take_done_calls(sql, first.run_id, turn)

    assert {"c2": result} == turn.ledger_results


@pytest.mark.parametrize(("progressed", "crashes"), [(True, 0), (False, 2)])
def test_a_deploy_resets_the_crashes_only_after_a_finished_step(
    stored: StoredRuns, progressed: bool, crashes: int
) -> None:
    """Crashes before and after it are within one step unless one was finished between them."""
    claim = stored.claimed()
    stored.set(claim.run_id, crashes=2)

    with stored.connections.transaction() as tx:
        assert claims.release(tx, claim, numbered(1, CANCELLED), USED, progressed=progressed)

    assert crashes == stored.row(claim.run_id)["crashes"]


def test_a_suspect_is_claimed_only_where_suspects_are_welcome(stored: StoredRuns) -> None:
    """A run whose next lost owner would be the last is refused by who holds such a one already."""
    innocent, suspect = stored.create(), stored.create()
    stored.set(innocent, crashes=1)
    stored.set(suspect, crashes=2)
    worker = stored.worker()
    claimed = claims.claim(stored.connections, [suspect, innocent], worker, suspects=[])
    assert [innocent] == list(claimed)
    assert not claimed[innocent].is_suspect

    claim = stored.claim(suspect)

    assert claim is not None
    assert claim.is_suspect


def test_queued_runs_are_found_by_their_age(stored: StoredRuns) -> None:
    """The oldest first; suspects only if they are asked for."""
    young, old, oldest, suspect = (stored.create() for _ in range(4))
    for run_id, age in ((old, 700), (oldest, 900), (suspect, 800)):
        stored.set(run_id, queued_at=ago(seconds=age))
    stored.set(suspect, crashes=2)
    executing = stored.claimed()
    stored.set(executing.run_id, queued_at=ago(seconds=1000))

    def found(**how: Any) -> list[UUID]:
        with stored.connections.reading() as sql:
            all_found = queries.unclaimed(sql, older_than=600, **how)
        return [run for run in all_found if run in (young, old, oldest, suspect)]

    assert [oldest, suspect, old] == found(limit=100, suspects=True)
    assert [oldest, old] == found(limit=100, suspects=False)
    assert executing.run_id not in found(limit=100, suspects=True)


def test_waiting_time_is_not_used_time(stored: StoredRuns) -> None:
    """A run that waited for an hour has used seconds."""
    claim = stored.claimed()
    stored.park(claim, request_id := new_id())
    hour_ago = stored.row(claim.run_id)["started_at"] - timedelta(hours=1)
    stored.set(claim.run_id, started_at=hour_ago, waiting_since=hour_ago)
    stored.answer(claim.run_id, "x", request_id)

    again = stored.claim(claim.run_id)

    assert again is not None
    assert again.used_seconds < 600


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("started_at", ago(seconds=-3600)),
        ("waiting_since", ago(seconds=-3600)),
        ("waiting_ms", -3_600_000),  # as earlier releases have stored such a wait
    ],
)
def test_a_clock_that_is_set_back_neither_shortens_nor_lengthens_the_time_of_a_run(
    stored: StoredRuns, column: str, value: Any
) -> None:
    """The run started, or began to wait, while the clock was an hour ahead."""
    claim = stored.claimed()
    stored.park(claim, request_id := new_id())
    stored.set(claim.run_id, **{column: value})
    stored.answer(claim.run_id, "x", request_id)

    again = stored.claim(claim.run_id)

    assert again is not None
    assert 0 <= again.used_seconds < 600
    if column == "waiting_since":
        assert 0 == stored.row(claim.run_id)["waiting_ms"]


def test_the_first_event_is_of_the_form_of_all_others(stored: StoredRuns) -> None:
    """Postgres makes `run.started` of the run's row, byte for byte as Python encodes it."""
    model = 'a "model" of \\ ours (time) (route), é\n\x01'
    run_id = stored.create()
    stored.set(run_id, model=model)

    claim = stored.claim(run_id)

    assert claim is not None
    started = types.RunStarted(claim.persona_id, claim.route_id, model, {})
    assert model == claim.model
    expected = encode(1, started, claim.claimed_at)
    assert [json.loads(expected.payload)] == [json.loads(e.payload) for e in stored.events(run_id)]
    assert [len(expected.payload)] == [len(event.payload) for event in stored.events(run_id)]
    assert stored.published(run_id) == stored.events(run_id)


def test_new_and_resumed_runs_are_claimed_together(stored: StoredRuns) -> None:
    """Each begins with an event of its own; a run that has ended is left alone."""
    new, released, ended = stored.create(), stored.claimed(), stored.claimed()
    stored.finish(ended)
    with stored.connections.transaction() as tx:
        cost = numbered(released.last_seq, types.RunCost(USED.usage, USED.cost_usd))
        claims.release(tx, released, cost, USED, progressed=False)

    wanted = [released.run_id, new, ended.run_id]
    claimed = claims.claim(stored.connections, wanted, stored.worker())

    assert {new: (False, 1, 1), released.run_id: (True, 1, 3)} == {
        run_id: (claim.is_resumed, claim.attempt, claim.last_seq)
        for run_id, claim in claimed.items()
    }
    assert ["run.started"] == stored.types(new)
    assert "run.resumed" == stored.types(released.run_id)[-1]


def test_a_new_run_is_claimed_in_one_statement(stored: StoredRuns) -> None:
    """No transaction is begun for it, and no other statement follows."""
    run_id, worker_id = stored.create(), stored.worker()

    with noted(stored.connections) as statements:
        assert claims.claim(stored.connections, [run_id], worker_id)

    assert 1 == len(statements)
