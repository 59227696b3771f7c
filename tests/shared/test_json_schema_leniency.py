"""Schemas with parts that are not checked: no value is refused for it."""

from typing import Any

import pytest

from arkloop.shared.json_schema import JsonSchema


@pytest.mark.parametrize(
    "part",
    [
        {"type": "string", "pattern": "^(?=foo)"},
        {"properties": {"n": {"$ref": "#"}}, "required": ["n"]},
    ],
    ids=["pattern", "recursion"],
)
def test_items_that_match_more_often_are_not_too_many(part: dict[str, Any]) -> None:
    """More items match what `contains` has left than the author meant, so their greatest number
    does not hold.
    """
    schema = JsonSchema({"contains": part, "minContains": 1, "maxContains": 1})

    assert schema.unchecked
    assert schema.validator.is_valid(["foo", "bar", {"n": []}, {"n": []}])
    assert not schema.validator.is_valid([])


IP = {"oneOf": [{"type": "string", "format": "ipv4"}, {"type": "string", "format": "ipv6"}]}
UUID = {"format": "uuid"}


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        (IP, "1.2.3.4"),
        ({"allOf": [{"$ref": "#/$defs/ip"}], "$defs": {"ip": IP}}, "1.2.3.4"),
        ({"not": UUID}, "a"),
        ({"not": {"not": UUID}}, "a"),
        ({"if": UUID, "then": {"minLength": 36}}, "a"),
        ({"contains": UUID, "maxContains": 1}, ["a", "b"]),
        # Nothing says any more which of the properties were evaluated.
        (
            {
                "allOf": [{"if": {"properties": {"a": UUID}}, "else": {"properties": {"b": {}}}}],
                "unevaluatedProperties": False,
            },
            {"a": "a", "b": 1},
        ),
        (
            {
                "anyOf": [
                    {
                        "if": {"properties": {"a": UUID}},
                        "then": {"properties": {"b": {}}},
                        "unevaluatedProperties": True,
                    }
                ],
                "unevaluatedProperties": False,
            },
            {"b": 1},
        ),
    ],
)
def test_a_format_refuses_nothing(schema: dict[str, Any], value: Any) -> None:
    """It is not checked, and without it more alternatives fit than the author meant."""
    compiled = JsonSchema(schema)

    assert compiled.validator.is_valid(value)
    assert not compiled.unchecked


@pytest.mark.parametrize(
    ("beside", "value"),
    [
        ({"oneOf": [{"required": ["a"]}, {"required": ["b"]}]}, {"a": 1, "b": 1}),
        ({"not": {"required": ["a", "b"]}}, {"a": 1, "b": 1}),
        ({"if": {"required": ["a"]}, "then": {"required": ["b"]}}, {"a": 1}),
        ({"unevaluatedProperties": False}, {"c": 1}),
        ({"properties": {"c": {"contains": {}, "maxContains": 1}}}, {"c": [1, 1]}),
        ({"anyOf": [IP]}, 1),
    ],
)
def test_a_format_elsewhere_changes_nothing(beside: dict[str, Any], value: Any) -> None:
    """Nearly every schema has one somewhere, so only the keyword around it is more lenient."""
    schema = {"properties": {"a": {"anyOf": [UUID, {}]}, "b": {"format": "date-time"}}}

    assert not JsonSchema({"allOf": [schema], **beside}).validator.is_valid(value)
    assert not JsonSchema({**schema, **beside}).validator.is_valid(value)
