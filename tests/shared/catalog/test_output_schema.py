"""Schemas of outputs: what is accepted, and that nothing of them is left unchecked in silence."""

import contextlib
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arkloop.shared.catalog import output_schema

OBJECT = {"type": "object"}


def checked(schema: Any) -> None:
    output_schema.check(output_schema.read(schema))


def accepted(schema: Any) -> None:
    output_schema.check_new(output_schema.read(schema))


@pytest.mark.parametrize(
    "schema",
    [
        OBJECT,
        {"$schema": "https://json-schema.org/draft/2020-12/schema", **OBJECT},
        {"$schema": "http://json-schema.org/draft-07/schema#", **OBJECT},
        {**OBJECT, "properties": {"a": {"$ref": "#/$defs/b"}}, "$defs": {"b": {"type": "string"}}},
        {**OBJECT, "properties": {"a": {"type": "string", "format": "email", "pattern": "^a+$"}}},
        {**OBJECT, "oneOf": [{"required": ["a"]}, {"required": ["b"]}]},
        # In the words of drafts 7 and 4, and as some libraries write it.
        {
            "$schema": "http://json-schema.org/draft-07/schema#",
            **OBJECT,
            "properties": {"a": {"type": "array", "items": [{"type": "string"}]}},
        },
        {
            "$schema": "http://json-schema.org/draft-04/schema#",
            **OBJECT,
            "properties": {"a": {"type": "number", "minimum": 1, "exclusiveMinimum": True}},
        },
    ],
)
def test_a_schema_of_an_object_is_accepted(schema: dict[str, Any]) -> None:
    """Schemas of any draft are accepted, with references within themselves."""
    accepted(schema)


@pytest.mark.parametrize(
    ("schema", "why"),
    [
        (None, '"type": "object"'),
        ("{}", '"type": "object"'),
        ({}, '"type": "object"'),
        ({"type": "array"}, '"type": "object"'),
        ({"type": ["object"]}, '"type": "object"'),
        ({**OBJECT, "properties": []}, "Not a JSON Schema"),
        ({**OBJECT, "required": "a"}, "Not a JSON Schema"),
        ({**OBJECT, "properties": {"a": {"type": "text"}}}, "Not a JSON Schema"),
        ({"$schema": "https://example.com/mine", **OBJECT}, "Not a JSON Schema"),
        ({**OBJECT, "properties": {"a": {"$ref": "https://example.com/b"}}}, "other documents"),
        ({**OBJECT, "properties": {"a": {"$ref": "b.json"}}}, "other documents"),
        ({**OBJECT, "properties": {"a": {"$ref": "#/$defs/b"}}}, "Unresolvable"),
        ({**OBJECT, "properties": {"a": {"$ref": "#"}}}, "recursive `$ref` '#'"),
        ({**OBJECT, "properties": {"a": {"$dynamicRef": "#a"}}}, "Dynamic references"),
        ({**OBJECT, "properties": {"a": {"pattern": "(a)\\1"}}}, "pattern '(a)"),
        ({**OBJECT, "patternProperties": {"(?=a)": {}}}, "patternProperties"),
        ({**OBJECT, "properties": {"a": {"default": float("nan")}}}, "must be JSON"),
        ({**OBJECT, "description": "é" * 32_768}, "at most 65,536 bytes"),
        ({**OBJECT, "properties": {f"p{i}": {} for i in range(5_000)}}, "too large"),
    ],
)
def test_a_schema_that_cannot_be_checked_in_full_is_refused(schema: Any, why: str) -> None:
    """Each time for a reason; nothing is fetched."""
    with pytest.raises(ValueError, match=re.escape(why)):
        checked(schema)


@pytest.mark.parametrize(
    "invalid",
    [
        {"$defs": {"b": {"type": "text"}}},
        {"$defs": [1]},
        {"$anchor": 5},
        {"$defs": {"b": {"$ref": "#/nope"}}},
        {"$defs": {"b": {"$ref": "https://a.example/schema"}}},
    ],
)
def test_a_new_schema_is_valid_where_nothing_refers_to_it(invalid: dict[str, Any]) -> None:
    """Vendors check all of it. What is stored is read as it is."""
    schema = {**OBJECT, **invalid}
    checked(schema)

    with pytest.raises(ValueError, match=r"^Not a JSON Schema: |^Unresolvable `\$ref`: "):
        output_schema.check_new(schema)


