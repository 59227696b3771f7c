"""Write the types of the clients from the description of the API.

    .venv/bin/python scripts/client_types.py [--check | --document]

`.cache/openapi.json` is the description, from which `openapi-typescript` makes the other ones;
with `--document` it alone is written, with `--check` nothing: status 1 if types are outdated.
"""

import json
import keyword
import subprocess
import sys
from pathlib import Path
from typing import Any

from flask import Flask

from arkloop.api.app import BLUEPRINTS
from arkloop.api.description import document
from arkloop.api.http.path_ids import IdConverter, ResponseConverter

ROOT = Path(__file__).parents[1]
TYPES = ROOT / "clients" / "python" / "arkloop_client" / "types.py"
DOCUMENT = ROOT / ".cache" / "openapi.json"
_PLAIN = {
    "string": "str",
    "integer": "int",
    "number": "float",
    "boolean": "bool",
    "null": "None",
}


def described() -> dict[str, Any]:
    """Return the description of the service."""
    app = Flask("described", static_folder=None)
    app.url_map.converters |= {"id": IdConverter, "response": ResponseConverter}
    for blueprint in BLUEPRINTS:
        app.register_blueprint(blueprint)
    return document.build(app)


def python_types(schemas: dict[str, Any]) -> str:
    """Return a module with a type for each schema."""
    parts = [
        '"""Types of requests, responses and events, by `make client-types`."""',
        "# ruff: noqa: E501 # the formatter cannot break a long choice of names",
        "from __future__ import annotations",
        "from typing import Any, Literal, NotRequired, TypeAlias, TypedDict",
    ]
    parts += [_declared(name, schemas[name]) for name in sorted(schemas)]
    source = "\n\n".join(parts) + "\n"
    formatted = subprocess.run(
        [sys.executable, "-m", "ruff", "format", "--stdin-filename", str(TYPES), "-"],
        input=source,
        capture_output=True,
        text=True,
        check=True,
    )
    return formatted.stdout


def _declared(name: str, schema: dict[str, Any]) -> str:
    properties = schema.get("properties")
    if not properties:
        return f"{name}: TypeAlias = {_type(schema, quoted=True)}"
    required = schema.get("required", ())
    hints = {
        field: _type(one) if field in required else f"NotRequired[{_type(one)}]"
        for field, one in properties.items()
    }
    if any(keyword.iskeyword(field) or not field.isidentifier() for field in hints):
        body = ", ".join(f'{field!r}: "{hint}"' for field, hint in hints.items())
        return f'{name} = TypedDict("{name}", {{{body}}})'
    lines = [f"class {name}(TypedDict):"]
    if text := schema.get("description"):
        lines.append(f"    {json.dumps(text.splitlines()[0], ensure_ascii=False)}")
    lines += [f"    {field}: {hint}" for field, hint in hints.items()]
    return "\n".join(lines)


def _type(schema: dict[str, Any], *, quoted: bool = False) -> str:
    found = _union(schema)
    return f'"{found}"' if quoted else found


def _union(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        return str(schema["$ref"].rpartition("/")[2])
    if "const" in schema:
        return f"Literal[{schema['const']!r}]"
    if "enum" in schema:
        if any(isinstance(value, float | dict | list) for value in schema["enum"]):
            return "Any"
        return f"Literal[{', '.join(map(repr, schema['enum']))}]"
    kinds = schema.get("type", [])
    for choice in ("oneOf", "anyOf"):
        if choice in schema and kinds == []:
            found = [_union(one) for one in schema[choice]]
            return "Any" if "Any" in found else " | ".join(dict.fromkeys(found))
    kinds = [kinds] if isinstance(kinds, str) else kinds
    return " | ".join(_of_kind(kind, schema) for kind in kinds) or "Any"


def _of_kind(kind: str, schema: dict[str, Any]) -> str:
    if kind == "array":
        return f"list[{_union(schema.get('items', {}))}]"
    if kind == "object":
        values = schema.get("additionalProperties")
        return f"dict[str, {_union(values) if isinstance(values, dict) else 'Any'}]"
    return _PLAIN[kind]


def main() -> int:
    made = described()
    types = python_types(made["components"]["schemas"])
    if "--check" in sys.argv:
        if types == TYPES.read_text():
            return 0
        print("the client types are outdated: run `make client-types`", file=sys.stderr)
        return 1
    DOCUMENT.parent.mkdir(exist_ok=True)
    DOCUMENT.write_text(json.dumps(made, indent=1))
    if "--document" in sys.argv:
        return 0
    TYPES.write_text(types)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
