"""Schemas with parts that are not checked: no value is refused for it."""

from typing import Any

import pytest

from arkloop.shared.json_schema import JsonSchema


@pytest.mark.parametrize(
    "part",
    [
        {"type": "string", "pattern": "^(?=foo)"},
        {"properties": {"n": {"$ref": "#"}}, "required": ["n"]},
    ],
    ids=["pattern", "recursion"],
)
def test_items_that_match_more_often_are_not_too_many(part: dict[str, Any]) -> None:
    """More items match what `contains` has left than the author meant, so their greatest number
    does not hold.
    """
    schema = JsonSchema({"contains": part, "minContains": 1, "maxContains": 1})

    assert schema.unchecked
    assert schema.validator.is_valid(["foo", "bar", {"n": []}, {"n": []}])
    assert not schema.validator.is_valid([])
