"""Responses of a persona that declares client tools itself, whose clients name them as well."""

from typing import Any
from uuid import UUID

import pytest

from arkloop.shared.runs import overrides
from tests.api.protocols.test_responses import SERVER, refused
from tests.api.protocols.test_responses_repeats import run_of
from tests.clients import User
from tests.stored_runs import StoredRuns

LOCATE = {"name": "locate", "description": "Return where the user is.", "client": True}
TOOLS = [{**LOCATE, "parameters": {"type": "object"}}]
DECLARED = {"type": "function", "name": "locate", "parameters": {"type": "object"}}
OTHER = {**DECLARED, "name": "look_up"}
WRONG = {**DECLARED, "name": "two words"}


def ask(alice: User, allowed: list[str], *tools: Any) -> dict[str, Any]:
    """Return a request for a persona with the tool `locate`, of which these may be overridden."""
    fields = {"key": "declares", "tools": ["calculator"], "overrides": allowed}
    made = alice.post("/v1/personas", json={**fields, "client_tools": TOOLS})
    assert 201 == made.status_code, made.text
    return {"model": "declares", "input": "Hello", "background": True, "tools": list(tools)}


@pytest.mark.parametrize(
    ("allowed", "tools", "added"),
    [([], [DECLARED], []), (["tools"], [DECLARED], []), (["tools"], [DECLARED, OTHER], [OTHER])],
)
def test_a_tool_of_the_persona_is_no_override(
    alice: User, stored: StoredRuns, allowed: list[str], tools: list[Any], added: list[Any]
) -> None:
    """A client has to name it, or its SDK cannot execute the calls; other tools are added."""
    made = alice.post("/v1/responses", json=ask(alice, allowed, *tools))

    options = overrides.given(stored.row(run_of(made))["options"]) or {}
    names = [tool["name"] for tool in options.get("tools", ())]
    assert [tool["name"] for tool in added] == names


@pytest.mark.parametrize(
    ("allowed", "tools", "why"),
    [
        (["tools"], [DECLARED, {**DECLARED, "name": "calculator"}], "'calculator' is in use"),
        (["tools"], [SERVER, DECLARED, OTHER, WRONG], "[3].name must"),
        ([], [DECLARED, OTHER], "does not allow this override"),
        ([], [{**DECLARED, "kind": "x"}], "is not supported"),
        ([], [DECLARED, SERVER, DECLARED], "duplicate tool 'locate'"),
        (["tools"], [DECLARED, OTHER, OTHER], "duplicate tool 'look_up'"),
        (["tools"], [DECLARED, {**OTHER, "name": ["locate"]}], "[1].name must"),
        ([], [SERVER] * 193, "at most 192 tools"),
    ],
)
def test_another_tool_is_checked_as_before(
    alice: User, allowed: list[str], tools: list[Any], why: str
) -> None:
    """Errors have the places that functions have among all tools of the request."""
    response = alice.post("/v1/responses", json=ask(alice, allowed, *tools))

    status, param, _ = refused(response)
    assert (400, "tools") == (status, (param or "")[:5])
    assert why in response.text


def test_a_request_with_a_tool_of_the_persona_is_sent_again(
    alice: User, stored: StoredRuns
) -> None:
    """It gets the response of the first one, which has the same overrides."""
    body = ask(alice, ["tools"], DECLARED, OTHER)
    first = run_of(alice.post("/v1/responses", json=body))
    stored.finish(stored.held(first), message=(UUID(int=1), "Hello."))
    again = {**body, "input": "Which city?", "previous_response_id": f"resp_{first.hex}"}

    made = [run_of(alice.post("/v1/responses", json=again)) for _ in range(2)]

    assert made[0] == made[1] != first
