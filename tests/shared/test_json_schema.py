"""Schemas of others that are made to be expensive to compile."""

import json
from typing import Any

import pytest

from arkloop.shared.json_schema import InvalidSchema, JsonSchema
from tests.processor_time import is_within

#: Far above what a bounded step takes on a busy machine, far below what an unbounded one does.
SECONDS = 0.5


def repeated(part: Any, count: int, **defs: Any) -> dict[str, Any]:
    """Return a schema that refers to a part again and again."""
    either = [{"$ref": "#/$defs/x"}] * count
    return {"type": "object", "allOf": either, "$defs": {"x": part, **defs}}


def compiled(schema: dict[str, Any]) -> bool:
    """Compile a schema; return whether it could be, in any case within the limits of requests."""
    assert len(json.dumps(schema, ensure_ascii=False, separators=(",", ":"))) < 64 * 1024
    try:
        JsonSchema(schema)
    except InvalidSchema:
        return False
    return True


LONG_REFERENCE = {"$ref": "#/$defs/" + "%4b" * 9_000}
DEPENDENCIES = {"dependencies": {"a": [f"{number:x}" for number in range(4_000)]}}
REPEATED = [
    (repeated(LONG_REFERENCE, 1_200, **{"K" * 9_000: {}}), True),
    (repeated(DEPENDENCIES, 1_600), False),
]


@pytest.mark.parametrize(("schema", "is_usable"), REPEATED, ids=["reference", "names"])
def test_a_part_that_is_referred_to_often_costs_little(
    schema: dict[str, Any], is_usable: bool
) -> None:
    """A web process compiles it, and serves nothing meanwhile."""
    usable: list[bool] = []

    assert is_within(SECONDS, lambda: usable.append(compiled(schema)))

    assert is_usable == usable[0]


def multiplied(part: Any) -> dict[str, Any]:
    """Return a schema that has a part 2,304 times."""
    either = [{"$ref": "#/$defs/y"}] * 48
    return repeated({"allOf": either}, 48, y=part)


@pytest.mark.parametrize(
    "part", [{f"{number:x}": 1 for number in range(1_650)}, {"x" * 20_000: 1}], ids=["many", "long"]
)
def test_keywords_count(part: dict[str, Any]) -> None:
    """Each is compiled wherever the schema is referred to, known or not."""
    with pytest.raises(InvalidSchema, match="too large"):
        JsonSchema(multiplied(part))


def test_long_names_count() -> None:
    """The text of its place is kept for each node: of the properties around it, too."""
    name = "x" * 10_000
    many = multiplied({"minLength": 1})
    above = {"properties": {name: {"allOf": many["allOf"]}}, "$defs": many["$defs"]}
    for schema in (multiplied({"properties": {name: {}}}), above):
        with pytest.raises(InvalidSchema, match="too large"):
            JsonSchema(schema)
    assert 1 + 2 * (1 + 10_000 // 256) == JsonSchema({"properties": {name: {"items": {}}}}).nodes


def test_keywords_of_a_real_schema_do_not_count() -> None:
    """A node has a few of them. It is the text `"string"` that counts as one more."""
    part = {
        "type": "array",
        "title": "Labels",
        "description": "The labels of the issue.",
        "items": {"type": "string", "minLength": 1, "maxLength": 64, "examples": ["bug"]},
        "minItems": 1,
        "maxItems": 9,
        "uniqueItems": True,
        "x-order": 3,
    }
    assert 4 == JsonSchema({"properties": {"labels": part}}).nodes


@pytest.mark.parametrize("text", ["ascii", "äöüßé", "日本語文字", "😀😀😀😀😀"])
def test_constants_count_by_their_characters(text: str) -> None:
    """A choice of countries may be as long in each language."""
    names = [f"{text}{number}" for number in range(100, 200)]
    nodes = 2 + 100 * len(f'"{text}100", ') // 8

    assert nodes == JsonSchema({"properties": {"land": {"enum": names}}}).nodes
    assert nodes == JsonSchema({"dependencies": {"land": names}}).nodes


@pytest.mark.parametrize(
    "pattern",
    [
        r"(?i)" + r"\p{Any}" * 60,
        "(?mi:" + r"[\x00-\U0010ffff]" * 60 + ")",
        "(?i)[ -\uffff]" + "[ -\uffff]" * 90,
        "(?xi)" + "[!- \U0010ffff]" * 60,
        "(?i-s)(?x)" + "[!-#c\n\U0010ffff]" * 60,
        "(?i)" + r"[a\W]" * 60,
        "(?x)( ?i:" + "[!-\n\\x{10ffff}]" * 60 + ")",
    ],
)
def test_no_pattern_takes_long_to_compile(pattern: str) -> None:
    """Each character of a wide class is looked up if case is ignored."""
    properties = {f"a{number}": {"pattern": pattern} for number in range(32)}
    found: list[JsonSchema] = []

    assert is_within(SECONDS, lambda: found.append(JsonSchema({"properties": properties})))

    assert len(properties) == len(found[0].unchecked)


LARGE = "is too large when compiled, or is none; use `maxLength` to limit a length."
ENGINE = "needs look-around or back-references, which are not supported."


@pytest.mark.parametrize(
    ("pattern", "why"),
    [
        ("^.{1,255}$", LARGE),
        (r"^\p{L}+$", LARGE),
        (r"^[(?=]\\1?.{255}", LARGE),
        ("(", LARGE),
        ("^(?!a)", ENGINE),
        ("a(?<=a)", ENGINE),
        (r"(a)\1", ENGINE),
        (r"(?<n>a)\k<n>", ENGINE),
        (r"(?P<n>a)(?P=n)", ENGINE),
    ],
)
def test_the_reason_why_a_pattern_is_not_checked_is_named(pattern: str, why: str) -> None:
    """An author can do something else about each."""
    own = JsonSchema({"pattern": pattern})
    of_names = JsonSchema({"patternProperties": {"^a": {}, pattern: {}}})

    assert [f"The pattern {pattern!r} {why}"] == own.unchecked
    assert [f"The pattern of `patternProperties` {why}"] == of_names.unchecked


@pytest.mark.parametrize(
    "pattern", ["[" * 60_000, "[" * 60_000 + "\\", "(?" * 30_000, "(\\" * 30_000]
)
def test_the_reason_is_found_in_linear_time(pattern: str) -> None:
    """A pattern may be as long as a schema."""
    assert is_within(SECONDS, lambda: JsonSchema({"pattern": pattern}))


def test_a_pattern_beyond_the_limit_is_said_to_be_one_too_many() -> None:
    """It may be as simple as the others."""
    properties = {f"a{number}": {"pattern": f"^{number}$"} for number in range(33)}

    unchecked = JsonSchema({"properties": properties}).unchecked

    assert ["The pattern '^32$' is beyond the limit of 32 patterns."] == unchecked


@pytest.mark.parametrize("digits", ["[0-9a-f]{4}", r"\d{4}-\d{2}"])
def test_patterns_that_ignore_case_are_checked(digits: str) -> None:
    """As many as others are, since the classes of real ones are narrow."""
    pattern = rf"(?i)^[0-9a-f]{{8}}-{digits}-[\w+-]{{2}}[a-z0-9_.-]$"
    schema = JsonSchema(
        {"properties": {f"a{number}": {"pattern": pattern} for number in range(32)}}
    )

    assert not schema.unchecked
    middle = "beef" if "a-f" in digits else "2026-12"
    assert schema.validator.is_valid({"a31": f"0123ABCD-{middle}-x+Z"})
    assert not schema.validator.is_valid({"a31": f"0123ABCX-{middle}-x+Z"})
