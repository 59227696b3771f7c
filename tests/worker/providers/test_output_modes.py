"""The schemas that the vendors' own modes take, so that none is changed on its way."""

from typing import Any

import pytest

from arkloop.worker.providers.output_modes import is_of_anthropic, is_strict

DRAFT = {"$schema": "https://json-schema.org/draft/2020-12/schema"}


def closed(**fields: Any) -> dict[str, Any]:
    """Return a closed object in which every property is required."""
    properties = fields.pop("properties", {"a": {"type": "string"}})
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
        **fields,
    }


def nested(levels: int) -> dict[str, Any]:
    schema = closed()
    for _ in range(levels - 1):
        schema = closed(properties={"a": schema})
    return schema


@pytest.mark.parametrize(
    ("schema", "openai", "anthropic"),
    [
        (closed(), True, True),
        (closed(title="T", description="D"), True, True),
        # Zod and the helpers of the vendors' SDKs write it, at the top alone.
        (closed(**DRAFT), True, True),
        (closed(properties={"a": closed(**DRAFT)}), False, False),
        (closed(properties={"a": {"type": "number", "exclusiveMinimum": 1}}), True, False),
        # As draft 4 has it.
        (
            closed(properties={"a": {"type": "number", "minimum": 1, "exclusiveMinimum": True}}),
            False,
            False,
        ),
        (closed(properties={"a": {"type": ["string", "null"]}, "b": {"enum": [1]}}), True, True),
        (closed(properties={"a": {"type": "array", "items": closed()}}), True, True),
        (closed(properties={"a": {"anyOf": [closed(), {"type": "null"}]}}), True, True),
        (closed(properties={"a": {"$ref": "#/$defs/b"}}, **{"$defs": {"b": closed()}}), True, True),
        (closed(properties={"a": {"type": "string", "format": "date"}}), True, True),
        # OpenAI: "$ref cannot have keywords {'description'}."
        (
            closed(
                properties={"a": {"$ref": "#/$defs/b", "description": "A b."}},
                **{"$defs": {"b": closed()}},
            ),
            False,
            True,
        ),
        # A property that may be missing: OpenAI requires it all the same.
        (closed(required=[]), False, True),
        # Further properties are allowed.
        (closed(additionalProperties=True), False, False),
        (
            {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]},
            False,
            False,
        ),
        (closed(properties={"a": {"type": "object"}}), False, False),
        (closed(properties={"a": {"type": ["object", "null"]}}), False, False),
        (closed(properties={"a": {"type": "array", "items": {"type": "object"}}}), False, False),
        (closed(properties={"a": {"$ref": "#/$defs/b"}}, **{"$defs": {"b": {}}}), False, False),
        # Numbers and lists within limits.
        (closed(properties={"a": {"type": "integer", "minimum": 1}}), True, False),
        (
            closed(properties={"a": {"type": "array", "items": closed(), "maxItems": 3}}),
            True,
            False,
        ),
        (closed(properties={"a": {"type": "string", "pattern": "^a"}}), True, False),
        (closed(properties={"a": {"type": "string", "minLength": 1}}), False, False),
        (closed(properties={"a": {"type": "string", "format": "iri"}}), False, False),
        (closed(properties={"a": {"type": "string", "default": "x"}}), False, False),
        (closed(properties={"a": {"allOf": [{"type": "string"}]}}), False, True),
        # Anthropic: "`allOf` with `$ref` not supported"
        (
            closed(
                properties={"a": {"allOf": [{"$ref": "#/$defs/b"}]}}, **{"$defs": {"b": closed()}}
            ),
            False,
            False,
        ),
        (closed(properties={"a": {"oneOf": [{"type": "string"}]}}), False, False),
        (closed(properties={"a": {}}), False, False),
        (closed(anyOf=[{"required": ["a"]}]), False, False),
        # Stored by a release that accepted it where nothing refers to it.
        (closed(**{"$defs": [1]}), False, False),
        (closed(definitions=1), False, False),
        (
            closed(
                **{
                    "$defs": {
                        "b": {"type": "object", "additionalProperties": False, "properties": 1}
                    }
                }
            ),
            False,
            False,
        ),
        (closed(**{"$defs": {"b": closed(required=1)}}), False, False),
        (closed(**{"$defs": {"b": closed(required=[[]])}}), False, True),
        (closed(**{"$defs": {"b": {"anyOf": 1}}}), False, False),
        (closed(**{"$defs": {"b": {"type": "string", "format": []}}}), False, False),
        (nested(10), True, True),
        (nested(11), False, True),
    ],
)
def test_a_schema_is_sent_as_it_is_or_not_at_all(
    schema: dict[str, Any], openai: bool, anthropic: bool
) -> None:
    """The vendors' lists of keywords, and what they require of objects."""
    assert (openai, anthropic) == (is_strict(schema), is_of_anthropic(schema))
