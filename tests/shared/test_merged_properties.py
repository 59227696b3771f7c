"""Alternatives that are made to be expensive to merge, and what becomes of them."""

import json
from typing import Any

import pytest

from arkloop.shared.catalog import client_tools
from arkloop.shared.catalog.client_tools import ClientTool
from arkloop.shared.json_schema import InvalidSchema
from arkloop.shared.portable_schema import check, portable
from tests.processor_time import is_within

DRAFT_7 = "http://json-schema.org/draft-07/schema#"
#: Far above what a bounded merging takes on a busy machine, far below what an unbounded one does.
SECONDS = 1.0


def hidden(**parts: Any) -> dict[str, Any]:
    """Build a schema with a part of which an old draft reads nothing but the reference."""
    own = {"type": "object", "properties": {"own": {"type": "string"}}, "required": ["own"]}
    composed: dict[str, Any] = {"$ref": "#/definitions/e"}
    composed |= {keyword: parts.pop(keyword) for keyword in ("allOf", "anyOf") if keyword in parts}
    return {"$schema": DRAFT_7, **own, "allOf": [composed], "definitions": {"e": {}, **parts}}


def alternatives(number: int) -> dict[str, Any]:
    return {"anyOf": [{"properties": {"p": {"a": place}}} for place in range(number)]}


def doubling(levels: int) -> dict[str, Any]:
    """Build a schema whose property is composed of twice the one of the level before."""
    defs: dict[str, Any] = {"d0": {"properties": {"p": {"a": 0}}}}
    for level in range(1, levels):
        below = {"$ref": f"#/definitions/defs/d{level - 1}"}
        defs[f"d{level}"] = {**below, "anyOf": [{**below, "properties": {"p": {"a": level}}}]}
    return hidden(defs=defs, allOf=[{"$ref": f"#/definitions/defs/{name}"} for name in defs])


def spellings(number: int) -> list[dict[str, Any]]:
    """Return references to `xxxxxxxxxxx`, each spelled in another way."""
    letters = [[("x", "%78")[place >> bit & 1] for bit in range(11)] for place in range(number)]
    return [{"$ref": "#/definitions/" + "".join(spelled)} for spelled in letters]


def levels(number: int) -> dict[str, Any]:
    """Build a schema that refers to each level of a part: each reference walks those below it."""
    part: dict[str, Any] = {"allOf": [{}] * 1_000}
    for _ in range(number):
        part = {"allOf": [part]}
    references = [{"$ref": "#/definitions/x" + "/allOf/0" * level} for level in range(number)]
    return hidden(x=part, allOf=references)


NAMES = [f"n{place}" for place in range(2_000)]
EXPENSIVE = [
    hidden(x=alternatives(1_000), anyOf=[{"$ref": "#/definitions/x"}] * 1_000),
    hidden(
        x={"properties": {name: {} for name in NAMES}}, anyOf=[{"$ref": "#/definitions/x"}] * 1_000
    ),
    hidden(x={"required": NAMES}, allOf=[{"anyOf": [{"$ref": "#/definitions/x"}] * 1_700}]),
    hidden(xxxxxxxxxxx=alternatives(800), anyOf=spellings(800)),
    doubling(22),
    levels(25),
]
IDS = ["alternatives", "names", "required", "spellings", "doubling", "levels"]


@pytest.mark.parametrize("schema", EXPENSIVE, ids=IDS)
def test_a_schema_that_is_expensive_to_merge_is_refused_soon(schema: dict[str, Any]) -> None:
    """One request must not keep a process from all others."""
    assert len(json.dumps(schema, separators=(",", ":"))) < 64 * 1024
    tool = ClientTool("t", "A tool.", schema)

    def refused() -> None:
        with pytest.raises(ValueError, match="t: The schema is too large"):
            client_tools.check_new([tool])

    assert is_within(SECONDS, refused)


@pytest.mark.parametrize("schema", EXPENSIVE, ids=IDS)
def test_a_stored_schema_that_is_expensive_to_merge_loses_its_alternatives(
    schema: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """The model still knows the properties of the whole, the same ones in each process."""
    sent: list[Any] = []

    assert is_within(SECONDS, lambda: sent.append(portable(schema)))

    assert {"own": {"type": "string"}} == sent[0]["properties"]
    assert ["own"] == sent[0]["required"]
    assert "anyOf" not in sent[0]
    assert "allOf" not in sent[0]
    assert "the model does not get their properties" in caplog.text


def test_many_alternatives_are_merged_soon_at_each_level() -> None:
    """All of them, since they are not more than the schema has."""
    schema = alternatives(1_500)
    for _ in range(35):
        schema = {"anyOf": [schema]}
    schema = {"type": "object", **schema}
    sent: list[Any] = []

    assert is_within(SECONDS / 2, lambda: sent.append(portable(schema)))

    check(schema)
    assert [{"a": place} for place in range(1_500)] == sent[0]["properties"]["p"]["anyOf"]


def test_a_union_of_variants_that_share_a_large_base_is_merged() -> None:
    """Each variant has all fields of the base, and each group all of its variants."""
    names = [f"field_{place}" for place in range(100)]
    variants = {
        f"v{place}": {
            "allOf": [{"$ref": "#/$defs/named"}, {"properties": {"kind": {"const": place}}}]
        }
        for place in range(10)
    }
    base = {"type": "object", "properties": {name: {"type": "string"} for name in names}}
    named = {"allOf": [{"$ref": "#/$defs/base"}, {"properties": {"id": {"type": "string"}}}]}
    groups = [
        {"oneOf": [{"$ref": f"#/$defs/{name}"} for name in [*variants][place : place + 5]]}
        for place in (0, 5)
    ]
    defs = {"base": base, "named": named, **variants}
    schema = {"type": "object", "oneOf": groups, "$defs": defs}

    check(schema)

    assert {*names, "id", "kind"} == {*portable(schema)["properties"]}


def test_values_of_different_types_are_different_alternatives() -> None:
    """Python takes `true` and 1 for the same."""
    constants: list[Any] = [True, 1, False, 0, 1]
    schema = {"type": "object", "oneOf": [{"properties": {"a": {"const": c}}} for c in constants]}

    expected = [{"const": c} for c in constants[:4]]
    assert json.dumps(expected) == json.dumps(portable(schema)["properties"]["a"]["anyOf"])


def test_alternatives_that_differ_in_their_order_alone_are_the_same() -> None:
    """As they are to the model's vendor."""
    first, second = {"type": "string", "minLength": 1}, {"minLength": 1, "type": "string"}
    either = [{"properties": {"a": one}} for one in (first, second)]

    assert first == portable({"type": "object", "anyOf": either})["properties"]["a"]


def test_a_schema_that_is_both_too_large_and_invalid_is_refused() -> None:
    """Its size is checked first, since the other check takes the longer the larger it is."""
    with pytest.raises(InvalidSchema, match="too large"):
        check({**EXPENSIVE[0], "required": 3})
