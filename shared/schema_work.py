"""The work of checking values against JSON Schemas, estimated before it is done."""

import math
from collections.abc import Mapping
from typing import Any

#: The weight of the schema times that of a value (`measured`): beyond it the value is refused. A
#: tenth of a second, in which nothing else of the process advances.
MAX_WORK = 1_000_000


def measured(value: Any, limit: int) -> int:
    """Measure how much work checking takes, at least `limit + 1` beyond that.

    Each value weighs 1, and so do 64 characters: what goes wrong copies them. Numbers of many
    digits weigh the square of what they are too long.
    """
    weight, characters, waiting = 0, 0, [value]
    while waiting and weight + characters // 64 <= limit:
        value = waiting.pop()
        weight += 1
        match value:
            case Mapping():
                waiting.extend(value.values())
                characters += sum(map(len, value))
            case list():
                waiting.extend(value)
            case str():
                characters += len(value)
            case int():
                weight += (value.bit_length() // 64) ** 2
            case float():
                weight += (max(0, math.frexp(value)[1]) // 64) ** 2
    return weight + characters // 64
