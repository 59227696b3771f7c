"""The input that servers request from people: what a run asks, and what it does not."""

import math
from typing import Any

import mcp_types as types
import pytest

from arkloop.worker.mcp import McpFailed
from arkloop.worker.mcp.elicitations import MAX_ASKED, MAX_STATE_CHARACTERS, asked_by

FORM = {"mode": "form", "message": "Which?", "requestedSchema": {"type": "object"}}
PAGE = {"mode": "url", "message": "Log in.", "url": "https://example.com/login"}


def result(*params: dict[str, Any], state: str | None = None) -> types.InputRequiredResult:
    requests = {
        f"k{n}": {"method": "elicitation/create", "params": one} for n, one in enumerate(params)
    }
    fields = {"resultType": "input_required", "inputRequests": requests, "requestState": state}
    return types.InputRequiredResult.model_validate(fields)


def form(schema: dict[str, Any]) -> dict[str, Any]:
    return {**FORM, "requestedSchema": {"type": "object", "properties": {}, **schema}}


def test_forms_and_pages_are_asked_in_their_order() -> None:
    """Each under the server's key, with the state that it requires back."""
    expected = [
        {"key": "k0", "prompt": "Log in.", "kind": "authorization", "url": PAGE["url"]},
        {"key": "k1", "prompt": "Which?", "kind": "form", "schema": {"type": "object"}},
    ]
    assert {"asked": expected, "state": "s"} == asked_by(result(PAGE, FORM, state="s"))


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (result(*[FORM] * (MAX_ASKED + 1)), "more than 8 inputs"),
        (result(FORM, state="x" * (MAX_STATE_CHARACTERS + 1)), "larger than 64 KiB"),
        (result({**PAGE, "url": "javascript:alert(1)"}), "no web page"),
        (result({**PAGE, "url": "https://["}), "no web page"),
        (result({**FORM, "requestedSchema": {"type": "cat"}}), "unusable schema"),
        (result({**FORM, "requestedSchema": {"x": "y" * 20_000}}), "too large"),
        (result(form({"title": "a\0"})), "has a NUL"),
        (result(form({"properties": {"a\0": {"type": "string"}}})), "has a NUL"),
        (result(form({"properties": {"a": {"maximum": math.inf}}})), "not finite"),
        (types.InputRequiredResult(request_state="s"), "called again later"),
        (
            types.InputRequiredResult(input_requests={"k": types.ListRootsRequest()}),
            "requests roots/list",
        ),
    ],
)
def test_requests_that_no_person_should_get_fail_the_call(
    given: types.InputRequiredResult, why: str
) -> None:
    """The model reads why."""
    with pytest.raises(McpFailed, match=why):
        asked_by(given)
