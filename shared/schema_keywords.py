"""Keywords of JSON Schemas that the library would check in a time without a bound."""

import json
from collections.abc import Callable, Mapping
from typing import Any

from jsonschema_rs import Validator

#: What a keyword weighs more that takes longer.
MORE_NODES = 4

_BOUNDS = (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum"))


class UniqueItems:
    """The keyword `uniqueItems`.

    The library compares all items with each other that it takes for alike: integers beyond 2**53,
    and lists that differ in their brackets alone.
    """

    def __init__(self, parent_schema: Any, value: Any, schema_path: Any) -> None:
        self._is_demanded = value is True

    def validate(self, instance: Any) -> None:
        """Check a value. Raises: ValueError: it is a list with two equal items."""
        if not self._is_demanded or not isinstance(instance, list):
            return
        if len({*map(_text, instance)}) < len(instance):
            raise ValueError("the value has non-unique elements")


def alternatives(keyword: str, compile_: Callable[[dict[str, Any]], Validator]) -> type:
    """Return the class for `anyOf` or `oneOf` that names no errors of the alternatives."""
    number = {"anyOf": "any", "oneOf": "exactly one"}[keyword]

    class Alternatives:
        """The keyword, whose own validator only says whether a value is valid."""

        def __init__(self, parent_schema: Any, value: Any, schema_path: Any) -> None:
            self._validator = compile_({keyword: value})

        def validate(self, instance: Any) -> None:
            """Check a value. Raises: ValueError: not as many alternatives fit."""
            if not self._validator.is_valid(instance):
                raise ValueError(
                    f"the value is not valid under {number} of the schemas listed in the"
                    f" '{keyword}' keyword"
                )

    return Alternatives


def _text(value: Any) -> str:
    """Return a text that equal values have in common: 1 and 1.0, and objects in any order."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    match value:
        case bool():
            return repr(value)
        case int():
            return f"{value:x}"  # takes a time that grows with the length, not with its square
        case list():
            return f"[{','.join(map(_text, value))}]"
        case Mapping():
            return f"{{{','.join(sorted(f'{name!r}:{_text(value[name])}' for name in value))}}}"
    return repr(value)


def constant_nodes(constant: Any) -> int:
    """Return the number of nodes as which plain data count, by their characters."""
    return len(json.dumps(constant, ensure_ascii=False)) // 8


def takes_longer(keyword: str, value: Any) -> bool:
    """Return whether a keyword takes up to five times as long as others for each value."""
    is_fraction = isinstance(value, float) and not value.is_integer()
    return keyword == "uniqueItems" or (keyword == "multipleOf" and is_fraction)


def takes_any_name(schema: Any) -> bool:
    """Return whether a schema clearly takes any string: Zod writes one for the names of records."""
    if not isinstance(schema, Mapping):
        return schema is True
    types = schema.get("type", "string")
    return schema.keys() <= {"type", "format"} and "string" in (
        types if isinstance(types, list) else [types]
    )


def only_names(names: Any) -> Any:
    """Return a list of names; of one with something else in it, that alone.

    Either is as invalid, but the library would compare all items of the latter with each other.
    """
    others = [one for one in names if not isinstance(one, str)] if isinstance(names, list) else ()
    return others[:1] or names


def in_new_words(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a schema in which draft 2020-12 reads what older ones write differently.

    That is invalid in it, so nothing else changes; the same object if there is none.
    """
    first = schema.get("items")
    if isinstance(first, list):
        tuples = {"prefixItems": first} if first else {}
        others = {name: schema[name] for name in schema if name not in ("items", "additionalItems")}
        schema = {**others, **tuples, "items": schema.get("additionalItems", {})}
    for exclusive, bound in _BOUNDS:
        if isinstance(schema.get(exclusive), bool):
            new = {**schema}
            if new.pop(exclusive) and bound in new:
                new[exclusive] = new.pop(bound)
            schema = new
    return schema
