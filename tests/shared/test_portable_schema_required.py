"""Required properties in the schemas of tools as they are sent to vendors."""

import json
from copy import deepcopy
from typing import Any

import pytest

from arkloop.shared.json_schema import InvalidSchema, JsonSchema
from arkloop.shared.portable_schema import check, portable

TEXT = {"type": "string"}


def of(*required: Any, **properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": [*required]}


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        # browser_click and browser_type of issue 154 of iBUHub/AIStudioToAPI
        (of("ref"), {"type": "object", "properties": {}}),
        (of("ref", "text", text=TEXT), of("text", text=TEXT)),
        ({"type": "object", "required": ["a"]}, {"type": "object"}),
        (
            of("rows", rows={"type": "array", "items": {"type": "object", "required": ["id"]}}),
            of("rows", rows={"type": "array", "items": {"type": "object"}}),
        ),
        (
            of("a", a={"type": ["object", "null"], "required": ["b"], "title": "A"}),
            of("a", a={"type": ["object", "null"], "title": "A"}),
        ),
        # Of the alternatives at the top, only one has the property.
        (
            {**of("a", "b"), "anyOf": [of(a=TEXT), of(c=TEXT)]},
            {"type": "object", "properties": {"a": TEXT, "c": TEXT}, "required": ["a"]},
        ),
        (
            of(a={"$ref": "#/definitions/A"}) | {"definitions": {"A": of("b", "c", c=TEXT)}},
            of(a={"$ref": "#/$defs/A"}) | {"$defs": {"A": of("c", c=TEXT)}},
        ),
    ],
)
def test_a_property_without_a_definition_is_not_required(
    schema: dict[str, Any], expected: dict[str, Any]
) -> None:
    """Google refuses the whole request for one: "required[0]: property is not defined"."""
    before = deepcopy(schema)

    sent = portable(schema)

    assert json.dumps(expected) == json.dumps(sent)
    assert before == schema
    assert portable(sent) is sent
    check(schema)


@pytest.mark.parametrize(
    "part",
    [
        # The definition stands beside it.
        {"type": "object", "required": ["b"], "allOf": [{"$ref": "#/$defs/B"}]},
        {**of("kind", "b", kind=TEXT), "anyOf": [{"$ref": "#/$defs/B"}]},
        # Conditions on a value that is described elsewhere; without them, others would hold.
        {"properties": {"b": TEXT}, "anyOf": [{"required": ["b"]}, {"required": ["c"]}]},
        {"not": {"type": "object", "required": ["b"]}},
        {
            "if": {"properties": {"a": {"const": 1}}, "required": ["a", "b"]},
            "then": of("b", b=TEXT),
        },
        {"not": {"anyOf": [of("b")]}},
        {"not": {"properties": {"q": of("b")}}},
        {"type": "object", "if": {"allOf": [of("b")]}, "then": of(b=TEXT), "else": {"not": {}}},
        {"type": "array", "items": {}, "contains": of("b"), "maxContains": 1},
        {**of(a=TEXT, b=TEXT), "oneOf": [of("a"), of("b")]},
        {**of(), "oneOf": [{"properties": {"q": of("a")}}, {"properties": {"q": of("b")}}]},
        # The definition stands in the node around it, or in another member.
        {**of(a=TEXT, b=TEXT), "anyOf": [of("a"), of("b")]},
        {**of(a=TEXT, b=TEXT), "if": {"required": ["a"]}, "then": of("b"), "else": of("c")},
        {**of(a=TEXT, b=TEXT), "dependentSchemas": {"a": of("b")}},
        {"allOf": [{"$ref": "#/$defs/B"}, of("b")]},
        {"allOf": [of(q=of(b=TEXT)), of(q=of("b"))]},
        # Names, and no lists of them
        {"type": "object", "properties": {"required": {"type": "array", "items": {}}}},
        {"enum": [{"type": "object", "required": ["b"]}]},
    ],
)
def test_what_a_part_requires_of_others_is_kept(part: dict[str, Any]) -> None:
    """It is the same object, so that the prompt stays as the vendor has cached it."""
    schema = {"type": "object", "properties": {"p": part}, "$defs": {"B": of("b", b=TEXT)}}

    assert portable(schema) is schema


@pytest.mark.parametrize(
    "part",
    [
        {"not": {"$ref": "#/$defs/A"}},
        {"not": {"anyOf": [{"type": "object", "properties": {"q": {"$ref": "#/$defs/A"}}}]}},
        {**of(a=TEXT, b=TEXT), "oneOf": [{"$ref": "#/$defs/A"}, {"$ref": "#/$defs/C"}]},
        {"not": {"$ref": "#/$defs/Outer"}},
        # The other member defines the property.
        {"allOf": [{"$ref": "#/$defs/A"}, of(a=TEXT)]},
    ],
)
def test_a_definition_that_decides_something_is_kept(part: dict[str, Any]) -> None:
    """The others require only what they define."""
    kept = {"A": of("a"), "C": of("c"), "Outer": of(q={"$ref": "#/$defs/A"})}
    schema = of(p=part) | {"$defs": {**kept, "D": of("d")}}

    sent = portable(schema)["$defs"]

    assert {"type": "object", "properties": {}} == sent["D"]
    assert of("a") == sent["A"]


@pytest.mark.parametrize(
    "reference",
    [
        {"anyOf": [{"$ref": "#/$defs/A"}, {"type": "null"}]},
        {"allOf": [{"$ref": "#/$defs/A"}]},
        {"type": "array", "items": {"$ref": "#/$defs/A"}},
        of(**{"not": {"$ref": "#/$defs/A"}}),  # the name of a property
    ],
)
def test_a_definition_requires_only_what_it_defines(reference: dict[str, Any]) -> None:
    """Such references are those of an optional value, or of one with a description."""
    sent = portable(of(p=reference) | {"$defs": {"A": of("a")}})

    assert {"type": "object", "properties": {}} == sent["$defs"]["A"]


def test_the_top_is_kept_where_a_condition_refers_to_it() -> None:
    """The condition has a copy, which means the same as before."""
    sent = portable(of("a", q={"not": {"$ref": "#"}}))

    assert "required" not in sent
    assert ["a"] == sent["$defs"]["root"]["required"]


def test_names_that_are_no_strings_are_reported() -> None:
    """A schema does not become valid by what it loses."""
    with pytest.raises(InvalidSchema, match="Not a JSON Schema: 5 is not of type"):
        check(of("a", 5))


def test_calls_are_checked_against_all_that_the_author_requires() -> None:
    """The form is for the model alone."""
    schema = of("ref")

    assert "required" not in portable(schema)
    assert not JsonSchema(schema).validator.is_valid({})
