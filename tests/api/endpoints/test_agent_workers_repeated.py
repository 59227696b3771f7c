"""The ends of an agent worker's run that are sent again, or after other ends."""

from collections.abc import Callable
from typing import Any

import pytest

from arkloop.shared.storage.connections import Connections
from tests.api.endpoints.agent_worker import (
    MakeWorker,
    call,
    cost,
    delta,
    start,
    turn,
    types_of,
    worker,
)
from tests.clients import User, error_of

pytestmark = pytest.mark.own_database

__all__ = ["start", "worker"]  # fixtures

ENDS: dict[str, dict[str, Any]] = {
    "ask": {"question": "Which one?"},
    "delegate": {"tasks": [{"tool_call_id": "d", "persona": "helper", "task": "Help."}]},
    "complete": {"content": "a"},
    "fail": {"message": "No."},
    "release": {},
}


@pytest.mark.parametrize("verb", [verb for verb in ENDS if verb != "delegate"])
def test_an_end_is_repeated_by_the_same_one_alone(
    verb: str, worker: MakeWorker, start: Callable[..., str], connections: Connections
) -> None:
    """A worker whose run has ended otherwise reads that its own end was not stored."""
    run_id = start()
    mine = worker()
    mine.take()

    first = mine.write(verb, delta("a"), seq=2, **ENDS[verb]).json
    written = types_of(connections, run_id)
    again = {end: mine.write(end, delta("a"), seq=2, **body) for end, body in ENDS.items()}

    assert first == again.pop(verb).json
    assert {(409, "agent_workers.outdated_fence")} == {error_of(one) for one in again.values()}
    assert written == types_of(connections, run_id)


@pytest.mark.parametrize("reason", ["cancel", "answer", "fail"])
@pytest.mark.parametrize("verb", ENDS)
def test_an_end_in_place_of_which_the_service_ended_the_run_is_repeated(
    verb: str, reason: str, alice: User, worker: MakeWorker
) -> None:
    """The response is the first one: with the state that a cancel, or a limit, has led to."""
    persona = {"key": "poor", "agent": "mine", "max_cost_usd": 1}
    on_limit = {} if reason == "cancel" else {"on_limit": reason}
    alice.post("/v1/personas", json={**persona, **on_limit})
    made = alice.post("/v1/runs", json={"persona_id": "poor", "message": "Hi"}).json
    assert made is not None
    mine = worker()
    mine.take()
    mine.write("append", turn(), call("c"))
    if reason == "cancel":
        alice.post(f"/v1/runs/{made['run_id']}:cancel")
    seq = mine.seq

    first, again = (
        mine.write(verb, cost(1.5 if on_limit else 0.5), seq=seq, **ENDS[verb]) for _ in range(2)
    )

    state = {"cancel": "cancelled", "answer": "completed", "fail": "failed"}[reason]
    assert (200, state) == (first.status_code, first.json["status"])
    assert first.json == again.json
