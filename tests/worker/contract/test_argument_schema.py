"""Arguments against schemas, those of enemies included."""

import functools
import json
from typing import Any

import pytest

from arkloop.shared.json_schema import InvalidSchema
from arkloop.worker.contract.argument_schema import MAX_ERRORS, OUTPUT, ArgumentSchema
from tests.processor_time import is_within

DRAFT_7 = "http://json-schema.org/draft-07/schema#"
TREE = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "$defs": {
        "node": {
            "type": "object",
            "properties": {
                "name": {"type": "string"},
                "children": {"type": "array", "items": {"$ref": "#/$defs/node"}},
            },
            "required": ["name"],
        }
    },
    "type": "object",
    "properties": {"root": {"$ref": "#/$defs/node"}},
}


def errors(schema: dict[str, Any], arguments: dict[str, Any]) -> list[str]:
    """Return what the model reads."""
    return ArgumentSchema(schema).errors(arguments)


@pytest.mark.parametrize(
    ("schema", "arguments", "expected"),
    [
        ({"required": ["a", "b"]}, {"a": 1}, ["Missing argument 'b'."]),
        (
            {"properties": {"a": {"properties": {"b": {"items": {"required": ["c"]}}}}}},
            {"a": {"b": [{"c": 1}, {}]}},
            ["Missing argument 'a.b[1].c'."],
        ),
        (
            {"properties": {"a": {"type": ["string", "null"]}}},
            {"a": 1},
            ["The argument 'a' must be of type null or string."],
        ),
        (
            {"properties": {"a": {"enum": ["x", "y"]}}},
            {"a": "z" * 10_000},
            ['The argument \'a\': the value is not one of "x" or "y".'],
        ),
        (
            {"properties": {"a": {"maximum": 3}}},
            {"a": 4},
            ["The argument 'a': the value is greater than the maximum of 3."],
        ),
        (
            {"additionalProperties": False, "properties": {}},
            {"x": 1, "y": 2},
            ["Unknown argument 'x'.", "Unknown argument 'y'."],
        ),
        ({"additionalProperties": False}, {"x": 1}, ["No arguments are allowed."]),
        ({"properties": {"x": False}}, {"x": 1}, ["Unknown argument 'x'."]),
        ({"minProperties": 1}, {}, ["The arguments: the value has less than 1 property."]),
        ({"properties": {"a": {"pattern": "^a+$"}}}, {"a": "aaa"}, []),
        ({}, {"anything": [None, {"at": "all"}]}, []),
        # Words of schemas where they are only names or data.
        ({"properties": {"$ref": {"type": "string"}}}, {"$ref": "x"}, []),
        ({"properties": {"a": {"const": {"$ref": "x"}}}}, {"a": {"$ref": "x"}}, []),
        (
            {"properties": {"pattern": {"type": "string"}}, "required": ["pattern"]},
            {"pattern": "("},
            [],
        ),
    ],
)
def test_what_does_not_fit_is_told(
    schema: dict[str, Any], arguments: dict[str, Any], expected: list[str]
) -> None:
    """A mismatch is reported with place and reason, never with the value."""
    assert expected == errors(schema, arguments)


def test_a_handful_of_short_sentences_is_told() -> None:
    """However much is wrong, and however long the names are."""
    wide = {"additionalProperties": False, "properties": {"l": {"items": {"type": "string"}}}}
    for arguments in (
        {f"{n}" + "x" * 1000: n for n in range(100)},
        {"l": list(range(100_000))},
        {"l": [["x"] * 100_000]},
    ):
        found = errors(wide, arguments)
        assert 1 <= len(found) <= MAX_ERRORS
        assert max(map(len, found)) < 400


def test_what_json_does_not_have_is_told() -> None:
    """Half a character, or nesting without end."""
    deep: dict[str, Any] = {}
    for _ in range(500):
        deep = {"a": deep}
    for arguments in ({"a": "\ud800"}, deep):
        assert ["The arguments: nested too deeply, or not valid JSON."] == errors(
            {"properties": {"a": {"const": {"b": 1}}}}, arguments
        )


# References.


def test_a_reference_is_what_it_refers_to() -> None:
    """A reference is resolved within the schema, through other references, and with its
    siblings.
    """
    schema = {
        "$defs": {"name": {"$ref": "#/$defs/a~1b%20c"}, "a/b c": {"type": "string"}},
        "properties": {
            "n": {"$ref": "#/$defs/name", "maxLength": 2},
            "m": {"$ref": "#/$defs/name"},
        },
    }

    assert [] == errors(schema, {"n": "ab", "m": "abc"})
    assert ["The argument 'n' must be of type string."] == errors(schema, {"n": 1})
    assert "longer than 2" in errors(schema, {"n": "abc"})[0]


