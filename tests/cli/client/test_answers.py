"""Answers that a person or a script types as a line, as they are sent."""

import json
from typing import Any

import pytest

from arkloop.cli.client.answers import content_of

APPROVAL = {"kind": "tool_confirmation", "tool_call_id": "call_1"}
REPLY = {"decision": "approve", "reason": "loyal customer"}


def _form(*fields: str) -> dict[str, Any]:
    properties = {name: {"type": "string"} for name in fields}
    return {"kind": "form", "schema": {"type": "object", "properties": properties}}


@pytest.mark.parametrize(
    ("arguments", "sent"),
    [
        ({"amount": 5}, REPLY),
        (None, REPLY),
        ("a decision", REPLY),
        ({"decision": "deny"}, {"decision": "edit", "arguments": REPLY}),
    ],
    ids=["a whole reply", "no arguments", "a text as arguments", "new arguments"],
)
def test_an_object_is_new_arguments_where_an_argument_is_named_decision(
    arguments: Any, sent: dict[str, Any]
) -> None:
    """The call is not made with the former arguments because the new ones look like a verdict."""
    assert sent == json.loads(content_of(json.dumps(REPLY), APPROVAL, arguments))


@pytest.mark.parametrize(
    ("form", "sent"),
    [
        (_form("city"), {"action": "decline"}),
        (_form("action"), {"action": "accept", "content": {"action": "decline"}}),
    ],
    ids=["a whole reply", "the fields"],
)
def test_an_object_is_the_fields_of_a_form_that_has_an_action(
    form: dict[str, Any], sent: dict[str, Any]
) -> None:
    assert sent == json.loads(content_of('{"action": "decline"}', form, {}))
