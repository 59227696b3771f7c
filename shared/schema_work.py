"""The work of checking values against JSON Schemas, estimated before it is done."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

#: Beyond this work a value is refused. Estimate and check take some tenths of a second, in which
#: nothing else of the process advances.
MAX_WORK = 1_000_000

#: Of a part of a value with a schema of its own, beyond what it weighs: finding it takes as long.
_VISIT = 16
#: The keywords of rebuilt schemas that are walked together with a value: each checks something of
#: the object or list itself, or hands its parts to schemas of theirs.
_WALKED = {
    *("$schema", "additionalProperties", "allOf", "format", "items", "maxItems", "maxProperties"),
    *("minItems", "minProperties", "properties", "required", "type"),
}


class Work:
    """The work of checking values against a rebuilt schema, whose parts have `weights` by id.

    It is the schema's weight times the value's. A large schema with a part for each part of the
    value would have the square of what its check takes: then the parts are multiplied each.
    """

    def __init__(self, root: Mapping[str, Any], weights: Mapping[int, int], weight: int) -> None:
        self._root = root
        self._weights = weights
        self._weight = weight

    def product(self, value: Any) -> int:
        """Return the schema's weight times the value's; something above `MAX_WORK` beyond that."""
        return self._weight * measured(value, MAX_WORK // self._weight)

    def is_too_much(self, value: Any, product: int) -> bool:
        """Return whether a value is refused: by its `product`, and also part by part."""
        return product > MAX_WORK and self._by_parts(value) > MAX_WORK

    def _by_parts(self, value: Any) -> int:
        """Return the sum of the products of the parts, each with the schema that applies to it.

        A schema that says more than `_WALKED` is one part, with all below it.
        """
        work = measured(value, MAX_WORK)  # also what no schema applies to is read
        waiting = [(self._root, value)]
        while waiting and work <= MAX_WORK:
            schema, value = waiting.pop()
            work += _VISIT
            if not isinstance(value, Mapping | list) or not _is_walked(schema):
                weight = self._weights.get(id(schema), self._weight)
                work += weight * measured(value, MAX_WORK // weight)
                continue
            work += len(schema.get("required", ())) + len(schema.get("properties", ()))
            work += len(value)
            if isinstance(value, Mapping):
                work += sum(map(len, value)) // 64
            for schema_of_part, part in _parts(schema, value):
                if schema_of_part and isinstance(schema_of_part, Mapping):  # neither true nor {}
                    waiting.append((schema_of_part, part))
                    if work + _VISIT * len(waiting) > MAX_WORK:
                        return MAX_WORK + 1
        return work


def _is_walked(schema: Mapping[str, Any]) -> bool:
    return schema.keys() <= _WALKED and not isinstance(schema.get("items"), list)


def _parts(schema: Mapping[str, Any], value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield the schemas that apply to parts of a value, or again to itself, each with its part."""
    yield from ((inner, value) for inner in schema.get("allOf", ()))
    if isinstance(value, list):
        items = schema.get("items")
        yield from ((items, item) for item in value if items)
        return
    named = schema.get("properties", {})
    other = schema.get("additionalProperties")
    names = value if isinstance(other, Mapping) else named.keys() & value.keys()
    yield from ((named.get(name, other), value[name]) for name in names)


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
