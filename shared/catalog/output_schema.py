"""The JSON Schema of a run's output, as personas and runs set it.

It is stored as text: the order of its properties is the order in which models write them, and
`jsonb` would lose it.
"""

import json
from collections.abc import Mapping
from typing import Any

from arkloop.shared import portable_schema
from arkloop.shared.catalog.field_readers import FieldReader
from arkloop.shared.json_schema import InvalidSchema, JsonSchema

#: As JSON, in UTF-8.
MAX_BYTES = 65_536
#: Characters of an output that patterns have to match: beyond it the output is refused. Each costs
#: 10 ns as a rule, but up to 8 µs by a malicious pattern, and no other run of the process advances.
MAX_MATCHED = 100_000


def read(value: Any) -> Mapping[str, Any]:
    """Read a schema of objects; `check` is still to be called.

    Raises:
        ValueError: it is no object, too large, or of other values than objects.
    """
    if not isinstance(value, dict) or value.get("type") != "object":
        raise ValueError('must be a JSON Schema with "type": "object"')
    try:
        size = len(to_text(value).encode())
    except (TypeError, ValueError):
        raise ValueError("must be JSON") from None
    if size > MAX_BYTES:
        raise ValueError(f"must have at most {MAX_BYTES:,} bytes as JSON")
    return value


def check(schema: Mapping[str, Any]) -> None:
    """Compile the schema, which takes up to 20 ms.

    Raises:
        ValueError: it is no JSON Schema, or outputs could not be validated against all of it.
    """
    try:
        unchecked = JsonSchema(schema).unchecked
    except InvalidSchema as error:
        raise ValueError(str(error)) from None
    if unchecked:
        raise ValueError(unchecked[0])


def check_new(schema: Mapping[str, Any]) -> None:
    """Check a schema that is not stored yet: vendors refuse requests for what is invalid.

    Raises:
        ValueError: a part of it is invalid to which nothing refers, or as for `check`.
    """
    check(schema)
    try:
        portable_schema.check(schema)
        portable_schema.check_as_written(schema)
    except InvalidSchema as error:
        raise ValueError(str(error)) from None


def to_text(schema: Mapping[str, Any]) -> str:
    """Return the JSON that is stored."""
    return json.dumps(schema, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def from_text(text: str) -> dict[str, Any]:
    """Return the schema of the JSON that is stored."""
    schema: dict[str, Any] = json.loads(text)
    return schema


FIELD = FieldReader(read, {"type": "object"})