DRAFT_7 = {"$schema": "http://json-schema.org/draft-07/schema#"}
WRONG = {"type": "text"}


@pytest.mark.parametrize(
    "invalid",
    [
        {"definitions": {"b": WRONG}},
        {"properties": {"a": {"definitions": {"b": WRONG}}}},
        {"definitions": {"b": {"$ref": "#/definitions/nope"}}},
        {"definitions": {"b": {"$ref": "https://a.example/schema"}}},
        {"definitions": {"b": {"$ref": "#/definitions/c", "$defs": {"d": WRONG}}, "c": {}}},
        {**DRAFT_7, "properties": {"a": {"$ref": "#/definitions/b", **WRONG}}},
        {**DRAFT_7, "properties": {"a": {"$ref": "#/definitions/b", "items": {"$ref": "#/no"}}}},
        {"allOf": [{"definitions": {"b": WRONG}}]},
    ],
)
def test_a_new_schema_is_valid_where_only_its_author_reads_it(invalid: dict[str, Any]) -> None:
    """The portable form has nothing of this, but vendors are sent the schema as it is."""
    schema = {**OBJECT, "definitions": {"b": {}}, **invalid}
    checked(schema)

    with pytest.raises(ValueError, match=r"^Not a JSON Schema: |^Unresolvable `\$ref`: "):
        output_schema.check_new(schema)


@pytest.mark.parametrize(
    "unused",
    [
        {"type": "array", "items": [{}], "additionalItems": False},
        {"minimum": 0, "exclusiveMinimum": True},
        {"description": None, "examples": "e"},
        {"$ref": "#/definitions/c", "title": "A b.", "$comment": "c"},
        {"$ref": "#/components/c"},
        {"$ref": "#/definitions/b"},
        # Whether these lead anywhere is for the vendor to say.
        {"$id": "https://a.example/b", "properties": {"x": {"$ref": "#/properties/y"}}},
        {"$id": "#b", "items": {"$ref": "#b"}},
        {"$anchor": "b", "items": {"$ref": "#b"}},
        {"description": "d" * 50_000},
    ],
)
@pytest.mark.parametrize("draft", [{}, DRAFT_7])
def test_what_vendors_may_accept_is_not_refused(
    unused: dict[str, Any], draft: dict[str, Any]
) -> None:
    """Some of it is of older drafts than `$schema` says, or of what generators write."""
    definitions = {"b": unused, "c": {}}
    accepted({**draft, **OBJECT, "definitions": definitions, "components": {"c": {}}})


def test_a_schema_may_be_40_levels_deep() -> None:
    """A schema of 41 levels is refused."""
    schema: dict[str, Any] = OBJECT
    for _ in range(20):
        schema = {**OBJECT, "properties": {"a": schema}}
    checked(schema)
    for _ in range(41):
        schema = {**OBJECT, "properties": {"a": schema}}
    with pytest.raises(ValueError, match="deeper than 40 levels"):
        checked(schema)


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "type",
                    "properties",
                    "items",
                    "$ref",
                    "enum",
                    "required",
                    "anyOf",
                    "$defs",
                    "pattern",
                ]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from(["properties", "$defs", "required", "$schema"]), _json))
def test_whatever_is_given_is_accepted_or_refused(fields: dict[str, Any]) -> None:
    """There is no other error."""
    with contextlib.suppress(ValueError):
        accepted({**OBJECT, **fields})


def test_the_order_of_properties_is_stored() -> None:
    """Models write properties in this order, which `jsonb` would lose."""
    schema = {"type": "object", "properties": {"zeta": {}, "a": {}, "é": {}}}

    stored = output_schema.to_text(schema)

    assert ["zeta", "a", "é"] == list(output_schema.from_text(stored)["properties"])
