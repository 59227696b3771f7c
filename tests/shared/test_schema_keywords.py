"""Keywords that are checked otherwise than the library does."""

import json
from types import SimpleNamespace
from typing import Any

import jsonschema_rs
import pytest

from arkloop.shared import portable_schema
from arkloop.shared.catalog import client_tools
from arkloop.shared.errors import InvalidRequest
from arkloop.shared.json_schema import InvalidSchema, JsonSchema
from arkloop.shared.runs import agent_limits, form_replies
from arkloop.shared.schema_work import measured
from arkloop.worker.contract.argument_schema import ArgumentSchema
from tests.processor_time import is_within

#: Far above what a bounded check takes, far below what an unbounded one does.
SECONDS = 0.25

UNIQUE: dict[str, Any] = {
    "type": "object",
    "properties": {"a": {"type": "array", "uniqueItems": True}},
}
#: Integers that are the same number of 64 bits with a fraction.
ALIKE = [10**30 + number for number in range(6_000)]


def misfit(value: Any, schema: dict[str, Any] = UNIQUE) -> list[str]:
    """Check the output of an agent worker; return what is wrong with it."""
    persona: Any = SimpleNamespace(output_schema=schema)
    output = {"a": value}
    try:
        agent_limits.check_output(persona, json.dumps(output), output)
    except InvalidRequest as error:
        return [*error.details["output"]]
    return []


def brackets(number: int) -> list[Any]:
    """Return different lists of nothing but lists."""
    sizes: list[list[Any]] = [[[]]]
    while sum(map(len, sizes)) < number:
        pairs = zip(sizes, reversed(sizes), strict=True)
        sizes.append([[one, *rest] for ones, others in pairs for one in ones for rest in others])
    return [one for size in sizes for one in size][:number]


@pytest.mark.parametrize(
    "items",
    [ALIKE, [[number] for number in ALIKE], [{"n": number} for number in ALIKE], brackets(9_000)],
    ids=["integers", "lists", "objects", "brackets"],
)
def test_items_that_the_library_takes_for_alike_are_compared_soon(items: list[Any]) -> None:
    """A web process checks an output, and serves nothing meanwhile."""
    found: list[list[str]] = []

    assert is_within(SECONDS, lambda: found.append(misfit(items)))

    assert [] == found[0]
    assert ["non-unique elements" in why for why in misfit([*items, items[7]])] == [True]


def test_a_reply_to_a_form_is_checked_soon() -> None:
    """Its schema is a server's, and the reply is a person's."""
    reply = json.dumps({"action": "accept", "content": {"a": [2**63 - n for n in range(1, 1_500)]}})

    assert is_within(SECONDS, lambda: form_replies.check({"kind": "form", "schema": UNIQUE}, reply))


@pytest.mark.parametrize("is_demanded", [True, False])
@pytest.mark.parametrize(
    "items",
    [
        [],
        [1],
        [1, 1.0],
        [0, -0.0],
        [1, True],
        [0, False],
        [1, "1"],
        [None, "None", "null"],
        [True, True],
        [1.5, 1.5],
        [1e30, 10**30],
        [10**30, 10**30 + 1],
        [2**53, 2**53 + 1],
        [10**400, 10**400],
        ["a", "a"],
        ["a,'b", "a", "b"],
        [{"a": 1, "b": 2}, {"b": 2.0, "a": 1}],
        [{"a": 1, "b": 2}, {"b": 1, "a": 2}],
        [{"a": [1, [2]]}, {"a": [1, 2]}],
        [{"a:1": 2}, {"a": "1:2"}],
        [[], [[]]],
        [["a", "b"], ["a,b"]],
        [["x"], ["x"]],
    ],
    ids=str,
)
def test_items_are_as_unique_as_the_library_finds(items: list[Any], is_demanded: bool) -> None:
    """Numbers are equal by their value, and objects whatever the order of their names."""
    schema = {"uniqueItems": is_demanded}
    expected = jsonschema_rs.validator_for(schema).is_valid(items)

    assert expected == JsonSchema(schema).validator.is_valid(items)


@pytest.mark.parametrize("value", [3, "aa", {"a": 1, "b": 1}])
def test_what_is_no_list_has_no_items(value: Any) -> None:
    """The keyword says nothing of other values."""
    assert JsonSchema({"uniqueItems": True}).validator.is_valid(value)


LONG = [10**19 + number for number in range(1_700)]


@pytest.mark.parametrize(
    "part",
    [
        {"required": LONG},
        {"type": LONG},
        {"dependentRequired": {"a": LONG}},
        {"dependencies": {"a": LONG}},
        {"required": brackets(1_500)},
    ],
    ids=["required", "type", "dependentRequired", "dependencies", "brackets"],
)
def test_lists_of_names_are_refused_soon_if_they_have_others(part: dict[str, Any]) -> None:
    """The schema of schemas demands that names are unique."""

    def refused() -> None:
        for check in (JsonSchema, portable_schema.check):
            with pytest.raises(InvalidSchema, match="Not a JSON Schema"):
                check({"type": "object", "properties": {"x": part}})
        with pytest.raises(InvalidSchema, match="Not a JSON Schema"):
            portable_schema.check({"type": "object", "$defs": {"x": part}})

    assert is_within(SECONDS, refused)