def test_an_old_draft_s_reference_stands_alone() -> None:
    """The siblings of a reference have no meaning in old drafts."""
    schema = {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "definitions": {"name": {"type": "string"}},
        "properties": {"n": {"$ref": "#/definitions/name", "maxLength": 2}},
    }

    assert [] == errors(schema, {"n": "abc"})
    assert ["The argument 'n' must be of type string."] == errors(schema, {"n": 1})


def test_what_refers_to_itself_is_checked_once() -> None:
    """Below that it is the server's to check."""
    assert [] == errors(TREE, {"root": {"name": "a", "children": [{"name": "b", "children": []}]}})
    assert ["Missing argument 'root.name'."] == errors(TREE, {"root": {}})
    assert [] == errors(TREE, {"root": {"name": "a", "children": [{"no": "name"}]}})


@pytest.mark.parametrize(
    "schema",
    [
        {"not": {"$ref": "#"}},
        {"properties": {"a": {"not": {"pattern": "(?=a)"}}}},
        {"properties": {"a": {"oneOf": [{"pattern": "^(?!b)"}, {"pattern": "^(?!c)"}]}}},
        {"if": {"properties": {"a": {"pattern": "(?=x)"}}}, "then": {"required": ["z"]}},
        {"allOf": [{"$ref": "#"}], "unevaluatedProperties": False},
        {"properties": {"a": {"pattern": r"(a)\1"}}},
        {"patternProperties": {"(?=a)": {}}, "additionalProperties": False},
        {"patternProperties": {"^(?!b)": {}}, "unevaluatedProperties": False},
    ],
)
def test_what_cannot_be_checked_refuses_nothing(schema: dict[str, Any]) -> None:
    """Keywords that cannot be checked refuse nothing, whether under a negation or in overlapping
    cases.
    """
    assert [] == errors(schema, {"a": "abc"})


@pytest.mark.parametrize(
    ("schema", "why"),
    [
        ({"type": "nonsense"}, "Not a JSON Schema"),
        ({"required": "a"}, "Not a JSON Schema"),
        ({"properties": []}, "Not a JSON Schema"),
        ({"properties": {"a": 3}}, "Not a JSON Schema"),
        ({"$schema": 3}, "Not a JSON Schema"),
        ({"const": float("nan"), "maximum": "\ud800"}, "Not a JSON Schema"),
        ({"$schema": "http://127.0.0.1:1/x"}, "Not a JSON Schema"),
        ({"$ref": "http://127.0.0.1:1/x"}, "other documents"),
        ({"items": {"$ref": "file:///etc/passwd"}}, "other documents"),
        ({"$ref": "other.json"}, "other documents"),
        ({"$ref": "#anchor"}, "anchors"),
        ({"$id": "http://x/s", "$ref": "http://x/schema#/$defs/a"}, "other documents"),
        ({"$ref": "#/$defs/none"}, "Unresolvable"),
        ({"properties": {"a": {"$id": "http://x/", "$ref": "y"}}}, "Embedded schema resources"),
        ({"$dynamicRef": "#x"}, "Dynamic references"),
    ],
)
def test_what_is_no_schema_by_itself_is_refused(schema: dict[str, Any], why: str) -> None:
    """An invalid schema is refused at once, without fetching anything."""
    with pytest.raises(InvalidSchema, match=why):
        ArgumentSchema(schema)


# Enemies.


def doubling(levels: int) -> dict[str, Any]:
    """Build a schema that is small, and twice as large with every level."""
    steps = {
        f"a{n}": {"anyOf": [{"$ref": f"#/$defs/a{n + 1}"}] * 2, "type": "string"}
        for n in range(levels)
    }
    return {"$defs": {**steps, f"a{levels}": {"type": "string"}}, "$ref": "#/$defs/a0"}


def nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(levels):
        schema = {"not": schema}
    return schema


def unevaluated(levels: int) -> dict[str, Any]:
    """Build a schema of which each level looks twice at what is below it."""
    schema: dict[str, Any] = {}
    for _ in range(levels):
        schema = {"allOf": [schema], "unevaluatedProperties": {"type": "object"}}
    return schema


