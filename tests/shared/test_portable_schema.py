"""Schemas of tools as they are sent to vendors."""

import json
import time
from copy import deepcopy
from typing import Any

import jsonschema_rs
import pytest

from arkloop.shared.json_schema import InvalidSchema
from arkloop.shared.portable_schema import check, portable
from arkloop.worker.contract.messages import ToolSpec
from tests.closed_port import closed_port

DRAFT_4, DRAFT_7 = (f"http://json-schema.org/draft-0{number}/schema#" for number in (4, 7))
DOWN = f"http://127.0.0.1:{closed_port()}/"
TEXT = {"type": "string"}


def of(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties}


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object"},
        {"$schema": DRAFT_7, **of(a={"type": "array", "items": TEXT}), "required": ["a"]},
        of(a={"anyOf": [TEXT, {"type": "null"}]}, b={"type": ["integer", "null"], "minimum": 0}),
        of(a={"exclusiveMinimum": 0}, b={"not": {"enum": [1]}}, c={"$ref": "#/$defs/c"})
        | {"$defs": {"c": TEXT}, "additionalProperties": False},
        # Values that only look like schemas.
        of(a={"enum": [{"type": "array"}], "default": {"items": [1]}, "const": {"type": "array"}}),
        of(items=TEXT, anyOf={"type": "integer"}, exclusiveMinimum={"type": "boolean"}),
        of(a={"enum": [True], "default": True, "additionalProperties": True, "uniqueItems": True})
        | {"unevaluatedProperties": False},
        # A tree
        of(a={"$ref": "#/$defs/tree"}) | {"$defs": {"tree": of(next={"$ref": "#/$defs/tree"})}},
    ],
)
def test_a_schema_that_vendors_accept_is_not_copied(schema: dict[str, Any]) -> None:
    """It is the same object, in the same order: the prompt stays as the vendor has cached it."""
    assert portable(schema) is schema
    tool = ToolSpec("t", "A tool.", schema)
    assert tool.portable is tool


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        # add_issue_comment of GitHub's server
        (
            of(number={"type": "number"}, body=TEXT, reaction=TEXT)
            | {"required": ["number"]}
            | {"anyOf": [{"required": ["body"]}, {"required": ["reaction"]}]},
            of(number={"type": "number"}, body=TEXT, reaction=TEXT) | {"required": ["number"]},
        ),
        # A discriminated union, as Zod and Pydantic write it.
        (
            {
                "type": "object",
                "oneOf": [
                    of(kind={"const": "mail"}, to=TEXT) | {"required": ["kind", "to"]},
                    {"$ref": "#/$defs/call"},
                ],
                "$defs": {"call": of(kind={"const": "call"}, to=TEXT) | {"required": ["kind"]}},
            },
            {
                "type": "object",
                "$defs": {"call": of(kind={"const": "call"}, to=TEXT) | {"required": ["kind"]}},
                "properties": {
                    "kind": {"anyOf": [{"const": "mail"}, {"const": "call"}]},
                    "to": TEXT,
                },
                "required": ["kind"],
            },
        ),
        (
            of(a=TEXT)
            | {"allOf": [{**of(b=TEXT), "required": ["b"]}, {"then": {"required": ["a"]}}]},
            of(a=TEXT, b=TEXT) | {"required": ["b"]},
        ),
        # Properties that are known under a condition alone, or under several
        (
            of(kind={"enum": ["mail", "call"]}, note=TEXT)
            | {
                "required": ["kind"],
                "allOf": [
                    {
                        "if": of(kind={"const": "mail"}, only_asked=TEXT),
                        "then": of(address=TEXT, at={"format": "date"}) | {"required": ["address"]},
                        "else": of(phone=TEXT, note={"minLength": 1}) | {"required": ["phone"]},
                    },
                    {"if": of(kind={"const": "call"}), "then": {"allOf": [of(at={"const": ""})]}},
                    {"dependentSchemas": {"note": of(language=TEXT) | {"required": ["language"]}}},
                    {"dependencies": {"note": of(color=TEXT), "kind": ["note"]}},
                ],
            },
            of(
                kind={"enum": ["mail", "call"]},
                note=TEXT,
                address=TEXT,
                at={"anyOf": [{"format": "date"}, {"const": ""}]},
                phone=TEXT,
                language=TEXT,
                color=TEXT,
            )
            | {"required": ["kind"]},
        ),
        # Properties that are described on their own, too, and more than once.
        (
            of(action=TEXT) | {"oneOf": [of(action={"const": "add"}), of(action={"const": "end"})]},
            of(action={"allOf": [TEXT, {"anyOf": [{"const": "add"}, {"const": "end"}]}]}),
        ),
        (
            {"type": "object", "allOf": [of(a=TEXT), of(a={"enum": ["x", "y"]}), of(a=TEXT)]},
            of(a={"allOf": [TEXT, {"enum": ["x", "y"]}]}),
        ),
        (
            of(a=TEXT)
            | {"anyOf": [of(a={"minLength": 1}), of(a={"const": ""})]}
            | {"oneOf": [of(a={"maxLength": 9}), of(a={"format": "uri"})]},
            of(
                a={
                    "allOf": [
                        TEXT,
                        {"anyOf": [{"minLength": 1}, {"const": ""}]},
                        {"anyOf": [{"maxLength": 9}, {"format": "uri"}]},
                    ]
                }
            ),
        ),
        # Alternatives with a part in common
        (
            {
                "type": "object",
                "oneOf": [
                    {"allOf": [{"$ref": "#/$defs/event"}, of(kind={"const": "mail"})]},
                    {"$ref": "#/$defs/event", **of(kind={"const": "call"})},
                ],
                "$defs": {"event": of(kind=TEXT)},
            },
            {
                "type": "object",
                "$defs": {"event": of(kind=TEXT)},
                "properties": {
                    "kind": {
                        "anyOf": [
                            {"allOf": [TEXT, {"const": "mail"}]},
                            {"allOf": [{"const": "call"}, TEXT]},
                        ]
                    }
                },
            },
        ),
        # An alternative without the property permits each value of it.
        (of(a=TEXT) | {"anyOf": [of(a={"const": "x"}), of(b=TEXT)]}, of(a=TEXT, b=TEXT)),
        (
            {"type": "object", "anyOf": [{"oneOf": [of(a=TEXT), of(b=TEXT)]}, of(a={"const": 1})]},
            of(a={"anyOf": [TEXT, {"const": 1}]}, b=TEXT),
        ),
        ({"type": "object", "not": {"required": ["a"]}, "enum": [{}]}, {"type": "object"}),
        # A reference into what is not at the top any more.
        (
            {"type": "object", "anyOf": [of(a=TEXT), of(b={"$ref": "#/anyOf/0/properties/a"})]},
            {
                "type": "object",
                "properties": {"a": TEXT, "b": {"$ref": "#/$defs/a"}},
                "$defs": {"a": TEXT},
            },
        ),
        # kintone-search
        (
            {
                "$schema": DRAFT_7,
                **of(
                    query={
                        "type": "array",
                        "items": [of(keywords={"type": "array"})],
                        "additionalItems": {"$ref": "#/properties/query/items/0"},
                    }
                ),
            },
            of(
                query={
                    "type": "array",
                    "prefixItems": [of(keywords={"type": "array", "items": {}})],
                    "items": {"$ref": "#/$defs/items_0"},
                }
            )
            | {"$defs": {"items_0": of(keywords={"type": "array", "items": {}})}},
        ),
        (
            {
                "$schema": DRAFT_4,
                **of(
                    a={"minimum": 0, "exclusiveMinimum": True},
                    b={"maximum": 9, "exclusiveMaximum": False},
                ),
            },
            of(a={"exclusiveMinimum": 0}, b={"maximum": 9}),
        ),
        # A tuple of Pydantic
        (
            of(at={"type": ["array", "null"], "prefixItems": [TEXT, TEXT]}),
            of(at={"type": ["array", "null"], "prefixItems": [TEXT, TEXT], "items": {}}),
        ),
        (of(a={"type": "array", "items": []}), of(a={"type": "array", "items": {}})),
        (of(a={"description": None, "examples": "x", **TEXT}), of(a=TEXT)),
        ({**of(), "allOf": [{"$ref": "#"}], "$defs": []}, {**of(), "$defs": []}),
        # Go's SDK, for fields of the type `any`
        (
            of(model=True, rows={"type": "array", "items": True}, a={"anyOf": [True, TEXT]}),
            of(model={}, rows={"type": "array", "items": {}}, a={"anyOf": [{}, TEXT]}),
        ),
        (
            of(a=False, at={"type": "array", "items": [TEXT, True], "additionalItems": False})
            | {"$defs": {"b": True}},
            of(
                a={"not": {}},
                at={"type": "array", "prefixItems": [TEXT, {}], "items": {"not": {}}},
            )
            | {"$defs": {"b": {}}},
        ),
        # References as drafts before 2019-09 have them, and Zod 3 for what is used twice
        (
            {
                "$schema": DRAFT_7,
                **of(a={"$ref": "#/definitions/A%20b"}, c=TEXT, d={"$ref": "#/properties/c"}),
                "definitions": {"A b": {"type": "array"}, "unused": TEXT},
            },
            of(a={"$ref": "#/$defs/A_b"}, c=TEXT, d={"$ref": "#/$defs/c"})
            | {"$defs": {"A_b": {"type": "array", "items": {}}, "c": TEXT}},
        ),
        # Recursion, with names that are in use
        (
            {
                **of(child={"$ref": "#"}, a={"$ref": "#/$defs/a/items"}),
                "$id": "https://example.com/tree",
                "definitions": {"root": TEXT},
                "$defs": {"root": TEXT, "a": {"type": "array", "items": of(b={"$ref": "#"})}},
            },
            {
                **of(child={"$ref": "#/$defs/root_2"}, a={"$ref": "#/$defs/items"}),
                "$id": "https://example.com/tree",
                "$defs": {
                    "root": TEXT,
                    "a": {"type": "array", "items": of(b={"$ref": "#/$defs/root_2"})},
                    "root_2": of(child={"$ref": "#/$defs/root_2"}, a={"$ref": "#/$defs/items"}),
                    "items": of(b={"$ref": "#/$defs/root_2"}),
                },
            },
        ),
        (
            of(a=of(b={"$ref": "#/properties/a/$defs/B"}) | {"$defs": {"B": TEXT}}),
            of(a=of(b={"$ref": "#/$defs/B"})) | {"$defs": {"B": TEXT}},
        ),
        # What a reference leads to gets another name.
        (
            of(
                rows={"type": "array", "items": [TEXT], "additionalItems": of(b=TEXT)},
                last={"$ref": "#/properties/rows/additionalItems"},
            ),
            of(
                rows={"type": "array", "prefixItems": [TEXT], "items": of(b=TEXT)},
                last={"$ref": "#/$defs/additionalItems"},
            )
            | {"$defs": {"additionalItems": of(b=TEXT)}},
        ),
    ],
)
def test_a_schema_gets_the_form_that_vendors_accept(
    schema: dict[str, Any], expected: dict[str, Any]
) -> None:
    """Anthropic's and OpenAI's rules hold for it, and the schema itself is not changed."""
    before = deepcopy(schema)

    sent = portable(schema)

    assert json.dumps(expected) == json.dumps(sent)
    assert before == schema
    assert portable(sent) is sent
    if schema.get("$defs") != []:
        check(schema)


