"""Schemas with parts that are not checked: no value is refused for it."""

from typing import Any

import pytest

from arkloop.shared import portable_schema
from arkloop.shared.json_schema import InvalidSchema, JsonSchema


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


PAIR = {"type": "array", "items": [{"type": "integer"}, {"type": "string"}]}
#: Of each, a value that fits and one that does not.
OLD_WORDS: list[tuple[dict[str, Any], Any, Any]] = [
    (PAIR, [1, "a", None], ["a", 1]),
    ({**PAIR, "additionalItems": False}, [1, "a"], [1, "a", 2]),
    ({**PAIR, "additionalItems": {"type": "null"}}, [1, "a", None], [1, "a", 2]),
    ({"items": [], "additionalItems": {"type": "null"}}, [None], [1]),
    ({"items": [{"pattern": "^a+$"}]}, ["aa"], ["b"]),
    ({"minimum": 1, "exclusiveMinimum": True}, 2, 1),
    ({"maximum": 1, "exclusiveMaximum": False}, 1, 2),
    ({"minimum": 1, "exclusiveMaximum": True}, 1, 0),
]


@pytest.mark.parametrize(("part", "fitting", "other"), OLD_WORDS)
def test_words_of_older_drafts_need_no_schema_keyword(
    part: dict[str, Any], fitting: Any, other: Any
) -> None:
    """Pydantic 1 writes tuples so, and OpenAPI 3.0 bounds; in draft 2020-12 they mean nothing."""
    schema = {"type": "object", "properties": {"p": {"$ref": "#/$defs/x"}}, "$defs": {"x": part}}
    compiled = JsonSchema(schema)

    assert compiled.validator.is_valid({"p": fitting})
    assert not compiled.validator.is_valid({"p": other})
    portable_schema.check(schema)


def test_a_draft_that_is_named_is_read_by_its_own_words() -> None:
    """An author that names the newest draft learns of a mistake."""
    newest = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    with pytest.raises(InvalidSchema, match=r"^Not a JSON Schema: .*, at /items$"):
        JsonSchema({**newest, **PAIR})
    with pytest.raises(InvalidSchema, match=r"^Not a JSON Schema: .*, at /exclusiveMinimum$"):
        JsonSchema({**newest, "minimum": 1, "exclusiveMinimum": True})


def test_the_place_of_what_is_wrong_in_a_tuple_is_near() -> None:
    """It is that of the list, whose words are others in the draft that is checked."""
    with pytest.raises(InvalidSchema, match=r"^Not a JSON Schema: .*, at /properties/p$"):
        JsonSchema({"properties": {"p": {"items": [{"type": "strng"}], "additionalItems": {}}}})
