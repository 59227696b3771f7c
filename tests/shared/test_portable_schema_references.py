"""References in schemas as they are sent to vendors: Google refuses most keywords beside them."""

import json
from typing import Any

import pytest

from arkloop.shared.json_schema import InvalidSchema, JsonSchema
from arkloop.shared.portable_schema import check, portable
from arkloop.worker.mcp.tool_lists import put_in_order

DRAFT_7 = "http://json-schema.org/draft-07/schema#"
LIST = {"type": "array", "items": {"type": "string"}}
REFERENCE = {"$ref": "#/$defs/L"}


def of(part: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": {"p": part}, "$defs": {"L": LIST}}


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        # A field of Pydantic
        (
            {**REFERENCE, "description": "D", "default": [], "title": "T", "examples": [[]]},
            {**REFERENCE, "description": "D", "default": []},
        ),
        ({**REFERENCE, "deprecated": True, "readOnly": True, "$comment": ""}, REFERENCE),
        ({**REFERENCE, "nullable": True, "example": [], "x-order": 1, "$anchor": "a"}, REFERENCE),
        ({**REFERENCE, "contentSchema": LIST, "contentMediaType": "text/plain"}, REFERENCE),
        (
            {**REFERENCE, "description": "D", "title": "T", "minItems": 1},
            {"description": "D", "title": "T", "minItems": 1, "allOf": [REFERENCE]},
        ),
        ({"type": "array", **REFERENCE}, {"type": "array", "allOf": [REFERENCE], "items": {}}),
        (
            {"unevaluatedProperties": False, "allOf": [{"required": ["a"]}], **REFERENCE},
            {"unevaluatedProperties": False, "allOf": [{"required": ["a"]}, REFERENCE]},
        ),
    ],
)
def test_only_texts_stand_beside_a_reference(
    part: dict[str, Any], expected: dict[str, Any]
) -> None:
    """What else there is means the same beside an `allOf` with the reference."""
    sent = portable(of(part))

    assert json.dumps(of(expected)) == json.dumps(sent)
    assert portable(sent) is sent
    check(of(part))


def test_what_an_old_draft_has_beside_a_reference_is_left_out() -> None:
    """It means nothing there, and neither does where it refers to."""
    part = {
        **REFERENCE,
        "description": "D",
        "type": "array",
        "maxItems": 0,
        "contains": {"$ref": "#/none"},
    }

    sent = portable({"$schema": DRAFT_7, **of(part)})

    assert of({**REFERENCE, "description": "D"}) == sent
    check({"$schema": DRAFT_7, **of(part)})


@pytest.mark.parametrize("draft", [{}, {"$schema": DRAFT_7}])
def test_a_reference_at_the_top_is_replaced_by_the_properties(draft: dict[str, str]) -> None:
    """Generators write one for a named type; such a tool has no type, which is added."""
    given = {
        **draft,
        "$ref": "#/definitions/Foo",
        "definitions": {"Foo": {"properties": {"a": LIST, "b": {"$ref": "#"}}, "required": ["a"]}},
    }
    page: dict[str, Any] = {"tools": [{"name": "t", "inputSchema": given}]}
    put_in_order(page)
    schema = page["tools"][0]["inputSchema"]

    sent = portable(schema)

    assert "object" == sent["type"]
    assert {"a": LIST, "b": {"$ref": "#/$defs/root"}} == sent["properties"]
    assert ["a"] == sent["required"]
    assert "$ref" not in sent
    check(schema)
    assert not JsonSchema(schema).validator.is_valid({})


MAP = {"minProperties": 1, "additionalProperties": {"type": "string"}}


@pytest.mark.parametrize(
    ("top", "target", "expected"),
    [
        ({}, {**MAP, "description": "M"}, {**MAP, "description": "M"}),
        ({"description": "T"}, {**MAP, "description": "M"}, {**MAP, "description": "T"}),
        ({}, {"$ref": "#/$defs/N"}, MAP),
        ({"minProperties": 2}, MAP, {**MAP, "minProperties": 2}),
        # In these drafts it means nothing there.
        ({"$schema": DRAFT_7, "minProperties": 2, "properties": {"x": {}}}, MAP, MAP),
        ({"$schema": DRAFT_7, "minProperties": 2}, {"$ref": "#/$defs/N", "maxProperties": 3}, MAP),
        # Each `then` belongs to its `if`, and a list of patterns to what the others are.
        ({"if": {"required": ["a"]}}, {"if": {}, "then": {"minProperties": 1}}, None),
        (
            {"patternProperties": {"^a": {}}},
            {"patternProperties": {"^b": {}}, "additionalProperties": False},
            None,
        ),
        ({}, {"$ref": "#/$defs/M"}, {}),
        ({}, {"not": {}}, {}),
    ],
)
def test_a_reference_at_the_top_is_replaced_by_all_keywords(
    top: dict[str, Any], target: dict[str, Any], expected: dict[str, Any] | None
) -> None:
    """What the top has itself comes first, and nothing of the target that would change it."""
    if expected is None:
        expected = top
    definitions = {"M": target, "N": MAP}
    given = {"type": "object", **top, "$ref": "#/$defs/M", "$defs": definitions}

    sent = {**portable(given)}

    check(given)
    assert {"M", "N"} == sent.pop("$defs").keys()
    assert {"type": "object", **expected} == sent


