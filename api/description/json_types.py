"""JSON Schema of types: TypedDicts of responses, dataclasses of events."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from decimal import Decimal
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    Literal,
    NotRequired,
    Required,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

from arkloop.api.http.described import Json
from arkloop.shared.catalog.field_readers import nullable
from arkloop.shared.events.plain import is_left_out, is_sent

JsonSchema = dict[str, Any]

_PLAIN: dict[Any, JsonSchema] = {
    str: {"type": "string"},
    int: {"type": "integer"},
    float: {"type": "number"},
    Decimal: {"type": "number"},
    bool: {"type": "boolean"},
    NoneType: {"type": "null"},
    dict: {"type": "object"},
    list: {"type": "array", "items": {}},
    Any: {},
    object: {},
}


class JsonTypes:
    """Converts types; named ones become `components`, to which others refer."""

    def __init__(self) -> None:
        self.components: dict[str, JsonSchema] = {}
        self._types: dict[str, Any] = {}

    def schema(self, kind: Any) -> JsonSchema:
        """Return the JSON Schema of a type. Raises: TypeError: it has none."""
        if kind in _PLAIN:
            return dict(_PLAIN[kind])
        origin, args = get_origin(kind), get_args(kind)
        if origin is Annotated:
            return self._annotated(args[0], args[1:])
        if origin in (Required, NotRequired):
            return self.schema(args[0])
        if origin in (Union, UnionType):
            return _any_of([self.schema(one) for one in args])
        if origin is Literal:
            kinds = {type(one) for one in args}
            if kinds == {bool}:  # generators make texts of flags in an enum
                return self.schema(bool)
            return {**(_PLAIN[kinds.pop()] if len(kinds) == 1 else {}), "enum": list(args)}
        if origin in (list, tuple, Sequence):
            return {"type": "array", "items": self.schema(args[0])}
        if origin in (dict, Mapping):
            values = self.schema(args[1])
            return {"type": "object", **({"additionalProperties": values} if values else {})}
        if is_typeddict(kind) or is_dataclass(kind):
            return self._named(kind)
        raise TypeError(f"no JSON Schema for {kind!r}")

    def _annotated(self, kind: Any, notes: Sequence[str | Json]) -> JsonSchema:
        schema = self.schema(kind)
        for note in notes:
            schema |= {"description": note} if isinstance(note, str) else note.keywords
        return schema

    def _named(self, kind: Any) -> JsonSchema:
        name = kind.__name__.lstrip("_")
        if self._types.setdefault(name, kind) is not kind:
            raise TypeError(f"two types have the name {name}: {kind!r}, {self._types[name]!r}")
        if name not in self.components:
            self.components[name] = {}  # a type may contain itself
            self.components[name] = self._object(kind)
        return {"$ref": f"#/components/schemas/{name}"}

    def _object(self, kind: Any) -> JsonSchema:
        hints = get_type_hints(kind, include_extras=True)
        if is_typeddict(kind):
            properties = {name: self.schema(hint) for name, hint in hints.items()}
            required = sorted(kind.__required_keys__)
        else:
            sent = [field for field in fields(kind) if is_sent(field.name)]
            properties = {field.name: self.schema(hints[field.name]) for field in sent}
            optional = {field.name for field in sent if is_left_out(field.name)}
            for name in optional:
                properties[name] = _without_null(properties[name])
            required = [field.name for field in sent if field.name not in optional]
        # A dataclass or TypedDict without a docstring has a generated one, or its base's.
        text = inspect.cleandoc(kind.__dict__.get("__doc__") or "")
        return {
            "type": "object",
            **({} if not text or text.startswith(f"{kind.__name__}(") else {"description": text}),
            "properties": properties,
            **({"required": required} if required else {}),
        }


def _any_of(schemas: list[JsonSchema]) -> JsonSchema:
    """Return one schema for a choice; nullable plain types in the short form."""
    types = [schema.get("type") for schema in schemas]
    if len(schemas) == 2 and types[1] == "null" and isinstance(types[0], str):
        return nullable(schemas[0])
    return {"anyOf": schemas}


def _without_null(schema: JsonSchema) -> JsonSchema:
    """Return the schema of a field that is left out instead of being null."""
    if isinstance(schema.get("type"), list):
        return {**schema, "type": schema["type"][0]}
    if "anyOf" in schema:
        kept: list[JsonSchema] = [one for one in schema["anyOf"] if one != {"type": "null"}]
        return kept[0] if len(kept) == 1 else {"anyOf": kept}
    return schema
