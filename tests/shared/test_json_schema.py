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
