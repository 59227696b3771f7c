"""Overrides of requests for responses: what counts as one, and how those are refused."""

from typing import Any
from uuid import UUID

import pytest

from arkloop.shared.ids import new_id
from arkloop.shared.runs import overrides
from tests.api.protocols.test_responses import SERVER, refused
from tests.api.protocols.test_responses_input import calling, output
from tests.api.protocols.test_responses_repeats import run_of
from tests.clients import User
from tests.end_users import end_user
from tests.stored_runs import StoredRuns

LOCATE = {"name": "locate", "description": "Return where the user is.", "client": True}
TOOLS = [{**LOCATE, "parameters": {"type": "object"}}]
DECLARED = {"type": "function", "name": "locate", "parameters": {"type": "object"}}
OTHER = {**DECLARED, "name": "look_up"}
WRONG = {**DECLARED, "name": "two words"}
BY_DEFAULT = {"tool_choice": "auto", "parallel_tool_calls": True}


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


def body_for(alice: User, *, allows: bool, of_persona: Any = None, of_route: Any = None) -> Any:
    """Return a request for a persona that perhaps allows settings, and a model with these."""
    model = {"model": "m", "model_settings": of_route}
    given = {"name": "own", "kind": "openai", "models": [model]}
    provider = alice.post("/v1/llm-providers", given)
    assert 201 == provider.status_code and provider.json, provider.text
    route_id = provider.json["models"][0]["route_id"]
    fields = {"overrides": ["model_settings", "limits"] if allows else []}
    made = alice.post(
        "/v1/personas",
        {"key": "set", "route_id": route_id, "model_settings": of_persona or {}, **fields},
    )
    assert 201 == made.status_code, made.text
    return {"model": "set", "input": "Hello", "background": True}


@pytest.mark.parametrize(
    ("of_persona", "of_route"),
    [
        ({}, {}),
        ({"tool_choice": "auto"}, {"tool_choice": "none"}),
        ({"tool_choice": None, "temperature": 1}, {"tool_choice": "required"}),
    ],
)
@pytest.mark.parametrize(("is_end_user", "allows"), [(False, False), (True, False), (True, True)])
def test_a_setting_that_applies_anyway_is_no_override(
    alice: User,
    stored: StoredRuns,
    of_persona: Any,
    of_route: Any,
    is_end_user: bool,
    allows: bool,
) -> None:
    """SDKs send the API's defaults by themselves."""
    body = body_for(alice, allows=allows, of_persona=of_persona, of_route=of_route)
    caller = end_user(alice, persona_id="set") if is_end_user else alice

    made = caller.post("/v1/responses", {**body, **BY_DEFAULT})

    assert stored.row(run_of(made))["options"] is None
    shown = {name: (made.json or {})[name] for name in BY_DEFAULT}
    assert BY_DEFAULT == shown


def test_a_setting_that_the_persona_allows_is_kept(alice: User, stored: StoredRuns) -> None:
    """Processes of earlier commits know a request that is sent again by it."""
    made = alice.post("/v1/responses", {**body_for(alice, allows=True), **BY_DEFAULT})

    assert {"model_settings": BY_DEFAULT} == stored.row(run_of(made))["options"]


@pytest.mark.parametrize(
    ("of_persona", "of_route", "given", "param"),
    [
        ({"tool_choice": "required"}, {}, {"tool_choice": "auto"}, "tool_choice"),
        ({}, {"tool_choice": "none"}, {"tool_choice": "auto"}, "tool_choice"),
        ({}, {"parallel_tool_calls": False}, BY_DEFAULT, "parallel_tool_calls"),
        ({}, {}, {"parallel_tool_calls": 1}, "parallel_tool_calls"),
        ({}, {}, {"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": "required"}, {}, {"tool_choice": "required"}, "tool_choice"),
        ({}, {"parallel_tool_calls": False}, {"parallel_tool_calls": False}, "parallel_tool_calls"),
        ({}, {}, {**BY_DEFAULT, "temperature": 1}, "temperature"),
    ],
)
def test_a_setting_that_changes_something_is_refused(
    alice: User, of_persona: Any, of_route: Any, given: Any, param: str
) -> None:
    """A default is an override, too, where the persona or the route has another value.

    Other values are, even if they apply: the response would show the default.
    """
    body = body_for(alice, allows=False, of_persona=of_persona, of_route=of_route)

    response = alice.post("/v1/responses", {**body, **given})

    assert (400, param, "validation.error") == refused(response)
    assert 1 == response.text.count("does not allow")


