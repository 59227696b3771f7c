"""Pages of AG-UI that know of an interrupt which is over."""

import secrets
from collections.abc import Iterator
from typing import Any

import pytest

from tests.acceptance.test_agui import CALCULATE, CLIENTS, PIECES, shown, types_of
from tests.agui_client import AguiProcess, agui_process
from tests.ai_sdk_chat import needs_front_ends
from tests.caller import Caller, script
from tests.waiting import eventually

pytestmark = needs_front_ends


@pytest.fixture(scope="module")
def client() -> Iterator[AguiProcess]:
    with agui_process() as process:
        yield process


def approval_of(asked: dict[str, Any]) -> list[dict[str, Any]]:
    [interrupt] = asked["interrupts"]
    payload = {"approved": True}
    return [{"interruptId": interrupt["id"], "status": "resolved", "payload": payload}]


@CLIENTS
def test_a_page_connects_after_a_resume_that_it_has_broken_off(
    user: Caller, client: AguiProcess, version: str
) -> None:
    """Its reply has arrived, and it has not seen how the run ends."""
    name, query = f"broken off {version}", "?persona_id=careful"
    agent = client.agent(user, name, query=query, client=version)
    asked = agent.run(script(CALCULATE, PIECES))
    aborted = agent.run(resume=approval_of(asked), abortAt="TEXT_MESSAGE_CONTENT")
    seen = agent.connect()

    assert "RUN_FINISHED" not in types_of(aborted)
    assert (None, []) == (seen["error"], seen["interrupts"])
    assert "RUN_FINISHED" == types_of(seen)[-1]


@CLIENTS
def test_a_page_sends_a_message_after_a_resumed_run_has_failed(
    user: Caller, client: AguiProcess, version: str
) -> None:
    """A RUN_ERROR says nothing about interrupts."""
    name, query = f"failed {version}", "?persona_id=careful"
    agent = client.agent(user, name, query=query, client=version)
    asked = agent.run(script(CALCULATE, {"error": "invalid_request"}))
    failed = agent.run(resume=approval_of(asked))
    sent = agent.run("Hello")

    assert "RUN_ERROR" == types_of(failed)[-1]
    assert None is sent["error"]
    assert ("assistant", "You said: Hello") == shown(sent)[-1]


@CLIENTS
def test_a_page_connects_after_another_device_has_replied(
    user: Caller, client: AguiProcess, version: str
) -> None:
    """Its own list of interrupts has the one that is over."""
    name, query = f"other device {version}", "?persona_id=careful"
    agent = client.agent(user, name, query=query, client=version)
    asked = agent.run(script(CALCULATE, {"say": "Done."}))
    client.agent(user, name, query=f"{query}&").run(resume=approval_of(asked))
    seen = agent.connect()

    assert (None, []) == (seen["error"], seen["interrupts"])
    assert ("assistant", "Done.") == shown(seen)[-1]


@CLIENTS
def test_a_page_cancels_an_interrupt_that_has_expired(
    user: Caller, client: AguiProcess, version: str
) -> None:
    """It is sent together with the user's next message."""
    key = f"hasty-{secrets.token_hex(4)}"
    fields = {"tools": ["calculator"], "require_approval": ["calculator"]}
    persona = user.made("/v1/personas", {"key": key, "input_expires_seconds": 1, **fields})
    query = f"?persona_id={persona['id']}"
    agent = client.agent(user, f"expired {version}", query=query, client=version)
    [interrupt] = agent.run(script(CALCULATE))["interrupts"]
    [thread] = user.get("/v1/threads", external_id=f"expired {version}")
    eventually(lambda: user.get(f"/v1/threads/{thread['id']}")["active_run_id"] is None)
    cancel = [{"interruptId": interrupt["id"], "status": "cancelled"}]
    sent = agent.run("Never mind.", resume=cancel)

    assert None is sent["error"]
    assert ("assistant", "You said: Never mind.") == shown(sent)[-1]


@CLIENTS
def test_a_message_beside_an_open_interrupt_leaves_it_to_the_page(
    user: Caller, client: AguiProcess, version: str
) -> None:
    """The service refuses the message, and the person can still approve."""
    name, query = f"beside {version}", "?persona_id=careful"
    agent = client.agent(user, name, query=query, client=version)
    asked = agent.run(script(CALCULATE, {"say": "Done."}))
    refused = agent.run("Hello")

    assert ["runs.thread_busy"] == [
        event["code"] for event in refused["events"] if event["type"] == "RUN_ERROR"
    ]
    assert asked["interrupts"] == refused["interrupts"]
    assert ("assistant", "Done.") == shown(agent.run(resume=approval_of(asked)))[-1]