@pytest.mark.parametrize(
    "schema",
    [
        doubling(30),
        nested(50),
        nested(900),
        {"properties": {f"a{n}": {} for n in range(10_000)}},
        {"enum": ["x" * 1000] * 1000},
        {"$defs": {"a": {"enum": ["x" * 30_000]}}, "allOf": [{"$ref": "#/$defs/a"}] * 500},
        {
            "$defs": {f"a{n}": {"$ref": f"#/$defs/a{n + 1}"} for n in range(500)},
            "$ref": "#/$defs/a0",
        },
    ],
)
def test_a_schema_that_grows_is_refused_soon(schema: dict[str, Any]) -> None:
    """A schema that expands too far is refused before it is compiled."""

    def refused() -> None:
        with pytest.raises(InvalidSchema, match="too large|deeper"):
            ArgumentSchema(schema)

    assert is_within(0.5, refused)


SLOW: dict[str, Any] = {"pattern": "(x{1,23}){1,9}y"}
NESTED = functools.reduce(lambda inner, _: {"anyOf": [inner]}, range(16), SLOW)


@pytest.mark.parametrize(
    ("schema", "arguments"),
    [
        ({"properties": {"a": {"pattern": "(a+)+$"}}}, {"a": "a" * 100_000 + "b"}),
        ({"properties": {"a": {"pattern": "(a|a)*b(a|aa)*$"}}}, {"a": "a" * 100_000}),
        ({"properties": {"a": {"pattern": "(a{1000}){1000}"}}}, {"a": "a" * 100_000}),
        (
            {"properties": {"a": {"anyOf": [{"pattern": f"\\w{{99}}{n}"} for n in range(900)]}}},
            {"a": "a"},
        ),
        (
            {"properties": {"a": {"items": {"anyOf": [{"type": "string"}] * 1500}}}},
            {"a": [1] * 1000},
        ),
        (doubling(9), {"a": [{"b": 1}] * 1000}),
        ({"properties": {"a": NESTED}}, {"a": "x" * 19_990}),
        ({"properties": {"a": {"pattern": "(x{1,90}){1,9}y"}}}, {"a": "x" * 900_000}),
        ({"properties": {"a": SLOW}}, {"a": "x" * 900_000}),
        (
            {"patternProperties": {"(x{1,23}){1,9}y": {}}, "additionalProperties": False},
            {"x" * 900_000: 1},
        ),
        (
            {"properties": {"a": {"allOf": [{"contains": {"const": 2}}] * 800}}},
            {"a": [1] * 500_000},
        ),
        ({"properties": {"a": {"anyOf": [{"const": "x"}] * 1600}}}, {"a": "x" * 900_000}),
        ({"properties": {"a": {"allOf": [{"multipleOf": 7}] * 1000}}}, {"a": 10**4000}),
        (unevaluated(38), {"a": {"b": 1}}),
        ({"properties": {"a": {"uniqueItems": True}}}, {"a": [[n] for n in range(20_000)]}),
        (
            {"items": {"$ref": "#"}, "properties": {"a": {"allOf": [{"$ref": "#"}] * 50}}},
            {"a": {"a": 1}},
        ),
    ],
)
def test_no_schema_makes_a_check_long(schema: dict[str, Any], arguments: dict[str, Any]) -> None:
    """Patterns are linear, and the work has a bound."""
    assert is_within(0.5, lambda: errors(schema, arguments))


def test_arguments_beyond_all_measure_are_refused() -> None:
    """A schema of some size and many values; of either alone there may be much."""
    large: dict[str, Any] = {"properties": {f"a{n}": {"type": "string"} for n in range(200)}}
    rows = {"rows": [[n] for n in range(20_000)]}
    large["not"] = {"required": ["a"]}  # it looks at the whole value

    assert ["The arguments: too large to validate."] == errors(large, rows)
    assert [] == errors(large, {"rows": [1] * 1000})
    assert [] == errors({"required": ["rows"]}, rows)


def test_long_arguments_are_checked_without_patterns() -> None:
    """Everything else still is; names that only a pattern allows are allowed."""
    path = {"type": "string", "pattern": "^/"}
    schema = {"properties": {"path": path, "text": path}, "required": ["path"]}
    names = {"patternProperties": {"^x-": {"type": "string"}}, "additionalProperties": False}
    text = "x" * 100_000

    assert 1 == len(errors(schema, {"path": "a", "other": text}))
    assert [] == errors(schema, {"path": "a", "text": text})
    assert ["Missing argument 'path'."] == errors(schema, {"text": text})
    assert ["Unknown argument 'a'."] == errors(names, {"a": "x"})
    assert [] == errors(names, {"x-a": text})