@pytest.mark.parametrize(
    ("given", "param", "also"),
    [
        ({"reasoning": {"effort": "low"}, "tool_choice": "auto"}, "reasoning.effort", ""),
        ({"temperature": 0.5, "max_output_tokens": 5}, "temperature", "max_output_tokens: "),
        ({"metadata": {"team": "red"}}, "metadata", ""),
    ],
)
def test_what_an_end_user_cannot_set_is_named(
    alice: User, given: Any, param: str, also: str
) -> None:
    """An SDK may have sent it by itself."""
    body = body_for(alice, allows=True)
    response = end_user(alice, persona_id="set").post("/v1/responses", {**body, **given})

    assert (403, param, "auth.forbidden") == refused(response)
    assert f"{param}: " in response.text and also in response.text
    assert "tool_choice" not in response.text


@pytest.mark.parametrize(
    ("fields", "params"),
    [
        ({}, "input[0]: {why}; input[2]: {why}"),
        ({"instructions": ""}, "input[0]: {why}; input[2]: {why}"),
        ({"instructions": "Be brief."}, "instructions: {why}"),
    ],
)
@pytest.mark.parametrize("is_end_user", [True, False])
def test_instructions_that_are_refused_have_their_place(
    alice: User, fields: dict[str, Any], params: str, is_end_user: bool
) -> None:
    """A request without `instructions` has them in messages of the system and of developers."""
    allowed = ["instructions"] if is_end_user else []
    given = {"key": "set", "route_id": "scripted", "overrides": allowed}
    assert 201 == alice.post("/v1/personas", given).status_code
    caller = end_user(alice, persona_id="set") if is_end_user else alice
    items = [{"role": role, "content": "Hi!"} for role in ("developer", "user", "system")]

    response = caller.post("/v1/responses", {"model": "set", "input": items, **fields})

    why = "the persona 'set@1' does not allow this override"
    why = "a client token cannot set it" if is_end_user else why
    error = (response.json or {})["error"]
    assert (403 if is_end_user else 400) == response.status_code, response.text
    assert params.format(why=why) == error["message"]
    assert params.partition(":")[0] == error["param"]


@pytest.mark.parametrize("began_to_allow", [True, False])
def test_a_request_with_defaults_is_known_in_another_version_of_its_persona(
    alice: User, stored: StoredRuns, began_to_allow: bool
) -> None:
    """They are overrides in one version, and none in the other; other values still count."""
    fields = {"key": "set", "route_id": "scripted"}
    versions = [{**fields, "overrides": names} for names in ([], ["model_settings"])]
    before, after = versions if began_to_allow else reversed(versions)
    assert 201 == alice.post("/v1/personas", before).status_code
    body = {"model": "set", "input": "Hello", "background": True, **BY_DEFAULT}
    first = run_of(alice.post("/v1/responses", body))
    stored.finish(stored.held(first), message=(new_id(), "Hello."))
    body |= {"input": "Which city?", "previous_response_id": f"resp_{first.hex}"}
    made = run_of(alice.post("/v1/responses", body))

    assert 201 == alice.post("/v1/personas", after).status_code
    again = alice.post("/v1/responses", body)
    other = alice.post("/v1/responses", {**body, "tool_choice": "required"})

    assert made == run_of(again)
    assert (409 if began_to_allow else 400) == other.status_code, other.text


@pytest.mark.parametrize("sent", [BY_DEFAULT, {"tool_choice": "auto"}])
@pytest.mark.parametrize("began_to_allow", [True, False])
def test_outputs_and_a_message_with_defaults_are_known_in_another_version_of_the_persona(
    alice: User, stored: StoredRuns, began_to_allow: bool, sent: dict[str, Any]
) -> None:
    """The defaults are overrides in one version, and none in the other."""
    fields = {"key": "set", "route_id": "scripted"}
    versions = [{**fields, "overrides": ["tools", *also]} for also in ([], ["model_settings"])]
    before, after = versions if began_to_allow else reversed(versions)
    assert 201 == alice.post("/v1/personas", before).status_code
    _, calls = calling(stored, alice, "a", model="set")
    items = [*calls, output("a"), {"role": "user", "content": "And now?"}]
    body = {"model": "set", "input": items, "background": True, **sent}
    made = alice.post("/v1/responses", body)

    assert 201 == alice.post("/v1/personas", after).status_code
    again = alice.post("/v1/responses", body)
    other = alice.post("/v1/responses", {**body, "tool_choice": "required"})

    assert (made.json or {})["id"] == (again.json or {}).get("id"), again.text
    assert (409 if began_to_allow else 400) == other.status_code, other.text