@pytest.mark.parametrize("part", [{"$ref": 1, "type": "array"}, {**REFERENCE, "allOf": 1}])
def test_what_is_invalid_beside_a_reference_stays(part: dict[str, Any]) -> None:
    """An unused definition may be one, in a tool that was stored by an earlier release."""
    schema = of(LIST) | {"$defs": {"unused": part, "L": LIST}}

    with pytest.raises(InvalidSchema, match="Not a JSON Schema"):
        check(schema)
    assert part.items() <= portable(schema)["$defs"]["unused"].items()


ROOT = "https://example.com/s"


@pytest.mark.parametrize("given", [ROOT, ROOT + "#"])
def test_a_reference_may_begin_with_the_id_of_the_whole(given: str) -> None:
    """It leads to the same place as without, in the model's schema and in the check of calls."""
    schema = {**of({"$ref": f"{ROOT}#/$defs/L"}), "allOf": [{"$ref": f"{ROOT}#/$defs/M"}]}
    schema |= {"$id": given, "$defs": {"L": LIST, "M": {"required": ["p"]}, "N": {"$ref": ROOT}}}

    compiled = JsonSchema(schema).validator
    sent = portable(schema)

    check(schema)
    assert compiled.is_valid({"p": ["a"]})
    assert not compiled.is_valid({"p": [1]})
    assert not compiled.is_valid({})
    assert LIST == sent["$defs"][sent["properties"]["p"]["$ref"].removeprefix("#/$defs/")]
    assert ["p"] == sent["required"]


@pytest.mark.parametrize("given", [ROOT, ROOT + "#"])
@pytest.mark.parametrize("reference", [ROOT, ROOT + "#", "", "#"])
def test_a_reference_to_the_whole_may_be_written_in_each_way(given: str, reference: str) -> None:
    """The whole is then known to be within itself, and is no part with an `$id` of its own."""
    kids = {"type": "array", "items": {"$ref": reference}}
    schema = {"$id": given, "type": "object", "properties": {"kids": kids}}

    compiled = JsonSchema(schema)
    check(schema)

    assert [f"The recursive `$ref` {reference!r} is not supported."] == compiled.unchecked
    assert compiled.validator.is_valid({"kids": [{}]})
    assert not compiled.validator.is_valid({"kids": 1})


def test_an_id_that_is_an_anchor_is_left_out() -> None:
    """Generators of draft 7 write one for each part, and draft 2020-12 forbids it."""
    schema = {"$schema": DRAFT_7, **of({"$id": "#/properties/p", **LIST})}

    check(schema)
    assert of(LIST) == portable(schema)
    assert not JsonSchema(schema).validator.is_valid({"p": 1})


@pytest.mark.parametrize("own", ["#/$defs/L", "#/$defs", "#L", "#"])
def test_the_fragment_of_an_id_is_no_beginning_of_references(own: str) -> None:
    """A part with such an `$id` may have become a schema of its own."""
    schema = {"$schema": DRAFT_7, "$id": own, **of(REFERENCE)}
    compiled = JsonSchema(schema)

    check(schema)
    assert not compiled.unchecked
    assert compiled.validator.is_valid({"p": ["a"]})
    assert not compiled.validator.is_valid({"p": [1]})
    assert REFERENCE == portable(schema)["properties"]["p"]
    named = {"$schema": DRAFT_7, "$id": own, "$ref": "#/$defs/M"}
    sent = portable({**named, "$defs": {"M": {"properties": {"p": LIST}}}})
    assert {"p": LIST} == sent["properties"]


OPEN = {"additionalProperties": {"type": "string"}}
PREFIXED = {"patternProperties": {"^x-": {"type": "string"}}}
CLOSED = {"required": ["id"], "properties": {"id": {"type": "string"}}}


@pytest.mark.parametrize(
    ("composed", "is_kept"),
    [
        ({"allOf": [{"$ref": "#/$defs/open"}]}, False),
        ({"$ref": "#/$defs/open"}, False),
        ({"allOf": [{"anyOf": [PREFIXED, CLOSED]}]}, False),
        ({"oneOf": [{**CLOSED, "unevaluatedProperties": {}}]}, False),
        ({"allOf": [{"if": PREFIXED}]}, False),
        ({"anyOf": [CLOSED, {**CLOSED, "additionalProperties": False}]}, True),
        ({"allOf": [CLOSED, {"unevaluatedProperties": False}]}, True),
        ({"$ref": "#/$defs/closed"}, True),
        ({"not": OPEN}, True),
    ],
)
def test_what_members_of_the_top_let_pass_is_not_forbidden(
    composed: dict[str, Any], is_kept: bool
) -> None:
    """`unevaluatedProperties` knows nothing of members that are no longer there."""
    definitions = {"open": OPEN, "closed": CLOSED}
    given = {"type": "object", "unevaluatedProperties": False, **composed, "$defs": definitions}

    sent = portable(given)

    check(given)
    assert is_kept == ("unevaluatedProperties" in sent)
    assert portable(sent) is sent


def test_what_the_target_of_a_reference_says_of_other_members_stays() -> None:
    """The top alone refers to it, and says the same as that."""
    values = {"unevaluatedProperties": {"type": "string"}}

    sent = portable({"type": "object", "$ref": "#/$defs/labels", "$defs": {"labels": values}})

    assert values.items() <= sent.items()


def test_a_reference_to_the_anchor_of_the_whole_leads_there() -> None:
    """Trees of drafts 6 and 7 are written with such an `$id`."""
    schema = {"$schema": DRAFT_7, "$id": "#node", **of({"$ref": "#node"})}

    check(schema)
    [note] = JsonSchema(schema).unchecked
    assert "recursive" in note
    assert portable(schema)["properties"]["p"]["$ref"].startswith("#")
