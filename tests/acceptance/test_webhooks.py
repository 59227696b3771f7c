"""Webhooks in the whole service: who is notified, crashes, and receivers that do not respond."""

from collections.abc import Iterator
from typing import Any

import pytest
from standardwebhooks import Webhook

from tests.caller import Caller
from tests.system import System
from tests.tool_receiver import Received, Reply, ToolReceiver
from tests.waiting import eventually


@pytest.fixture
def receiver() -> Iterator[ToolReceiver]:
    with ToolReceiver(lambda _: Reply()) as made:
        yield made


@pytest.fixture
def owner(system: System) -> Caller:
    return system.caller()


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

    eventually(lambda: len(receiver.received) == 1, seconds=20)

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