def test_a_schema_that_no_form_makes_valid_is_reported() -> None:
    """What is not checked for calls (unused definitions, say) is checked by vendors."""
    check({"$schema": DRAFT_7, **of(a={"items": [TEXT]})})
    with pytest.raises(InvalidSchema, match="Not a JSON Schema: true is not of type"):
        check({"type": "object", "$defs": {"unused": {"required": True}}})


@pytest.mark.parametrize(
    "reference", ["#/$defs/a", "#/definitions/a", "#a", pytest.param(DOWN, id="a server")]
)
def test_a_reference_that_leads_nowhere_is_reported(reference: str) -> None:
    """Vendors refuse it also where no call can be checked against it, so it is not sent for a tool
    that was stored earlier.
    """
    schema = of(a=TEXT) | {"$defs": {"unused": {"$ref": reference, "title": "A"}}}
    with pytest.raises(InvalidSchema, match="Unresolvable"):
        check(schema)
    assert of(a=TEXT) | {"$defs": {"unused": {"title": "A"}}} == portable(schema)


def test_a_schema_whose_copies_would_be_large_is_reported() -> None:
    """Each reference to a part of it leads to a copy, and one part may be within another. Of a
    tool that was stored earlier, the rest of the copies are empty.
    """
    parts = [f"#/$defs/a{'/items' * depth}" for depth in range(1, 30)]
    long: dict[str, Any] = {"description": "x" * 5_000}
    for _ in parts:
        long = {"items": long}
    unused = {"anyOf": [{"$ref": part} for part in parts]}

    schema = of(b=TEXT) | {"$defs": {"a": long, "unused": unused}}
    with pytest.raises(InvalidSchema, match="too large"):
        check(schema)

    sent = portable(schema)

    assert len(json.dumps(sent)) < 80_000
    jsonschema_rs.meta.validate({**sent})
    assert {} == sent["$defs"]["items_29"]


