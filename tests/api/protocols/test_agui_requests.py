"""The parts of a `RunAgentInput` that count."""

from typing import Any

import pytest

from arkloop.api.protocols.agui import INPUT
from tests.api.protocols.test_agui_runs import SAID, TOOL, newest, send
from tests.clients import User, details_of
from tests.stored_runs import StoredRuns

DECLARED = {**TOOL, "description": "Locate the user.", "parameters": {"type": "object"}}
OTHER = {"name": "look_up", "description": "x"}


@pytest.mark.parametrize(
    ("overrides", "sent", "added"),
    [([], [TOOL], []), (["tools"], [TOOL], []), (["tools"], [OTHER, TOOL], ["look_up"])],
)
def test_a_tool_that_the_persona_declares_keeps_its_definition(
    alice: User, stored: StoredRuns, overrides: list[str], sent: list[Any], added: list[str]
) -> None:
    """CopilotKit sends each tool that the page executes."""
    fields = {"key": "page", "client_tools": [{**DECLARED, "client": True}], "overrides": overrides}
    made = alice.post("/v1/personas", json=fields)
    assert 201 == made.status_code, made.text

    response = send(alice, SAID, tools=sent, query="?persona_id=page")

    assert 200 == response.status_code, response.text
    response.close()
    run: Any = alice.get(f"/v1/runs/{newest(stored)}").json
    assert added == [tool["name"] for tool in (run["overrides"] or {}).get("tools", ())]


LONG = {"description": "d", "value": "v" * 65_536}


@pytest.mark.parametrize(
    ("overrides", "context", "why"),
    [
        ([], [{"description": "d", "value": "v"}], "does not allow"),
        (["instructions"], [LONG], "at most"),
    ],
)
def test_a_context_that_is_refused_is_named(
    alice: User, overrides: list[str], context: list[Any], why: str
) -> None:
    """The page has sent no `instructions`."""
    made = alice.post("/v1/personas", json={"key": "strict", "overrides": overrides})
    assert 201 == made.status_code, made.text

    response = send(alice, SAID, tools=[], context=context, query="?persona_id=strict")

    assert (422, ["context"]) == (response.status_code, list(details_of(response)))
    assert why in response.text


@pytest.mark.parametrize("name", sorted(set(INPUT["properties"]) - set(INPUT["required"])))
def test_a_member_may_be_null(alice: User, name: str) -> None:
    """The protocol has it so; clients that check what they send do it by the description."""
    body = {"threadId": "chat-1", "runId": "r-1", "messages": [SAID], name: None}

    for path in ("/v1/agui", "/v1/agui/connect"):
        response = alice.post(path, json=body)
        assert 200 == response.status_code, response.text
        response.close()
    assert "null" in INPUT["properties"][name]["type"]
