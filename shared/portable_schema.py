"""JSON Schemas of tools in a form that every vendor accepts.

Vendors check all tools of a request together, and refuse the request for one of them. Anthropic
accepts draft 2020-12 alone, and no `anyOf`, `oneOf` and `allOf` at the top; OpenAI accepts neither
these nor `enum` and `not` there, and no array without `items`; llama.cpp accepts no `true` in place
of a schema, Kimi no references but to `#/$defs/<name>`, and Google no `required` property that is
not defined. The form is for the model: its calls are checked against the schema as the tool's
author wrote it.
"""

import json
import re
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Any, NamedTuple
from urllib.parse import unquote

import jsonschema_rs

from arkloop.shared.json_schema import MAX_DEPTH, InvalidSchema, short
from arkloop.shared.required_properties import only_defined

#: Of the portable form of a schema that was checked, and of the copies of what is referred to.
MAX_CHARACTERS = 64 * 1024

#: Keywords with a schema, with a list of them, and with one for each name.
_SCHEMA = frozenset(
    {
        *("additionalItems", "additionalProperties", "contains", "contentSchema", "else", "if"),
        *("items", "not", "propertyNames", "then", "unevaluatedItems", "unevaluatedProperties"),
    }
)
_LIST_OF_SCHEMAS = frozenset({"allOf", "anyOf", "items", "oneOf", "prefixItems"})
_MAP_OF_SCHEMAS = frozenset(
    {
        *("$defs", "definitions", "dependencies", "dependentSchemas", "patternProperties"),
        "properties",
    }
)
#: Keywords with a schema that vendors accept as `true` or `false`, too.
_MAY_BE_BOOLEAN = frozenset(
    {"additionalItems", "additionalProperties", "unevaluatedItems", "unevaluatedProperties"}
)
#: Keywords that only people and models read. One with a value of another type, which some servers
#: write (`"description": null`), would make the whole schema invalid.
_ANNOTATIONS = (
    *(("$comment", str), ("description", str), ("title", str), ("examples", list)),
    *(("deprecated", bool), ("readOnly", bool), ("writeOnly", bool)),
)
_WITH_SCHEMAS = _SCHEMA | _LIST_OF_SCHEMAS | _MAP_OF_SCHEMAS | {"$ref"}
_BOUNDS = (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum"))

_COMPOSITIONS = ("allOf", "anyOf", "oneOf")
_NOT_AT_THE_TOP = (*_COMPOSITIONS, "enum", "not")
#: Stands for `then`, `else` and the like, which hold for some values only.
_CONDITIONAL = "if"
#: Keywords with schemas that hold for each value.
_FOR_ALL = ("$ref", "allOf")
#: Only the escapes of a pointer can make it another one than that of the name.
_TO_DEFINITION = re.compile(r"#/\$defs/([^/~%]+)")
_INDEX = re.compile(r"0|[1-9][0-9]*")
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_.-]+")


