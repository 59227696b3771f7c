"""Webhooks in the whole service: who is notified, crashes, and receivers that do not respond."""

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from standardwebhooks import Webhook

from tests.caller import Caller
from tests.system import System, Worker
from tests.tool_receiver import Received, Reply, ToolReceiver
from tests.waiting import eventually


@pytest.fixture
def receiver() -> Iterator[ToolReceiver]:
    with ToolReceiver(lambda _: Reply()) as made:
        yield made


def endpoint(owner: Caller, receiver: ToolReceiver, **fields: Any) -> dict[str, Any]:
    """Create an endpoint at the receiver."""
    return owner.made("/v1/webhook-endpoints", {"url": receiver.url, **fields})


def verified(request: Received, secret: str) -> dict[str, Any]:
    """Return the message, verified by the official library."""
    return dict(Webhook(secret).verify(request.body, dict(request.headers)))


def test_the_end_of_a_run_is_delivered(owner: Caller, receiver: ToolReceiver) -> None:
    """A signed message names the run, its thread, its status and on whose behalf it was; the
    delivery is listed.
    """
    made = endpoint(owner, receiver)
    chosen = {"end_user_id": "shopper-1", "metadata": {"plan": "pro"}}
    run_id = owner.run({"say": "hello"}, **chosen)

    eventually(lambda: len(receiver.received) == 1)

    [request] = receiver.received
    message = verified(request, made["signing_secret"])
    run = owner.get_run(run_id)
    event = data_of_last(owner, run_id)
    expected = {
        "run_id": run_id,
        "thread_id": run["thread_id"],
        "persona_id": run["persona_id"],
        "status": "completed",
        "seq": run["last_seq"],
        **chosen,
        "output": "hello",
        "event": event,
    }
    assert ("run.completed", expected) == (message["type"], message["data"])
    deliveries = f"/v1/webhook-endpoints/{made['id']}/deliveries"
    eventually(lambda: owner.get(deliveries)[0]["state"] == "delivered")
    [listed] = owner.get(deliveries)
    assert (request.headers["webhook-id"], 1) == (listed["id"], listed["attempts"])


def data_of_last(owner: Caller, run_id: str) -> dict[str, Any]:
    return dict(owner.events(run_id)[-1]["data"])


@pytest.mark.processes
def test_a_worker_that_is_killed_after_a_response_sends_the_message_again(
    owner: Caller, receiver: ToolReceiver, system: System
) -> None:
    """A message whose confirmation was not recorded comes again, with the same id and bytes."""
    made = endpoint(owner, receiver, event_types=["run.completed"])
    with system.dying_workers("worker.webhook_sent:1:KILL") as dying:
        run_id = owner.run({"say": "hello"})
        first_pid = dying.pid
        eventually(lambda: dying.pid != first_pid)

    eventually(lambda: _states(owner, made) == ["delivered"])

    first, *_, last = receiver.received
    assert run_id == verified(last, made["signing_secret"])["data"]["run_id"]
    assert (first.headers["webhook-id"], first.body) == (last.headers["webhook-id"], last.body)


@pytest.mark.processes
def test_a_worker_that_is_stopped_ends_its_attempts(
    owner: Caller, receiver: ToolReceiver, system: System
) -> None:
    """A message that its receiver takes slowly during a deploy is sent once, and is recorded."""
    made = endpoint(owner, receiver, event_types=["run.completed"])
    hold = threading.Event()

    def respond(_: Received) -> Reply:
        hold.wait(30)
        return Reply()

    receiver.answer = respond
    environ = {**system.environ, "ARKLOOP_WEBHOOK_TIMEOUT_SECONDS": "15"}
    with system.without_worker():
        worker = Worker(environ, system.folder / "stopped-worker.log")
        worker.start()
        owner.run({"say": "hello"})
        eventually(lambda: len(receiver.received) == 1)
        threading.Timer(6, hold.set).start()
        worker.stop()
        deliveries = owner.get(f"/v1/webhook-endpoints/{made['id']}/deliveries")

    assert [("delivered", 1)] == [(one["state"], one["attempts"]) for one in deliveries]
    assert 1 == len(receiver.received)


def test_events_without_a_worker_are_delivered_in_order(
    owner: Caller, receiver: ToolReceiver
) -> None:
    """A receiver that is down at first gets the question of a run before its end, which a web
    server has brought about.
    """
    made = endpoint(owner, receiver)
    is_cancelled = threading.Event()

    def respond(_: Received) -> Reply:
        # Four refusals would put the next attempt off for minutes.
        is_cancelled.wait(10)
        return Reply(status=503 if len(receiver.received) <= 2 else 200)

    receiver.answer = respond
    run_id = owner.run({"tool": "ask_user", "args": {"question": "Which?"}}, {"say": "ok"})
    owner.until(run_id, "status", "waiting_for_input")
    owner.cancel(run_id)
    is_cancelled.set()

    eventually(lambda: _states(owner, made) == ["delivered"] * 2)

    types = [request.message["type"] for request in receiver.received]
    assert {"run.waiting_for_input"} == {*types[:-1]} and len(types) > 2
    assert "run.cancelled" == types[-1]


def test_an_exhausted_budget_is_reported(owner: Caller, receiver: ToolReceiver) -> None:
    """A run that is refused its model call, because too little is left of the month, exhausts the
    budget of the org.
    """
    made = endpoint(owner, receiver, event_types=["budget.threshold_reached"])
    limit = {"max_cost_usd_per_month": 0.00001}
    owner.put("/v1/budget", limit)

    owner.ended(owner.run({"say": "hello"}))

    eventually(lambda: _states(owner, made) == ["delivered"])
    [request] = receiver.received
    data = verified(request, made["signing_secret"])["data"]
    assert ("org", 100, 0.00001) == (data["scope"], data["percent"], data["max_cost_usd_per_month"])


def _states(owner: Caller, made: dict[str, Any]) -> list[str]:
    listed = owner.get(f"/v1/webhook-endpoints/{made['id']}/deliveries")
    return [delivery["state"] for delivery in listed]
