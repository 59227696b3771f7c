"""The work of checking a value: the bound refuses what takes long, and no large extraction."""

import json
from types import SimpleNamespace
from typing import Any

import pytest

from arkloop.shared.errors import InvalidRequest
from arkloop.shared.json_schema import JsonSchema
from arkloop.shared.runs import agent_limits, form_replies
from arkloop.worker.contract.argument_schema import OUTPUT, ArgumentSchema
from tests.processor_time import is_within

#: Far above what a bounded check takes, with the estimate of its work before it.
SECONDS = 0.5
DRAFT_7 = "http://json-schema.org/draft-07/schema#"
STRING = {"type": "string"}


def record(names: list[str], part: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Write a schema with properties that are all required."""
    properties = dict.fromkeys(names, part)
    strict = {"required": names, "additionalProperties": False}
    return {"type": "object", "properties": properties, **strict, **more}


FIELD = record(["value", "page", "confidence", "quote"], STRING)
FOUND = dict.fromkeys(FIELD["properties"], "Total amount as printed: 12.50 EUR")
NAMES = [f"line_item_{number}" for number in range(100)]
REFERRED = {"$ref": "#/$defs/Field"}
QUESTIONS = [f"question_{number}" for number in range(300)]
TEN = [f"column_{number}" for number in range(10)]
ROWS = record(["rows"], {"type": "array", "items": record(TEN, {"anyOf": [STRING]})})
OLD = {"$schema": DRAFT_7, "definitions": {"Field": FIELD}}

LARGE = [
    (record(NAMES, FIELD), dict.fromkeys(NAMES, FOUND)),
    (record(NAMES, REFERRED, **{"$defs": {"Field": FIELD}}), dict.fromkeys(NAMES, FOUND)),
    (record(NAMES, {"$ref": "#/definitions/Field"}, **OLD), dict.fromkeys(NAMES, FOUND)),
    (
        record(NAMES, {"anyOf": [REFERRED, {"type": "null"}]}, **{"$defs": {"Field": FIELD}}),
        dict.fromkeys(NAMES, FOUND),
    ),
    (record(QUESTIONS, STRING), dict.fromkeys(QUESTIONS, "x" * 100)),
    (record(QUESTIONS, {"anyOf": [STRING, {"type": "null"}]}), dict.fromkeys(QUESTIONS, "x" * 100)),
    (ROWS, {"rows": [dict.fromkeys(TEN, "x")] * 500}),
]


@pytest.mark.parametrize(("schema", "value"), LARGE)
def test_a_large_extraction_is_checked(schema: dict[str, Any], value: dict[str, Any]) -> None:
    """Each part counts with its own schema, at all that check values."""
    persona: Any = SimpleNamespace(output_schema=schema)
    form = {"kind": "form", "schema": schema}

    assert [] == ArgumentSchema(schema).errors(value)
    assert [] == ArgumentSchema(schema, OUTPUT).errors(value)
    agent_limits.check_output(persona, json.dumps(value), value)
    form_replies.check(form, json.dumps({"action": "accept", "content": value}))


def test_what_does_not_fit_a_large_schema_is_named() -> None:
    """The first of several, in a bounded time."""
    schema = record(NAMES, FIELD)
    value = {**dict.fromkeys(NAMES, FOUND), "line_item_99": {**FOUND, "page": 7}}

    errors = ArgumentSchema(schema, OUTPUT).errors(value)
    assert ["The property 'line_item_99.page' must be of type string."] == errors


NESTED: dict[str, Any] = {"type": "number"}
DEEP: Any = 1
for _ in range(8):
    NESTED = {"anyOf": [{"type": "array", "items": NESTED}] * 2}
    DEEP = [DEEP] * 3
CHAIN: dict[str, Any] = {"A9": {"items": {"type": "integer"}}}
for _number in range(9):
    CHAIN[f"A{_number}"] = {"allOf": [{"$ref": f"#/$defs/A{_number + 1}"}] * 2}
#: Tried one after the other.
MANY = [{"type": "object", "required": [f"x{number}"]} for number in range(80)]
OPEN = {"type": "object", "properties": {f"a{number}": STRING for number in range(200)}}


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ({"items": {"anyOf": MANY}}, [{"y": 1}] * 5_000),
        (NESTED, DEEP),
        ({"allOf": [{"uniqueItems": True}] * 100}, [*range(20_000)]),
        ({"allOf": [{"items": {"type": "integer"}}] * 300}, [1] * 10_000),
        ({"$ref": "#/$defs/A0"}, [1] * 5_000),
        ({"additionalProperties": {"anyOf": MANY}}, {f"n{n}": {"y": 1} for n in range(9_000)}),
        ({"items": {"allOf": [{"enum": [{"x": 1}, 2]}] * 200}}, [{"x": 1}] * 6_000),
        ({"patternProperties": {"a": OPEN}}, {"a": {"x": [1] * 10_000}}),
        ({"propertyNames": {"anyOf": MANY}}, {f"n{number}": 1 for number in range(9_000)}),
        ({"items": OPEN}, [{"b": 1}] * 5_000),
        ({"allOf": [{"additionalProperties": False}] * 900}, {"x" * 100_000: 1}),
    ],
)
def test_what_takes_long_is_refused_in_a_bounded_time(part: dict[str, Any], value: Any) -> None:
    """Alternatives, references, and what looks at the whole value, are counted with all below."""
    schema = {"type": "object", "properties": {"a": part}, "$defs": CHAIN}
    checked = ArgumentSchema(schema, OUTPUT)
    persona: Any = SimpleNamespace(output_schema=schema)
    content = json.dumps({"a": value})

    def refused() -> None:
        assert ["The output: too large to validate."] == checked.errors({"a": value})

    assert is_within(SECONDS, refused)
    with pytest.raises(InvalidRequest) as error:
        agent_limits.check_output(persona, content, {"a": value})
    assert {"output": ["is too large to validate"]} == error.value.details


def test_parts_never_count_less_than_they_hold() -> None:
    """Nothing is free, also where no schema applies; no depth is too much for the estimate."""
    deep: Any = 1
    for _ in range(100_000):
        deep = [deep]
    work = JsonSchema({"properties": {"a": {"properties": {"b": STRING}}}}).work

    for value in ([1] * 1_000_001, 10**20_000, "x" * 64_000_001):
        assert work.is_too_much({"c": value}, work.product({"c": value}))
    assert not work.is_too_much({"a": deep}, work.product({"a": deep}))
