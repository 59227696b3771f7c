"""The places of what is wrong in a JSON Schema, in the messages that refuse it."""

from collections.abc import Mapping
from typing import Any

import pytest

from arkloop.shared import portable_schema
from arkloop.shared.json_schema import InvalidSchema, JsonSchema
from arkloop.shared.schema_pointers import pointer_to

DRAFT_7 = "http://json-schema.org/draft-07/schema#"
WRONG = {"type": "strng"}


def refusals(schema: Mapping[str, Any]) -> tuple[str, str]:
    """Return the messages of both checks that every schema of a caller has to pass."""
    with pytest.raises(InvalidSchema) as of_calls:
        JsonSchema(schema)
    with pytest.raises(InvalidSchema) as of_vendors:
        portable_schema.check(schema)
    return str(of_calls.value), str(of_vendors.value)


@pytest.mark.parametrize(
    ("properties", "place"),
    [
        ({"q": {"type": "string", "required": True}}, "/properties/q/required"),
        ({"q": WRONG}, "/properties/q/type"),
        ({"a/b~c": {"anyOf": [{}, WRONG]}}, "/properties/a~1b~0c/anyOf/1/type"),
    ],
)
def test_a_refusal_names_the_place(properties: dict[str, Any], place: str) -> None:
    """The place is a JSON Pointer (RFC 6901) into the schema, behind what is wrong there."""
    for message in refusals({"type": "object", "properties": properties}):
        assert message.startswith("Not a JSON Schema: ")
        assert message.endswith(f", at {place}")


@pytest.mark.parametrize("draft", [{}, {"$schema": DRAFT_7}])
def test_a_place_is_one_of_the_schema_as_it_was_written(draft: dict[str, str]) -> None:
    """A check replaces references by what they lead to; the place is where that is written."""
    schema = {
        **draft,
        "type": "object",
        "properties": {"q": {"$ref": "#/$defs/X"}},
        "$defs": {"X": WRONG},
    }
    for message in refusals(schema):
        assert message.endswith(", at /$defs/X/type")


REQUIRED = {"type": "object", "properties": {"p": {"type": "string", "required": True}}}
PATTERN = {"pattern": "(?=a)"}  # is not supported, so that the schema is changed
OLD: dict[str, Any] = {"$schema": DRAFT_7}


@pytest.mark.parametrize(
    ("schema", "place"),
    [
        ({"properties": {"q": {"$ref": "#/$defs/X"}}}, "/$defs/X/properties/p/required"),
        ({"$ref": "#/$defs/X", "type": "object"}, "/$defs/X/properties/p/required"),
        ({"properties": {"q": {"$ref": "#/$defs/~Y"}}}, "/$defs/X/properties/p/required"),
        ({"allOf": [{}, {}], "$ref": "#/$defs/X"}, "/$defs/X/properties/p/required"),
        ({"$ref": "#/$defs/Z", "properties": {"q": WRONG}}, "/properties/q/type"),
        ({"allOf": [{}], "oneOf": [{}, WRONG, PATTERN]}, "/oneOf/1/type"),
        ({"oneOf": [{}, WRONG, {"format": "uri"}]}, "/oneOf/1/type"),
        ({"$ref": "#/$defs/Z", "oneOf": [{"anyOf": [WRONG]}, PATTERN]}, "/oneOf/0/anyOf/0/type"),
        ({**OLD, "properties": {"q": {"$ref": "#/$defs/W", "type": "object"}}}, "/properties/q"),
        ({**OLD, "$ref": "#/$defs/~Y", "type": "object"}, "/$defs/X/properties/p/required"),
    ],
)
def test_a_place_behind_references_is_a_true_one(schema: dict[str, Any], place: str) -> None:
    """A reference may stand beside other keywords, which old drafts ignore, or lead to another."""
    definitions = {"X": REQUIRED, "~Y": {"$ref": "#/$defs/X"}, "Z": {"properties": {}}, "W": WRONG}
    with pytest.raises(InvalidSchema) as refused:
        JsonSchema({**schema, "$defs": definitions})

    assert place == str(refused.value).partition(", at ")[2]


@pytest.mark.parametrize("definition", [{"$ref": "#/$defs/X"}, {}, None])
def test_a_path_that_leads_nowhere_ends(definition: Any) -> None:
    """The reference may lead to itself: the place is then what is before it."""
    schema = {**OLD, "properties": {"q": {"$ref": "#/$defs/X"}}, "$defs": {"X": definition}}

    assert "/properties/q" == pointer_to(schema, ["properties", "q", "items", "type"])


def test_what_is_wrong_with_the_whole_schema_has_no_place() -> None:
    """A draft that does not exist is nothing of a part of the schema."""
    with pytest.raises(InvalidSchema) as refused:
        JsonSchema({"$schema": "https://example.com/mine"})

    assert ", at" not in str(refused.value)


def test_a_place_is_shortened() -> None:
    """The names in it may be as long as others make them."""
    for message in refusals({"type": "object", "properties": {"q" * 5_000: WRONG}}):
        assert len(message) < 600


def test_a_reference_that_leads_nowhere_is_named() -> None:
    """Both checks name it."""
    schema = {"type": "object", "properties": {"q": {"$ref": "#/definitions/X"}}}

    assert {"Unresolvable `$ref`: #/definitions/X"} == {*refusals(schema)}