X = {"pattern": "^x*$"}
LONG = "x" * 60_000


@pytest.mark.parametrize(
    ("schema", "output"),
    [
        ({"properties": {"a": X, "b": X}}, {"a": LONG, "b": LONG}),
        ({"additionalProperties": X, "properties": {"c": {}}}, {"a": LONG, "b": LONG}),
        ({"unevaluatedProperties": X}, {"a": LONG, "b": LONG}),
        ({"patternProperties": {"^[ab]$": X}}, {"a": LONG, "b": LONG}),
        ({"patternProperties": {"^x*$": {}, "x": {}}}, {LONG: 1}),
        ({"propertyNames": X}, {LONG: 1, LONG + "x": 1}),
        ({"properties": {"a": {"items": X}}}, {"a": [LONG, LONG]}),
        ({"properties": {"a": {"prefixItems": [X, X]}}}, {"a": [LONG, LONG]}),
        ({"properties": {"a": {"contains": X}}}, {"a": [LONG, LONG]}),
        ({"properties": {"a": {"unevaluatedItems": X}}}, {"a": [LONG, LONG]}),
        ({"$schema": DRAFT_7, "properties": {"a": {"items": [X, X]}}}, {"a": [LONG, LONG]}),
        (
            {"$schema": DRAFT_7, "properties": {"a": {"items": [{}], "additionalItems": X}}},
            {"a": [1, LONG, LONG]},
        ),
        ({"allOf": [{"properties": {"a": X}}] * 2}, {"a": LONG}),
        ({"anyOf": [{"properties": {"a": X}}]}, {"a": LONG}),
        ({"oneOf": [{"properties": {"a": X}}]}, {"a": LONG}),
        ({"not": {"properties": {"a": X}, "required": ["b"]}}, {"a": LONG}),
        ({"if": {"properties": {"a": X}}}, {"a": LONG}),
        ({"dependentSchemas": {"a": {"properties": {"a": X}}}}, {"a": LONG}),
        ({"$schema": DRAFT_7, "dependencies": {"a": {"properties": {"a": X}}}}, {"a": LONG}),
        ({"$defs": {"x": X}, "properties": {"a": {"$ref": "#/$defs/x"}, "b": X}}, {"a": 2 * LONG}),
    ],
)
def test_an_output_too_long_for_its_patterns_is_refused(
    schema: dict[str, Any], output: dict[str, Any]
) -> None:
    """Wherever a pattern is; the same text where no pattern applies to it is accepted."""
    beside = {"properties": {"text": {}, "id": X}}

    assert ["The output: too large to validate."] == ArgumentSchema(schema, OUTPUT).errors(output)
    assert [] == ArgumentSchema(beside, OUTPUT).errors({"text": output, "id": "x"})


def test_a_long_output_is_checked_with_patterns() -> None:
    """Only the characters that patterns apply to have a limit, not those of the whole output."""
    names = [f"id{number}" for number in range(10)]
    schema = {"properties": {name: {"pattern": "^[A-Z]{3}-[0-9]{4}$"} for name in names}}
    output = dict.fromkeys(names, "ABC-1234") | {"text": LONG}

    assert [] == ArgumentSchema(schema, OUTPUT).errors(output)
    [error] = ArgumentSchema(schema, OUTPUT).errors(output | {"id7": "not an id"})
    assert error.startswith("The property 'id7': ")
    inner = {"allOf": [{"$ref": "#/$defs/x"}]}
    referred = {"$defs": {"x": X, "y": inner}, "properties": {"a": {"$ref": "#/$defs/y"}}}
    assert [] == ArgumentSchema(referred, OUTPUT).errors({"a": LONG})


@pytest.mark.parametrize("levels", [0, 1, 6, 15])
def test_no_schema_makes_the_check_of_an_output_long(levels: int) -> None:
    """The limit holds where errors are looked for again at each level, too."""
    schema: dict[str, Any] = {"properties": {"a": {"pattern": "(x{1,23}){1,9}y"}}}
    for _ in range(levels):
        schema = {"anyOf": [schema, {"required": ["b"]}]}
    check = ArgumentSchema(schema, OUTPUT)

    for characters in (5_000, 12_000, 45_000, 99_990):
        output = {"a": "x" * characters}
        assert is_within(2.0, lambda output=output: check.errors(output))


def test_the_schema_given_is_left_as_it_is() -> None:
    """The model still reads all of it."""
    before = json.dumps(TREE)
    ArgumentSchema(TREE)
    assert before == json.dumps(TREE)
