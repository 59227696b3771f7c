"""Arguments with names that Claude's API refuses."""

import json
from typing import Any

import jsonschema_rs
import pytest

from arkloop.worker.contract.messages import ModelRequest, ToolSpec
from arkloop.worker.providers.anthropic_request import arguments
from arkloop.worker.providers.property_names import tools_for, with_accepted_names
from arkloop.worker.providers.responses_request import body

TEXT = {"type": "string"}
NAME = {**TEXT, "description": "À la"}
SEARCH = ToolSpec(
    "search",
    "Searches.",
    {
        "type": "object",
        "properties": {"$select": TEXT, "filter[name]": NAME, "q": TEXT},
        "required": ["q", "$select"],
        "additionalProperties": False,
    },
)
KEPT = {"type": "object", "properties": {"q": TEXT}, "required": ["q"]}


def request(model: str, **fields: Any) -> ModelRequest:
    return ModelRequest(model=model, system_prompt="", messages=[], tools=[SEARCH], **fields)


def test_refused_names_move_to_the_description() -> None:
    """The model reads the whole schema of these arguments, and which of them are required."""
    tool = with_accepted_names(SEARCH)

    assert KEPT == tool.parameters
    text, _, further = tool.description.partition("as JSON Schema: ")
    assert text.startswith("Searches.\n\n")
    expected = {"properties": {"$select": TEXT, "filter[name]": NAME}, "required": ["$select"]}
    assert expected == json.loads(further)
    assert "À la" in further


@pytest.mark.parametrize(
    "parameters",
    [
        {"type": "object"},
        {"type": "object", "properties": {"a.b-C_1": TEXT, "x" * 64: TEXT}},
        {"type": "object", "properties": {"a": {"properties": {"$b": TEXT}}}},
    ],
)
def test_accepted_names_change_nothing(parameters: dict[str, Any]) -> None:
    """The API looks at the names at the top alone."""
    tool = ToolSpec("t", "A tool.", parameters)

    assert with_accepted_names(tool) is tool


@pytest.mark.parametrize(("name", "is_kept"), [("x" * 65, False), ("a b", False), ("é", False)])
def test_a_name_that_is_refused_is_recognized(name: str, is_kept: bool) -> None:
    """It may be too long, or have another character."""
    tool = with_accepted_names(ToolSpec("t", "A tool.", {"properties": {name: TEXT}}))

    assert is_kept == (name in tool.parameters["properties"])
    assert name in tool.description


def test_what_refers_to_a_refused_name_still_leads_to_its_schema() -> None:
    """A reference that leads nowhere makes the API refuse the request."""
    date = {"type": "object", "properties": {"dateTime": TEXT}}
    dates = {"$start": date, "end": {"$ref": "#/properties/$start"}}
    tool = ToolSpec("list_events", "Lists events.", {"type": "object", "properties": dates})

    sent = with_accepted_names(tool.portable).parameters

    assert ["end"] == list(sent["properties"])
    validator = jsonschema_rs.validator_for(dict(sent))
    assert validator.is_valid({"end": {"dateTime": "2026-01-01"}})
    assert not validator.is_valid({"end": {"dateTime": 1}})


def test_only_requests_to_claude_are_changed() -> None:
    """Other vendors accept these names, and models use properties better than descriptions."""
    [sent] = arguments(request("claude-sonnet-4-5"))["tools"]
    assert KEPT == sent["input_schema"]
    assert "filter[name]" in sent["description"]

    for model in ("anthropic/claude-sonnet-4.5", "us.anthropic.Claude-Opus-4-1"):
        [tool] = tools_for(model, [SEARCH])
        assert KEPT == tool.parameters
        assert KEPT == body(request(model), is_vendor=False)["tools"][0]["parameters"]
    assert SEARCH.parameters == body(request("gpt-5"), is_vendor=True)["tools"][0]["parameters"]
