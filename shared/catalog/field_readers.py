"""Readers of the fields of a persona, with the JSON Schema of what each of them accepts."""

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from arkloop.shared import usd


class FieldReader(NamedTuple):
    """A field as JSON or YAML has it.

    `read` returns its value, or raises ValueError. Whatever it accepts fits `json_schema`, which
    need not say all that `read` checks; neither knows null.
    """

    read: Callable[[Any], Any]
    json_schema: Mapping[str, Any]


def nullable(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return the JSON Schema that also allows null."""
    if not isinstance(schema.get("type"), str) or "const" in schema:
        return {"anyOf": [schema, {"type": "null"}]}
    enum = {"enum": [*schema["enum"], None]} if "enum" in schema else {}
    return {**schema, "type": [schema["type"], "null"], **enum}


def object_of(schemas: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the JSON Schema of an object with some of these properties, and no other."""
    properties = {name: nullable(schema) for name, schema in schemas.items()}
    return {"type": "object", "properties": properties, "additionalProperties": False}


def of_form(form: re.Pattern[str]) -> FieldReader:
    """Return the reader of a string that matches as a whole."""

    def read(value: Any) -> str:
        if not form.fullmatch(_text(value)):
            raise ValueError(f"must match {form.pattern}")
        return str(value)

    return FieldReader(read, {"type": "string", "pattern": f"^({form.pattern})$"})


def utf8(most: int) -> FieldReader:
    """Return the reader of a string of at most this many bytes of UTF-8."""

    def read(value: Any) -> str:
        if len(_text(value).encode()) > most:
            raise ValueError(f"must have at most {most} bytes of UTF-8")
        return str(value)

    return FieldReader(read, {"type": "string", "maxLength": most})


def one_of(*choices: str) -> FieldReader:
    """Return the reader of one of these strings."""

    def read(value: Any) -> str:
        if _text(value) not in choices:
            raise ValueError(f"must be one of {', '.join(choices)}")
        return str(value)

    return FieldReader(read, {"type": "string", "enum": [*choices]})


def list_of(entry: FieldReader, most: int) -> FieldReader:
    """Return the reader of a list without duplicates."""

    def read(value: Any) -> tuple[str, ...]:
        if not isinstance(value, list):
            raise ValueError("must be a list of strings")
        if len(value) > most:
            raise ValueError(f"must have at most {most} entries")
        entries = tuple(entry.read(one) for one in value)
        repeated = [one for one in entries if entries.count(one) > 1]
        if repeated:
            raise ValueError(f"duplicate entry {repeated[0]!r}")
        return entries

    # Without `uniqueItems`: generators make sets of such lists, which have no order.
    schema = {"type": "array", "items": entry.json_schema, "maxItems": most}
    return FieldReader(read, schema)


def whole(most: int, *, least: int = 1) -> FieldReader:
    """Return the reader of an integer within bounds."""

    def read(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise ValueError(f"must be an integer from {least} to {most}")
        return value

    return FieldReader(read, {"type": "integer", "minimum": least, "maximum": most})


def seconds(most: int) -> FieldReader:
    """Return the reader of a number of seconds, from 1."""

    def read(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not 1 <= value <= most:
            raise ValueError(f"must be a number of seconds from 1 to {most}")
        return float(value)

    return FieldReader(read, {"type": "number", "minimum": 1, "maximum": most})


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("must be a string")
    return value


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("must be true or false")
    return value


FLAG = FieldReader(_flag, {"type": "boolean"})
AMOUNT = FieldReader(usd.parse, usd.JSON_SCHEMA)
