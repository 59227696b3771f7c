"""Client tools: declared by personas and runs, executed by the programs that use the API.

They are stored as text: the order of a schema's properties is the order in which models write
them, and `jsonb` would lose it.
"""

import json
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from arkloop.shared import portable_schema
from arkloop.shared.catalog.field_readers import FieldReader, nullable
from arkloop.shared.json_schema import MAX_NODES, MAX_PATTERNS, InvalidSchema, JsonSchema

#: Of a persona, and again of a run.
MAX_TOOLS = 64
MAX_DESCRIPTION_BYTES = 4_096
#: Of all definitions together, as JSON in UTF-8.
MAX_BYTES = 65_536
#: Of what the forms for vendors add to all schemas, in nodes.
MAX_NODES_ADDED = 10 * MAX_NODES

_NAME = re.compile("[A-Za-z0-9_-]{1,64}")
#: As long as a run can wait for anything.
MAX_TIMEOUT_SECONDS = 2_592_000.0
_REQUIRED = ("name", "description", "parameters", "client")
_FIELDS = (*_REQUIRED, "idempotent", "timeout_seconds")


@dataclass(frozen=True, slots=True)
class ClientTool:
    """The definition of a tool; `parameters` is the JSON Schema of its arguments.

    `idempotent` tells the client whether it may execute a call again. A result is awaited for
    `timeout_seconds`; None: as long as people are.
    """

    name: str
    description: str
    parameters: Mapping[str, Any]
    idempotent: bool = False
    timeout_seconds: float | None = None


def read(value: Any) -> tuple[ClientTool, ...]:
    """Read a list of definitions; `check` is still to be called.

    Raises:
        ValueError: it is no such list; the message names the place in it.
    """
    if not isinstance(value, list) or len(value) > MAX_TOOLS:
        raise ValueError(f"must be a list of at most {MAX_TOOLS} tools")
    tools = tuple(_tool(place, given) for place, given in enumerate(value))
    if repeated := collisions(tools, ()):
        raise ValueError(f"duplicate tool {repeated[0]!r}")
    if len(to_text(value).encode()) > MAX_BYTES:
        raise ValueError(f"must have at most {MAX_BYTES:,} bytes as JSON")
    return tools


def check(tools: Iterable[ClientTool]) -> None:
    """Compile the schemas, which takes up to 20 ms for all of them.

    Raises:
        ValueError: one is no JSON Schema, or they are too large together.
    """
    nodes = patterns = 0
    for tool in tools:
        try:
            schema = JsonSchema(tool.parameters)
        except InvalidSchema as error:
            raise ValueError(f"{tool.name}: {error}") from None
        nodes, patterns = nodes + schema.nodes, patterns + schema.pattern_weight
        if nodes > MAX_NODES or patterns > MAX_PATTERNS:
            raise ValueError(f"{tool.name}: the schemas are too large together")


def check_new(tools: Iterable[ClientTool]) -> None:
    """Check schemas of tools that are not stored yet: vendors refuse requests for what is invalid.

    Raises:
        ValueError: one is no JSON Schema in the form that vendors get, or as for `check`.
    """
    given = tuple(tools)
    check(given)
    added = 0
    for tool in given:
        try:
            added += portable_schema.check(tool.parameters)
        except InvalidSchema as error:
            raise ValueError(f"{tool.name}: {error}") from None
        if added > MAX_NODES_ADDED:
            raise ValueError(f"{tool.name}: the schemas are too large together")


def collisions(tools: Iterable[ClientTool], taken: Collection[str]) -> list[str]:
    """Return the names that another tool of the list has, or that are `taken`."""
    seen = {*taken}
    found: list[str] = []
    for tool in tools:
        if tool.name in seen:
            found.append(tool.name)
        seen.add(tool.name)
    return found


def shown(tools: Iterable[ClientTool]) -> list[dict[str, Any]]:
    """Return the definitions as they are given."""
    return [{**asdict(tool), "client": True} for tool in tools]


def to_text(value: Any) -> str:
    """Return the JSON that is stored. Raises: ValueError: it is not JSON."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except TypeError:
        raise ValueError("must be JSON") from None


def from_text(text: str) -> list[dict[str, Any]]:
    """Return the definitions of the JSON that is stored."""
    tools: list[dict[str, Any]] = json.loads(text)
    return tools


def _tool(place: int, given: Any) -> ClientTool:
    if not isinstance(given, dict):
        raise ValueError(f"[{place}] must be an object with {', '.join(_REQUIRED)}")
    for name in given:
        if name not in _FIELDS:
            raise ValueError(f"[{place}].{name} is an unknown field")
    if given.get("client") is not True:
        raise ValueError(f"[{place}].client must be true")
    name, description, schema = (given.get(field) for field in _FIELDS[:3])
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(f"[{place}].name must match {_NAME.pattern}")
    if not isinstance(description, str) or not (
        0 < len(description.encode()) <= MAX_DESCRIPTION_BYTES
    ):
        why = f"must be a string of 1 to {MAX_DESCRIPTION_BYTES:,} bytes of UTF-8"
        raise ValueError(f"[{place}].description {why}")
    if not isinstance(schema, dict) or schema.get("type") != "object":
        raise ValueError(f'[{place}].parameters must be a JSON Schema with "type": "object"')
    idempotent, seconds = given.get("idempotent"), given.get("timeout_seconds")
    if idempotent is not None and not isinstance(idempotent, bool):
        raise ValueError(f"[{place}].idempotent must be true or false")
    if seconds is not None and not _is_timeout(seconds):
        raise ValueError(f"[{place}].timeout_seconds must be 1 to {MAX_TIMEOUT_SECONDS:,.0f}")
    return ClientTool(name, description, schema, bool(idempotent), seconds)


def _is_timeout(seconds: Any) -> bool:
    is_number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
    return is_number and 1 <= seconds <= MAX_TIMEOUT_SECONDS


_TOOL: Mapping[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "pattern": f"^{_NAME.pattern}$"},
        "description": {"type": "string", "minLength": 1, "maxLength": MAX_DESCRIPTION_BYTES},
        "parameters": {"type": "object"},
        "client": {"type": "boolean"},
        "idempotent": nullable({"type": "boolean"}),
        "timeout_seconds": nullable(
            {"type": "number", "minimum": 1, "maximum": MAX_TIMEOUT_SECONDS}
        ),
    },
    "required": [*_REQUIRED],
    "additionalProperties": False,
}
FIELD = FieldReader(read, {"type": "array", "items": _TOOL, "maxItems": MAX_TOOLS})