@pytest.mark.parametrize(
    ("multiple", "number"), [(5e-324, 7), (1e-300, 0.1), (1e-29, 7), (0.01, 1e308)]
)
def test_no_multiple_makes_a_check_long(multiple: float, number: float) -> None:
    """The library computes with fractions of as many digits as the numbers have."""
    schema = {"type": "object", "properties": {"a": {"items": {"multipleOf": multiple}}}}

    assert is_within(2 * SECONDS, lambda: misfit([number] * 60_000, schema))


@pytest.mark.parametrize(
    ("part", "more"),
    [({"uniqueItems": True}, 4), ({"multipleOf": 0.01}, 4), ({"multipleOf": 2}, 0)],
    ids=str,
)
def test_a_keyword_that_takes_long_counts_for_values_alone(part: dict[str, Any], more: int) -> None:
    """A schema of as many nodes as one may have stays usable with it."""
    schema = JsonSchema({"properties": {"a": part}})
    many = {"properties": {f"a{number}": part for number in range(1_600)}}
    tool = client_tools.ClientTool("a", "", {"type": "object", **many})

    assert schema.nodes + more == schema.weight
    assert 1_600 * more == JsonSchema(many).weight - JsonSchema(many).nodes
    client_tools.check([tool])


def test_large_numbers_weigh_more() -> None:
    """A check of their multiples computes with all of their digits."""
    for number in (1e308, 10**308):
        assert 100 < measured([number], 1_000) - measured([1.0], 1_000)


def test_a_multiple_is_checked_unless_it_is_tiny() -> None:
    """What is not checked refuses nothing, also beside `oneOf` and below `not`."""
    price = JsonSchema({"multipleOf": 0.01})
    tiny = JsonSchema({"not": {"multipleOf": 1e-31}})

    assert not price.unchecked
    assert price.validator.is_valid(19.99)
    assert not price.validator.is_valid(19.999)
    assert ["A `multipleOf` below 1e-30 is not supported."] == [*tiny.unchecked]
    assert tiny.validator.is_valid(1)
    for invalid in (0.0, -1e-31, 0):
        with pytest.raises(InvalidSchema, match="Not a JSON Schema"):
            JsonSchema({"multipleOf": invalid})


INTEGER = {"type": "integer"}
EITHER: dict[str, Any] = {"anyOf": [INTEGER, INTEGER]}


def nested(levels: int) -> dict[str, Any]:
    """Build a schema of lists in lists, with two equal alternatives at each level."""
    return {"anyOf": [{"items": nested(levels - 1)}] * 2} if levels else INTEGER


def in_lists(value: Any, levels: int) -> Any:
    return [in_lists(value, levels - 1)] * 2 if levels else value


@pytest.mark.parametrize(
    ("part", "value"),
    [
        (nested(8), in_lists("x", 8)),
        ({"anyOf": [{"items": INTEGER}] * 2}, ["x"] * 60_000),
        ({"anyOf": [{"items": EITHER}] * 2}, ["x"] * 60_000),
        ({"oneOf": [{"items": EITHER}, {"type": "null"}]}, ["x"] * 60_000),
    ],
    ids=["nested", "items", "alternatives of items", "oneOf"],
)
def test_errors_within_alternatives_are_not_looked_for(part: dict[str, Any], value: Any) -> None:
    """The sentence about an alternative names none of them, and there may be very many."""
    schema = {"type": "object", "properties": {"a": part}}
    found: list[list[str]] = []

    assert is_within(SECONDS, lambda: found.append(misfit(value, schema)))

    assert 1 == len(found[0])
    assert "property 'a': the value is not valid under " in found[0][0]


def test_the_first_name_that_does_not_fit_suffices() -> None:
    """Each error of a name has a copy of the whole object."""
    names = {"type": "object", "propertyNames": {"maxLength": 1}}
    form = {"kind": "form", "schema": {"type": "object", "properties": {"a": names}}}
    content = {"a": {f"n{number}": 0 for number in range(2_500)}}
    reply = json.dumps({"action": "accept", "content": content})
    found: list[Any] = []

    def refused() -> None:
        with pytest.raises(InvalidRequest) as error:
            form_replies.check(form, reply)
        found.append(error.value.details["content"])

    assert is_within(SECONDS, refused)
    assert 1 == len(found[0])


NAMES = {"propertyNames": {"maxLength": 1}}