@pytest.mark.parametrize("index", ["00", "+0", "-1", "0_0", "٠"])
def test_a_place_in_a_list_has_one_name(index: str) -> None:
    """The vendor would get a copy for each of them."""
    schema = of(a={"anyOf": [TEXT]}, b={"$ref": f"#/properties/a/anyOf/{index}"})
    with pytest.raises(InvalidSchema, match="Unresolvable"):
        check(schema)
    check(of(a={"anyOf": [TEXT]}, b={"$ref": "#/properties/a/anyOf/0"}))


@pytest.mark.parametrize(
    "draft", ["", "#", "json-schema:///", DRAFT_4, pytest.param(DOWN, id="a server that is down")]
)
def test_the_draft_that_a_schema_names_is_not_followed(draft: str) -> None:
    """Each is checked as one of draft 2020-12, and nothing is fetched."""
    check({"$schema": draft, **of(a=TEXT)})
    with pytest.raises(InvalidSchema, match="Not a JSON Schema: 0 is not of type"):
        check({"$schema": draft, **of(a=TEXT), "dependentRequired": 0})


def test_alternatives_that_refer_to_each_other_are_merged_once() -> None:
    """A schema that is made to grow costs little, and stays about as large as it was."""
    names = [f"d{number}" for number in range(60)]
    either = [{"$ref": f"#/$defs/{name}"} for name in names]
    definitions = {name: of(a={"const": name}) | {"anyOf": either} for name in names}
    schema = {"type": "object", "anyOf": either, "$defs": definitions}
    began = time.process_time()

    sent = portable(schema)

    assert time.process_time() - began < 1
    assert [{"const": name} for name in names] == sent["properties"]["a"]["anyOf"]
    assert len(json.dumps(sent)) < 1.1 * len(json.dumps(schema))
    jsonschema_rs.meta.validate(sent)


def test_letters_of_every_script_count_alike() -> None:
    """A description in Cyrillic letters may be as long as one in Latin letters."""
    texts = {f"a{n}": {**TEXT, "description": "я" * 1_000} for n in range(30)}
    check(of(**texts))