def portable(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the schema in the portable form; the same object if it has it already.

    The properties of `anyOf` and the like at the top become those of the top, so that the model
    knows them, and so do those of `then` and the like within. Of the required ones, those become so
    that every alternative requires.
    """
    return _rebuilt(schema)[0]


def check(schema: Mapping[str, Any]) -> None:
    """Check that the portable form is one of draft 2020-12, and not too large.

    Raises: InvalidSchema
    """
    if _length(schema) > MAX_CHARACTERS:  # before the walk, in which it takes the longer
        raise InvalidSchema("The schema is too large.")
    rebuilt, rebuilding = _rebuilt(schema)
    # A `$schema` would be followed: to another draft, or to an address that a server chose.
    sent = {keyword: value for keyword, value in rebuilt.items() if keyword != "$schema"}
    try:
        jsonschema_rs.meta.validate(sent)
    except jsonschema_rs.ValidationError as error:
        raise InvalidSchema(f"Not a JSON Schema: {short(error.message)}") from None
    if rebuilding.dangling:
        raise InvalidSchema(f"Unresolvable `$ref`: {short(rebuilding.dangling[0])}")
    if rebuilding.remaining < 0 or _length(sent) > MAX_CHARACTERS:
        raise InvalidSchema("The schema is too large.")


def _length(schema: Any) -> int:
    return len(json.dumps(schema, ensure_ascii=False, separators=(",", ":")))


def _rebuilt(schema: Mapping[str, Any]) -> tuple[Mapping[str, Any], "_Rebuilding"]:
    """Return the portable form, and the walk that has made it."""
    is_flat = not any(keyword in schema for keyword in _NOT_AT_THE_TOP)
    rebuilding = _Rebuilding(schema)
    found = only_defined(rebuilding.top(schema if is_flat else _flattened(schema)))
    if found is not schema:
        found = {keyword: value for keyword, value in found.items() if keyword != "$schema"}
    return found, rebuilding


class _Rebuilding:
    """The walk through a schema that makes it one of draft 2020-12.

    What a reference leads to is copied to the definitions of the top, unless it is one of these. So
    whatever is changed or left out elsewhere, the reference still leads to it. `dangling` are the
    references that lead nowhere in `root`, which are left out; `remaining` are the characters that
    the copies may still have.
    """

    def __init__(self, root: Mapping[str, Any]) -> None:
        self._root = root
        definitions = root.get("$defs")
        self._own = definitions if isinstance(definitions, Mapping) else {}
        self._names: dict[tuple[str, ...], str] = {}  # of the copies, by their pointers
        self._used = {*self._own}
        self._numbers: Counter[str] = Counter()  # by the names without them
        self._waiting: deque[tuple[str, Any]] = deque()
        self.dangling: list[str] = []
        self.remaining = MAX_CHARACTERS

    def top(self, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the schema in the new form, with the copies; the same object if it has it."""
        found: Mapping[str, Any] = self.schema(given, is_top=True)
        copies: dict[str, Any] = {}
        while self._waiting:  # a copy may lead to further ones
            name, target = self._waiting.popleft()
            copies[name] = self._copy(target)
        if not copies:
            return found
        own = found.get("$defs")
        return {**found, "$defs": {**(own if isinstance(own, Mapping) else {}), **copies}}

    def _copy(self, target: Any) -> Any:
        """Return the copy of a part, one for any value if it is too long beside the others."""
        copy = self.schema(target) if self.remaining >= 0 else {}
        self.remaining -= _length(copy)
        return copy if self.remaining >= 0 else {}

    def schema(self, given: Any, *, is_top: bool = False) -> Any:
        """Return a schema in the new form; the same object if it has it already."""
        if not isinstance(given, dict):
            return _object(given)
        # No reference leads there any more.
        left_out = ("definitions",) if is_top else ("definitions", "$defs")
        schema = {**given} if any(keyword in given for keyword in left_out) else given
        for keyword, value in given.items():
            if keyword in left_out:
                del schema[keyword]
            elif keyword in _WITH_SCHEMAS and (new := self._value(keyword, value)) is not value:
                schema = {**given} if schema is given else schema
                schema[keyword] = new
                if new is None:
                    del schema[keyword]
        return _modernized(schema)

    def _value(self, keyword: str, value: Any) -> Any:
        if isinstance(value, list):
            if keyword not in _LIST_OF_SCHEMAS:
                return value
            schemas = [self.schema(one) for one in value]
            is_same = all(new is old for new, old in zip(schemas, value, strict=True))
            return value if is_same else schemas
        if keyword in _MAP_OF_SCHEMAS and isinstance(value, dict):
            named = {name: self.schema(one) for name, one in value.items()}
            return value if all(named[name] is value[name] for name in value) else named
        if keyword == "$ref" and isinstance(value, str):
            return self._reference(value)
        if keyword in _MAY_BE_BOOLEAN and isinstance(value, bool):
            return value
        return self.schema(value) if keyword in _SCHEMA else value

    def _reference(self, given: str) -> str | None:
        """Return the reference in the new form, None for one that leads nowhere."""
        definition = _TO_DEFINITION.fullmatch(given)
        if definition is not None and definition[1] in self._own:
            return given
        pointer = _pointer(given)
        target = None if pointer is None else _target(self._root, pointer)
        if pointer is None or not isinstance(target, Mapping | bool):
            self.dangling.append(given)
            return None
        if pointer not in self._names:
            self._names[pointer] = self._name(pointer)
            if target is self._root:  # `$id` would make it a document of its own
                keys = [key for key in self._root if key == "$ref" or not key.startswith("$")]
                target = {key: self._root[key] for key in keys}
            self._waiting.append((self._names[pointer], target))
        return f"#/$defs/{self._names[pointer]}"

    def _name(self, pointer: tuple[str, ...]) -> str:
        """Return a name that is not used yet, after the last part of a pointer."""
        parts = pointer[-2:] if pointer and pointer[-1].isdigit() else pointer[-1:]
        name = base = _NOT_IN_NAMES.sub("_", "_".join(parts)) or "root"
        while name in self._used:
            self._numbers[base] += 1
            name = f"{base}_{self._numbers[base] + 1}"
        self._used.add(name)
        return name


def _object(schema: Any) -> Any:
    """Return a boolean schema as the object that means the same; others as they are."""
    if isinstance(schema, bool):
        return {} if schema else {"not": {}}
    return schema


def _pointer(reference: str) -> tuple[str, ...] | None:
    """Return the parts of a reference within the schema, None for one that leads elsewhere."""
    if reference == "#":
        return ()
    if not reference.startswith("#/"):
        return None
    parts = unquote(reference[2:]).split("/")
    return tuple(part.replace("~1", "/").replace("~0", "~") for part in parts)


def _target(root: Mapping[str, Any], pointer: tuple[str, ...]) -> Any:
    """Return what is at a pointer, None if there is nothing."""
    target: Any = root
    for part in pointer:
        if isinstance(target, list) and not _INDEX.fullmatch(part):
            return None
        try:
            target = target[int(part) if isinstance(target, list) else part]
        except (LookupError, TypeError, ValueError):
            return None
    return target


def _modernized(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a schema without what older drafts write differently, and with what OpenAI misses."""
    first = schema.get("items")
    if isinstance(first, list):
        tuples = {"prefixItems": first} if first else {}
        others = {name: schema[name] for name in schema if name not in ("items", "additionalItems")}
        schema = {**others, **tuples, "items": _object(schema.get("additionalItems", {}))}
    elif first is None and _may_be_array(schema.get("type")):
        schema = {**schema, "items": {}}
    for exclusive, bound in _BOUNDS:
        if isinstance(schema.get(exclusive), bool):
            schema = {**schema}
            if schema.pop(exclusive) and bound in schema:
                schema[exclusive] = schema.pop(bound)
    for keyword, kind in _ANNOTATIONS:
        if keyword in schema and not isinstance(schema[keyword], kind):
            schema = {name: schema[name] for name in schema if name != keyword}
    return schema


def _may_be_array(kind: Any) -> bool:
    return kind == "array" or (isinstance(kind, list) and "array" in kind)


def _flattened(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return the schema with the properties of its alternatives, and without these."""
    flat = {keyword: schema[keyword] for keyword in schema if keyword not in _NOT_AT_THE_TOP}
    members = _Merging(schema).members(schema)
    if members.properties:
        flat["properties"] = {name: _joined(found) for name, found in members.properties.items()}
    if members.required:
        flat["required"] = members.required
    return flat


#: Stands for the schema of an alternative that does not have the property: each value is valid.
_ANY: Any = object()
#: Lists of schemas for a property: a value is to match one of each list.
_Found = list[list[Any]]


def _joined(found: _Found) -> Any:
    """Return one schema for a property of the top."""
    strict = [either for either in found if _ANY not in either]
    if not strict:  # The model is to know it even if only some alternatives have it.
        return _one("anyOf", [schema for schema in _union(found) if schema is not _ANY])
    return _one("allOf", [_one("anyOf", either) for either in strict])


def _alternative(found: _Found) -> list[Any]:
    """Return the schemas for a property within an alternative, of which a value matches one.

    Those of nested alternatives are left out beside others: composed at each level, they could grow
    far beyond the size of the whole.
    """
    own = [either[0] for either in found if len(either) == 1]
    if own:
        return [_one("allOf", own)]
    return next((either for either in found if _ANY not in either), None) or _union(found)


def _one(keyword: str, schemas: list[Any]) -> Any:
    return schemas[0] if len(schemas) == 1 else {keyword: schemas}


def _union(lists: Iterable[list[Any]]) -> list[Any]:
    different: list[Any] = []
    for item in chain.from_iterable(lists):
        if item not in different:
            different.append(item)
    return different


class _Members(NamedTuple):
    properties: dict[str, _Found]
    required: list[str]


class _Merging:
    """The merging of the properties of a schema's alternatives."""

    def __init__(self, root: Mapping[str, Any]) -> None:
        self._root = root
        self._known: dict[str, _Members] = {}  # by reference

    def members(self, schema: Any, depth: int = 0) -> _Members:
        """Return the properties that a value may have, and the names of those that it must have."""
        if depth > MAX_DEPTH or not isinstance(schema, Mapping):
            return _Members({}, [])
        own = schema.get("properties")
        properties = {name: [[own[name]]] for name in own} if isinstance(own, Mapping) else {}
        required = dict.fromkeys(_names(schema.get("required")))
        for keyword in ("$ref", *_COMPOSITIONS, _CONDITIONAL):
            parts = self._parts(keyword, schema, depth + 1)
            having: dict[str, list[_Found]] = {}
            for part in parts:
                for name, found in part.properties.items():
                    having.setdefault(name, []).append(found)
            for name, among in having.items():
                lists = [*chain.from_iterable(among)]
                if keyword not in _FOR_ALL:
                    others = [[_ANY]] if len(among) < len(parts) else []
                    lists = [_union([*map(_alternative, among), *others])]
                properties[name] = _union([properties.get(name, []), lists])
            by_all = set.intersection(*(set(part.required) for part in parts)) if parts else ()
            for name in chain.from_iterable(part.required for part in parts):
                if name in by_all or keyword in _FOR_ALL:
                    required[name] = None
        return _Members(properties, [*required])

    def _parts(self, keyword: str, schema: Mapping[str, Any], depth: int) -> list[_Members]:
        if keyword == _CONDITIONAL:
            named = [schema.get(one) for one in ("dependencies", "dependentSchemas")]
            cases = chain(*(one.values() for one in named if isinstance(one, Mapping)))
            # None of them may apply.
            either = [schema.get("then"), schema.get("else"), *cases, None]
            return [self.members(one, depth) for one in either]
        value = schema.get(keyword)
        if isinstance(value, list):
            return [self.members(one, depth) for one in value]
        if keyword != "$ref" or not isinstance(value, str):
            return []
        if value not in self._known:
            self._known[value] = _Members({}, [])  # where it refers to itself
            pointer = _pointer(value)
            target = None if pointer is None else _target(self._root, pointer)
            self._known[value] = self.members(target, depth)
        return [self._known[value]]


def _names(required: Any) -> list[str]:
    names = required if isinstance(required, list) else []
    return [name for name in names if isinstance(name, str)]
