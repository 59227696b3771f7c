"""Definitions of client tools: what a persona or a run may declare."""

from typing import Any

import pytest

from arkloop.shared.catalog import client_tools
from arkloop.shared.catalog.personas import RESERVED_NAMES
from arkloop.worker import tools
from arkloop.worker.providers.output_modes import FINAL_TOOL

TOOL: dict[str, Any] = {
    "name": "locate",
    "description": "Returns where the user is.",
    "parameters": {"type": "object", "properties": {"z": {}, "a": {}}},
    "client": True,
}


def test_a_definition_is_stored_as_it_is_given() -> None:
    """The order of a schema's properties is kept: models write arguments in it."""
    text = client_tools.to_text([TOOL])

    read = client_tools.read(client_tools.from_text(text))

    assert [{**TOOL, "idempotent": False, "timeout_seconds": None}] == client_tools.shown(read)
    assert ["z", "a"] == list(read[0].parameters["properties"])


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"client": None}, "[0].client must be true"),
        ({"name": ""}, "[0].name must match"),
        ({"description": ""}, "[0].description must be a string"),
        ({"description": "x" * 4_097}, "[0].description must be a string"),
        ({"parameters": None}, "[0].parameters must be a JSON Schema"),
        ({"parameters": {"type": "string"}}, "[0].parameters must be a JSON Schema"),
        ({"timeout_seconds": 0.5}, "[0].timeout_seconds must be 1 to 2,592,000"),
        ({"timeout_seconds": 2_592_001}, "[0].timeout_seconds must be"),
        ({"timeout_seconds": True}, "[0].timeout_seconds must be"),
        ({"timeout_seconds": "5"}, "[0].timeout_seconds must be"),
        ({"idempotent": 1}, "[0].idempotent must be true or false"),
        ({"url": "x"}, "[0].url is an unknown field"),
        ({"parameters": {"type": "object", "x": "y" * 65_536}}, "must have at most 65,536 bytes"),
    ],
)
def test_a_definition_of_another_form_is_refused(changes: dict[str, Any], why: str) -> None:
    """The message names the place in the list and the field."""
    with pytest.raises(ValueError) as refused:
        client_tools.read([{**TOOL, **changes}])

    assert str(refused.value).startswith(why)


@pytest.mark.parametrize(
    "invalid",
    [
        {"required": "z"},
        {"properties": {"z": {"type": "text"}}},
        {"$defs": {"z": {"type": "text"}}},
        {"$anchor": 5},
    ],
)
def test_a_schema_for_which_vendors_refuse_the_request_is_refused(invalid: dict[str, Any]) -> None:
    """Each run would fail, also where nothing refers to what is invalid."""
    tools = client_tools.read([{**TOOL, "parameters": {"type": "object", **invalid}}])

    with pytest.raises(ValueError, match=r"^locate: Not a JSON Schema: "):
        client_tools.check_new(tools)


def test_schemas_that_are_large_together_are_refused() -> None:
    """Each is small: what their check costs is limited for all of them."""
    repeated = {"properties": {f"p{i}": {"$ref": "#/$defs/all"} for i in range(40)}}
    all_ = {"properties": {f"q{i}": {} for i in range(40)}}
    schema = {"type": "object", "$defs": {"all": all_}, **repeated}
    many = client_tools.read([{**TOOL, "name": f"t{i}", "parameters": schema} for i in range(4)])

    client_tools.check(many[:1])
    with pytest.raises(ValueError, match="too large together"):
        client_tools.check(many)


def test_schemas_whose_alternatives_are_large_together_are_refused() -> None:
    """Each is small, and draft 7 reads nothing of its alternative but the reference."""
    draft = "http://json-schema.org/draft-07/schema#"
    named: dict[str, Any] = {"properties": {f"{i:x}": {} for i in range(100)}}
    either = {"$ref": "#/e", "anyOf": [{"$ref": "#/x"}] * 60}
    schema = {"$schema": draft, "type": "object", "e": {}, "x": named, "anyOf": [either]}
    many = client_tools.read([{**TOOL, "name": f"t{i}", "parameters": schema} for i in range(30)])

    client_tools.check_new(many[:5])
    with pytest.raises(ValueError, match="too large together"):
        client_tools.check_new(many)


def test_names_that_every_agent_may_have_are_reserved() -> None:
    """No client tool can take the place of a tool that the loop knows by its name."""
    automatic = {*tools.AUTOMATIC_TOOLS, *tools.FAULT_TOOLS, FINAL_TOOL}

    assert automatic <= set(RESERVED_NAMES)
