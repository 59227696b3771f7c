"""Runs of agent workers in an org that has no credits: its own providers bill their calls."""

import pytest

from arkloop.shared.billing import credits
from arkloop.shared.storage.connections import Connections
from tests.api.endpoints.agent_worker import MakeWorker, cost, data_of, turn, worker
from tests.clients import User, error_of

pytestmark = pytest.mark.own_database

__all__ = ["worker"]  # a fixture


@pytest.fixture(autouse=True)
def prepaid(alice: User, connections: Connections) -> None:
    """Let the org pay in advance, without credits."""
    with connections.transaction() as tx:
        credits.open_prepaid(tx, alice.org_id, 0)


def test_a_run_of_an_agent_worker_needs_no_credits(alice: User, worker: MakeWorker) -> None:
    """It is created in new and busy threads, and not charged; other runs need credits."""
    alice.post("/v1/personas", json={"key": "custom", "agent": "mine"})
    mine = worker()
    response = alice.post("/v1/runs", json={"persona_id": "custom", "message": "Hi"})
    created = response.json
    assert created is not None
    assert 201 == response.status_code, response.text
    thread = f"/v1/threads/{created['thread_id']}/runs"
    more = {"persona_id": "custom", "message": "And now?", "on_busy": "enqueue"}
    queued = alice.post(thread, json=more)
    mine.take()
    mine.write("append", cost(0.25))
    mine.write("complete", content="Done.")

    assert 201 == queued.status_code, queued.text
    shown = alice.get(f"/v1/runs/{created['run_id']}").json
    assert shown is not None
    assert ("completed", 0.25) == (shown["status"], shown["cost_usd"])
    has = alice.get("/v1/me/credits").json
    assert has is not None
    assert (0, []) == (has["balance"], has["entries"])
    refused = alice.post("/v1/runs", json={"persona_id": "assistant", "message": "Hi"})
    assert (429, "budget.exhausted") == error_of(refused)


def test_a_call_without_a_known_price_counts_as_nothing(alice: User, worker: MakeWorker) -> None:
    """Its cost is required under a budget, and not for credits or in a sub-run without a budget."""
    alice.post("/v1/personas", json={"key": "poor", "agent": "poor", "max_cost_usd": 1})
    boss = {"key": "boss", "agent": "boss", "delegates": ["boss"]}
    alice.post("/v1/personas", json=boss)
    for persona in ("poor", "boss"):
        alice.post("/v1/runs", json={"persona_id": persona, "message": "Hi"})
    poor, top, below = worker("poor"), worker("boss"), worker("boss")
    unpriced = {"type": "run.cost", "model": "unheard-of", "input_tokens": 3}

    poor.take()
    refused = poor.write("append", unpriced)
    top.take()
    first = top.write("append", unpriced)
    task = {"tool_call_id": "a", "persona": "boss", "task": "Do it."}
    top.write("delegate", turn(), tasks=[task])
    below.take()
    second = below.write("append", unpriced)

    assert "failed" == refused.json["status"]
    assert [200, 200] == [first.status_code, second.status_code], (first.text, second.text)


def test_a_sub_run_of_an_agent_worker_needs_no_credits(
    alice: User, worker: MakeWorker, connections: Connections
) -> None:
    """It is started; the one that the service executes, on a route of the server, is not."""
    boss = {"key": "boss", "agent": "boss", "delegates": ["helper", "assistant"]}
    for persona in ({"key": "helper", "agent": "helper"}, boss):
        made = alice.post("/v1/personas", json=persona)
        assert 201 == made.status_code, made.text
    alice.post("/v1/runs", json={"persona_id": "boss", "message": "Hi"})
    mine = worker("boss")
    run = mine.take()
    tasks = [
        {"tool_call_id": name, "persona": name, "task": "Do it."}
        for name in ("helper", "assistant")
    ]

    mine.write("delegate", turn("Two things."), tasks=tasks)
    helper = worker("helper")
    helper.take()
    helper.write("append", cost(0.25))
    helper.write("complete", content="Did it.")
    mine.take()

    assert [("helper", "Did it."), ("assistant", "Not executed: budget.exhausted")] == [
        (result["tool_call_id"], result["output"][:30])
        for result in data_of(connections, run["run_id"], "tool.result")
    ]
