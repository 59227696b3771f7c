"""Required properties of a portable schema, of which Google demands that they are defined.

Without a name in `required` a schema allows more. That may turn a `not`, `if` or `oneOf` around it
into its opposite, and a member of `allOf` or the like may require what another one defines. So the
names stay wherever one of these keywords is around them, and in the definitions that they refer to.
"""

from collections.abc import Iterator, Mapping
from typing import Any

_DEFINITION = "#/$defs/"
#: Keywords with schemas of other values than the one that is described.
_OF_PARTS = ("items", "additionalProperties", "unevaluatedItems", "unevaluatedProperties")
_LIST_OF_PARTS = "prefixItems"
_MAPS_OF_PARTS = ("properties", "patternProperties")
#: Keywords with schemas that define properties of the same object, at least in some cases.
_BESIDE = frozenset({"allOf", "anyOf", "oneOf", "then", "else", "dependencies", "dependentSchemas"})
#: Keywords with schemas that may not allow more than before.
_DECISIVE = ("contains", "if", "not", "oneOf")
_MAPS = (*_MAPS_OF_PARTS, "$defs", "dependencies", "dependentSchemas")
_PLAIN = ("const", "default", "enum", "examples")


def only_defined(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the schema without the required properties that nothing defines.

    It is the same object if there are none.
    """
    found = _only_defined(schema)
    given = schema.get("$defs")
    definitions = given if isinstance(given, Mapping) else {}
    changed = {
        name: new
        for name, definition in definitions.items()
        if (new := _only_defined(definition)) is not definition
    }
    for name in _decisive(schema) if changed else ():
        changed.pop(name, None)
    return {**found, "$defs": {**definitions, **changed}} if changed else found


def _only_defined(schema: Any) -> Any:
    if not isinstance(schema, dict):
        return schema
    found = schema
    for keyword, value in schema.items():
        new = value
        if keyword in _OF_PARTS:
            new = _only_defined(value)
        elif keyword == _LIST_OF_PARTS and isinstance(value, list):
            parts = [_only_defined(one) for one in value]
            new = parts if any(a is not b for a, b in zip(parts, value, strict=True)) else value
        elif keyword in _MAPS_OF_PARTS and isinstance(value, dict):
            named = {name: _only_defined(one) for name, one in value.items()}
            new = named if any(named[name] is not value[name] for name in value) else value
        if new is not value:
            found = {**found, keyword: new}
    return _own(found)


def _own(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of an object with those required properties that it defines itself."""
    required, own, kind = schema.get("required"), schema.get("properties", {}), schema.get("type")
    is_object = "properties" in schema or "object" in (kind if isinstance(kind, list) else [kind])
    if not isinstance(required, list) or not isinstance(own, dict) or not is_object:
        return schema
    kept = [name for name in required if not isinstance(name, str) or name in own]
    if len(kept) == len(required) or schema.keys() & _BESIDE:
        return schema
    if kept:
        return {**schema, "required": kept}
    return {name: schema[name] for name in schema if name != "required"}


def _decisive(schema: Mapping[str, Any]) -> set[str]:
    """Return the names of the definitions that may not allow more than before."""
    found: set[str] = set()
    waiting = [name for name, is_decisive in _references(schema) if is_decisive]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += [inner for inner, _ in _references(schema["$defs"].get(name))]
    return found


def _references(schema: Any, *, is_decisive: bool = False) -> Iterator[tuple[str, bool]]:
    """Yield the names of the definitions that a part refers to, and whether below such a keyword.

    Those of several members of `allOf` count, too: one may define what another one requires.
    """
    if not isinstance(schema, dict):
        return
    for keyword, value in schema.items():
        if keyword == "$ref" and isinstance(value, str):
            yield value.removeprefix(_DEFINITION), is_decisive
        decides = is_decisive or keyword in _DECISIVE
        if isinstance(value, list):
            parts, decides = value, decides or (keyword == "allOf" and len(value) > 1)
        else:
            parts = [*value.values()] if keyword in _MAPS and isinstance(value, dict) else [value]
        for part in parts if keyword not in _PLAIN else ():
            yield from _references(part, is_decisive=decides)