@pytest.mark.parametrize("part", [NAMES, {"allOf": [NAMES] * 40}, {"anyOf": [NAMES] * 9}])
@pytest.mark.parametrize("fields", [0, 100])
def test_no_errors_of_names_take_long(part: dict[str, Any], fields: int) -> None:
    """All of them are looked for as long as the copies of the object stay few."""
    schema = JsonSchema({**part, "properties": {f"field_{number}": {} for number in range(fields)}})

    def refused() -> None:
        for number in (10, 20, 40, 80, 160, 320, 480, 640, 1_280):
            value = {f"n{name}": 0 for name in range(number)}
            assert schema.errors(value, schema.weight * measured(value, 10_000))

    assert is_within(2 * SECONDS, refused)


@pytest.mark.parametrize(
    ("names", "size"),
    [
        ({"type": "string"}, 20),
        ({"type": ["string", "null"], "title": "Name", "format": "email"}, 20),
        (True, 20),
        ({}, 20),
        ({"enum": ["a", "b"]}, 20),
        ({"type": "string"}, 60),
    ],
)
def test_all_that_is_wrong_with_usual_arguments_is_named(names: Any, size: int) -> None:
    """Zod writes `propertyNames` for each record: no name of a string that is any is refused."""
    line = {name: {"type": kind} for name, kind in (("sku", "string"), ("price", "number"))}
    order: dict[str, Any] = {
        "title": {"type": "string"},
        "priority": {"type": "integer"},
        "due": {"type": "string"},
        "labels": {"type": "object", "propertyNames": names},
        "lines": {"items": {"type": "object", "properties": line, "required": [*line]}},
    }
    schema = ArgumentSchema({"type": "object", "properties": order, "required": [*order]})
    lines = [{"sku": "x", "price": 1}] * size

    assert [
        "Missing argument 'due'.",
        "Missing argument 'title'.",
        "The argument 'priority' must be of type integer.",
    ] == sorted(schema.errors({"priority": "high", "labels": {"a": "b"}, "lines": lines}))


@pytest.mark.parametrize(
    ("part", "bad", "why"),
    [
        (EITHER, "x", "not valid under any of the schemas listed in the 'anyOf' keyword"),
        ({"oneOf": [INTEGER]}, "x", "not valid under exactly one of the schemas"),
        ({"oneOf": [INTEGER, {"minimum": 9}]}, 10, "not valid under exactly one of the schemas"),
        ({"allOf": [EITHER, {"maximum": 9}]}, 10, "greater than the maximum of 9"),
        ({"properties": {"b": EITHER}}, {"b": "x"}, "'a.9000.b': the value is not valid under any"),
        ({"minimum": 0, "exclusiveMinimum": True}, 0, "less than or equal to the minimum of 0"),
        ({"anyOf": [{"minimum": 0, "exclusiveMinimum": True}]}, 0, "is not valid under any"),
    ],
)
def test_the_first_error_of_a_large_value_is_named(
    part: dict[str, Any], bad: Any, why: str
) -> None:
    """Its place is the innermost that is not within an alternative."""
    draft = "http://json-schema.org/draft-04/schema#"
    items = {"type": "array", "items": part}
    schema = {"$schema": draft, "type": "object", "properties": {"a": items}}
    good: list[Any] = [1] * 9_000

    assert [] == misfit(good, schema)
    [found] = misfit([*good, bad], schema)
    assert "property 'a.9000" in found
    assert why in found


def kind(name: str) -> dict[str, Any]:
    properties = {"kind": {"const": name}, name: INTEGER}
    return {"properties": properties, "required": [*properties]}


@pytest.mark.parametrize("more", [{}, {"allOf": [{"required": ["kind"]}]}, {"pattern": "^a"}])
@pytest.mark.parametrize("keyword", ["anyOf", "oneOf"])
def test_properties_of_alternatives_are_not_named_where_none_fits(
    keyword: str, more: dict[str, Any]
) -> None:
    """A model that repairs the value would remove those that are required."""
    either = {keyword: [kind("a"), kind("b")], "unevaluatedProperties": False, **more}
    schema = {"type": "object", "properties": {"a": {"items": either}}}
    good: list[Any] = [{"kind": "a", "a": 1}] * 1_000
    place = "property 'a.1000': "

    assert [] == misfit(good, schema)
    assert (
        f"{place}the value is not valid under"
        in misfit([*good, {"kind": "a", "a": "1"}], schema)[0]
    )
    [unknown] = misfit([*good, {"kind": "a", "a": 1, "b": 2}], schema)
    assert f"{place}Unevaluated properties are not allowed ('b' was unexpected)" in unknown


def test_items_of_alternatives_are_not_named_where_none_fits() -> None:
    """None of them is evaluated then."""
    either = [{"prefixItems": [{"const": name}, INTEGER]} for name in "ab"]
    part = {"items": {"anyOf": either, "unevaluatedItems": False}}
    schema = {"type": "object", "properties": {"a": part}}
    good: list[Any] = [["a", 1]] * 1_000

    assert [] == misfit(good, schema)
    assert "a.1000': the value is not valid under any" in misfit([*good, ["a", "1"]], schema)[0]
    assert "a.1000': Unevaluated items are not allowed" in misfit([*good, ["a", 1, 1]], schema)[0]
