"""Counting the values of a JSON text without parsing it."""

import json
from typing import Any

import pytest

from shared.json_values import has_more_values


def _count(value: Any) -> int:
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + sum(map(_count, items))


@pytest.mark.parametrize(
    "value",
    [
        [0] * 9,
        [[0, [1, 2]], [3, [4]], 5],
        {"a": 1, "b": {"c": [2, 3], "d": {}}},
        ["a,b", "[{,", '\\",[', "\\\\", '"', {",[{": ',"'}],
    ],
)
def test_values_are_counted_as_a_parser_would(value: Any) -> None:
    """Separators in strings are not counted, however the strings are escaped."""
    text, count = json.dumps(value).encode(), _count(value)

    assert has_more_values(text, count - 2)
    assert not has_more_values(text, count + 1)
