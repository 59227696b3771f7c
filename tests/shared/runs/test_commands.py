"""A run's life as the API changes it: guarded statements, also when everything happens at once."""

import json
from uuid import UUID

import pytest

from arkloop.shared.errors import NotActive, NotWaiting, StaleInput
from arkloop.shared.events import types
from arkloop.shared.events.usage import Usage
from arkloop.shared.ids import new_id
from tests.stored_runs import StoredRuns, ago
from tests.waiting import in_parallel


def test_a_queued_run_is_cancelled_or_claimed(stored: StoredRuns) -> None:
    """A claim that won is stopped; a cancel that won leaves nothing to claim."""
    for _ in range(20):
        run_id = stored.create()

        def race(number: int, run_id: UUID = run_id) -> object:
            return stored.claim(run_id) if number else stored.cancel(run_id)

        claim = in_parallel(2, race)[1]
        row = stored.row(run_id)
        if claim is None:
            assert ("cancelled", ["run.cancelled"]) == (row["state"], stored.types(run_id))
        else:
            assert ("executing", ["run.started"]) == (row["state"], stored.types(run_id))
            assert row["cancel_requested_at"] is not None


def test_an_executing_run_is_asked_to_stop_once(stored: StoredRuns) -> None:
    """The first user to cancel is recorded, and the row is otherwise unchanged."""
    claim = stored.claimed()
    stored.cancel(claim.run_id)
    first = stored.row(claim.run_id)
    stored.cancel(claim.run_id)

    assert first == stored.row(claim.run_id)
    assert ("executing", stored.actor.user_id) == (first["state"], first["cancel_requested_by"])


def test_the_owner_of_an_executing_run_is_told_by_redis(stored: StoredRuns) -> None:
    """A key for a subscription that was down, a message for one that is there."""
    claim = stored.claimed()
    owner = stored.row(claim.run_id)["owner"]
    redis = stored.connections.redis
    with redis.pubsub() as pubsub:
        pubsub.subscribe(stored.connections.keys.worker_signals(owner))
        assert pubsub.get_message(timeout=5)["type"] == "subscribe"
        stored.cancel(claim.run_id)
        message = pubsub.get_message(timeout=5)

    assert f"cancel {claim.run_id} {stored.actor.user_id}" == message["data"]
    assert str(stored.actor.user_id) == redis.get(stored.connections.keys.cancel(claim.run_id))


def test_an_answer_queues_the_run_again(stored: StoredRuns) -> None:
    """The run is queued at once, without the question, and with the waiting time counted."""
    claim = stored.claimed()
    stored.park(claim, request_id := new_id())
    stored.sent.clear()
    stored.answer(claim.run_id, "blue", request_id)

    row = stored.row(claim.run_id)
    assert ("queued", None, None, None) == tuple(
        row[name] for name in ("state", "pending_input", "waiting_since", "input_expires_at")
    )
    assert [claim.run_id] == stored.sent


@pytest.mark.parametrize(("contents", "taken"), [(["same"] * 8, 8), (list("abcdefgh"), 1)])
def test_of_many_answers_at_once_one_is_stored(
    stored: StoredRuns, contents: list[str], taken: int
) -> None:
    """The same content with the same request id is the same answer; other content is stale."""
    claim = stored.claimed()
    stored.park(claim, request_id := new_id())

    def answer(number: int) -> bool:
        try:
            stored.answer(claim.run_id, contents[number], request_id)
        except StaleInput:
            return False
        return True

    assert taken == sum(in_parallel(8, answer))
    assert stored.claim(claim.run_id) is not None
    assert 1 == stored.types(claim.run_id).count("run.input_received")


def test_an_answer_that_comes_too_late_is_refused_by_name(stored: StoredRuns) -> None:
    """`NotWaiting` while the run executes or no longer waits, `NotActive` after its end."""
    claim = stored.claimed()
    with pytest.raises(NotWaiting):
        stored.answer(claim.run_id, "x")
    stored.cancel(queued := stored.create())
    with pytest.raises(NotActive):
        stored.answer(queued, "x")
    stored.park(claim, new_id())
    with pytest.raises(StaleInput):
        stored.answer(claim.run_id, "x", new_id())
    stored.set(claim.run_id, input_expires_at=ago(seconds=1))
    with pytest.raises(NotWaiting, match="The input request has expired"):
        stored.answer(claim.run_id, "x")
    assert "waiting" == stored.state(claim.run_id)


def test_a_waiting_run_is_cancelled_or_answered(stored: StoredRuns) -> None:
    """Whichever commits first: an accepted answer is there, and the run ends either way."""
    for _ in range(20):
        claim = stored.claimed()
        stored.park(claim, request_id := new_id())

        def race(number: int, run_id: UUID = claim.run_id, request: UUID = request_id) -> str:
            try:
                stored.answer(run_id, "x", request) if number else stored.cancel(run_id)
            except NotActive:
                return "too late"
            return "done"

        cancelled, _ = in_parallel(2, race)
        assert ("done", "cancelled") == (cancelled, stored.state(claim.run_id))
        assert "run.cancelled" == stored.types(claim.run_id)[-1]


def test_the_end_of_a_run_that_nobody_holds_has_its_totals(stored: StoredRuns) -> None:
    """The totals are those of the last `run.cost` in the event log."""
    claim = stored.claimed()
    usage = Usage(input_tokens=5, output_tokens=1)
    stored.write(claim, types.MessageDelta("text"), types.RunCost(usage, 0.25))
    stored.set(claim.run_id, state="waiting", pending_input={"request_id": str(new_id())})
    stored.cancel(claim.run_id)

    last = stored.events(claim.run_id)[-1]
    assert (4, "run.cancelled") == (last.seq, last.type)
    data = json.loads(last.payload)["data"]
    assert (5, 1, 0.25) == (
        data["usage"]["input_tokens"],
        data["usage"]["output_tokens"],
        data["cost_usd"],
    )
    assert [("text", True)] == stored.messages(claim.run_id)
