"""JSON Schemas of tools in a form that every vendor accepts.

Vendors check all tools of a request together, and refuse the request for one of them. Anthropic
accepts draft 2020-12 alone, and no `anyOf`, `oneOf` and `allOf` at the top; OpenAI accepts neither
these nor `enum` and `not` there, and no array without `items`; llama.cpp accepts no `true` in place
of a schema, Kimi no references but to `#/$defs/<name>`, and Google no `required` property that is
not defined, and nothing beside a `$ref` but `description` and `default`. The form is for the model:
its calls are checked against the schema as the tool's author wrote it.
"""

import json
import logging
import re
from collections import Counter, deque
from collections.abc import Collection, Mapping, Set
from typing import Any

import jsonschema_rs

from arkloop.shared import merged_properties
from arkloop.shared.json_schema import InvalidSchema, no_schema, short
from arkloop.shared.required_properties import only_defined
from arkloop.shared.schema_keywords import in_new_words, only_names
from arkloop.shared.schema_pointers import parts_of, refers_alone, target_of

log = logging.getLogger(__name__)

#: Of the portable form of a schema that was checked, and of the copies of what is referred to.
MAX_CHARACTERS = 64 * 1024
#: What takes as long as to compile a node: some 5 µs.
_CHARACTERS_PER_NODE = 16
_MERGING_WORK_PER_NODE = 32
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
        *("$defs", "definitions", "dependencies", "dependentRequired", "dependentSchemas"),
        *("patternProperties", "properties"),
    }
)
#: Keywords with a list of names.
_NAMES = frozenset({"required", "type"})
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
#: Beside a `$ref`: what Google accepts, and what says something of values.
_BESIDE_REFERENCE = frozenset({"$ref", "description", "default"})
_LIMITS = (_SCHEMA | _LIST_OF_SCHEMAS | _MAP_OF_SCHEMAS | _NAMES) - {"$defs", "definitions"}
_LIMITS |= {
    *("const", "enum", "exclusiveMaximum", "exclusiveMinimum", "format", "maxContains", "maxItems"),
    *("maxLength", "maxProperties", "maximum", "minContains", "minItems", "minLength"),
    *("minProperties", "minimum", "multipleOf", "pattern", "uniqueItems"),
}
_LIMITS -= {"contentSchema"}
_REBUILT = _SCHEMA | _LIST_OF_SCHEMAS | _MAP_OF_SCHEMAS | _NAMES | {"$ref"}

#: At the top with a `$ref` in old drafts: what is not replaced.
_KEPT_AT_THE_TOP = ("$schema", "$id", "$defs", "definitions", "type", "description", "default")
#: Keywords that mean something else without one another.
_TOGETHER = (
    *({"if", "then", "else"}, {"additionalProperties", "patternProperties"}),
    *({"additionalItems", "items", "prefixItems"}, {"contains", "maxContains", "minContains"}),
)
#: Below the top: what references may lead to by other names than a place.
_NAMING = frozenset({"$id", "$anchor", "$dynamicAnchor", "id"})
_NOT_AT_THE_TOP = ("$ref", *merged_properties.COMPOSITIONS, "enum", "not")
#: Only the escapes of a pointer can make it another one than that of the name.
_TO_DEFINITION = re.compile(r"#/\$defs/([^/~%]+)")
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_.-]+")


def portable(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the schema in the portable form; the same object if it has it already.

    The properties of `anyOf` and the like at the top become those of the top, so that the model
    knows them, and so do those of `then` and the like within. Of the required ones, those become so
    that every alternative requires. Alternatives that are too large to merge are left out.
    """
    rebuilt, rebuilding = _rebuilt(schema)
    if not rebuilding.is_whole:
        log.warning(
            "schema too large to merge its alternatives: the model does not get their properties"
        )
    return rebuilt


def check(schema: Mapping[str, Any]) -> int:
    """Check that the portable form is one of draft 2020-12, and not too large.

    Returns the work that took beyond that of the schema itself, as a number of nodes.

    Raises: InvalidSchema
    """
    length = _length(schema)
    if length > MAX_CHARACTERS:  # before the walk, in which it takes the longer
        raise InvalidSchema("The schema is too large.")
    rebuilt, rebuilding = _rebuilt(schema)
    sent = _undated(rebuilt)
    if not rebuilding.is_whole or rebuilding.remaining < 0 or _length(sent) > MAX_CHARACTERS:
        raise InvalidSchema("The schema is too large.")
    _validate(sent, schema, rebuilding.dangling)
    added = max(0, _length(sent) - length)
    return added // _CHARACTERS_PER_NODE + rebuilding.merging_work // _MERGING_WORK_PER_NODE


def check_as_written(schema: Mapping[str, Any]) -> None:
    """Check what the portable form leaves out: unused definitions, and what is beside a `$ref`.

    Where definitions have an `$id` or anchors, references that lead nowhere else may lead there.

    Raises: InvalidSchema
    """
    rebuilding = _Rebuilding(schema, leaves_out=False)
    written = rebuilding.schema(schema, is_top=True)
    _validate(_undated(written), schema, [] if rebuilding.has_names else rebuilding.dangling)


def _undated(schema: Mapping[str, Any]) -> dict[str, Any]:
    # A `$schema` would be followed: to another draft, or to an address that a server chose.
    return {keyword: value for keyword, value in schema.items() if keyword != "$schema"}


def _validate(sent: dict[str, Any], given: Mapping[str, Any], dangling: list[str]) -> None:
    try:
        jsonschema_rs.meta.validate(sent)
    except jsonschema_rs.ValidationError as error:
        raise no_schema(error, given) from None
    if dangling:
        raise InvalidSchema(f"Unresolvable `$ref`: {short(dangling[0])}")


def _length(schema: Any) -> int:
    return len(json.dumps(schema, ensure_ascii=False, separators=(",", ":")))


def _rebuilt(schema: Mapping[str, Any]) -> tuple[Mapping[str, Any], "_Rebuilding"]:
    """Return the portable form, and the walk that has made it."""
    rebuilding = _Rebuilding(schema)
    flat = schema
    if any(keyword in schema for keyword in _NOT_AT_THE_TOP):
        top = _followed(schema)
        flat = {keyword: top[keyword] for keyword in top if keyword not in _NOT_AT_THE_TOP}
        # In newer drafts, both the top and what it refers to have a say of a property.
        merging = top if refers_alone(schema) else schema
        try:
            merged = merged_properties.merged(merging, schema, _length(schema))
            rebuilding.merging_work = merged.work
            flat |= merged.keywords
            name = "unevaluatedProperties"
            # Or its schema is that of a member, to which `$ref` leads, and means its own others.
            if merged.takes_others and (name in schema or flat.get(name) is False):
                flat.pop(name, None)  # it would forbid what the members take
        except InvalidSchema:
            rebuilding.is_whole = False
            flat.pop("unevaluatedProperties", None)
    found = only_defined(rebuilding.top(flat))
    if found is not schema:
        found = _undated(found)
    return found, rebuilding


def _followed(root: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the top of a schema with the keywords of what its `$ref` leads to.

    In newer drafts the top may have keywords beside it, which come first.
    """
    is_alone = refers_alone(root)
    top: dict[str, Any] = {**root}
    place: Any = root
    seen: set[tuple[str, ...] | None] = {None, ()}
    while isinstance(place, Mapping) and isinstance(reference := place.get("$ref"), str):
        pointer = parts_of(reference, root)
        if pointer is None or pointer in seen:
            break
        seen.add(pointer)
        place = target_of(root, pointer)
        if isinstance(place, Mapping):
            if is_alone:
                top = {keyword: root[keyword] for keyword in _KEPT_AT_THE_TOP if keyword in root}
            taken = {*top}.union(*(some for some in _TOGETHER if some & top.keys()))
            for keyword, value in place.items():
                if keyword not in taken and keyword != "definitions" and keyword[:1] != "$":
                    top[keyword] = value
    return top


class _Rebuilding:
    """The walk through a schema that makes it one of draft 2020-12.

    What a reference leads to is copied to the definitions of the top, unless it is one of these. So
    whatever is changed or left out elsewhere, the reference still leads to it. `dangling` are the
    references that lead nowhere in `root`, which are left out; `remaining` are the characters that
    the copies may still have. `is_whole` is false if the alternatives were too large to merge.

    With `leaves_out=False` nothing is copied or left out but annotations of a wrong type;
    `has_names` is then true if references may lead to more than places within the schema.
    """

    def __init__(self, root: Mapping[str, Any], *, leaves_out: bool = True) -> None:
        self._root = root
        self._leaves_out = leaves_out
        self._refers_alone = leaves_out and refers_alone(root)
        definitions = root.get("$defs")
        self._own = definitions if isinstance(definitions, Mapping) else {}
        self._names: dict[tuple[str, ...], str] = {}  # of the copies, by their pointers
        self._used = {*self._own}
        self._numbers: Counter[str] = Counter()  # by the names without them
        self._waiting: deque[tuple[str, Any]] = deque()
        self.dangling: list[str] = []
        self.has_names = False
        self.is_whole = True
        self.merging_work = 0
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
        self.has_names |= not is_top and not given.keys().isdisjoint(_NAMING)
        if str(given.get("$id")).startswith("#"):  # an anchor, in old drafts
            given = _without(given, {"$id"})
        if self._refers_alone and isinstance(given.get("$ref"), str):
            others = given.keys() - _BESIDE_REFERENCE
            given = _without(given, others) if others else given
        left_out: Collection[str] = ()
        if self._leaves_out:  # no reference leads there any more
            left_out = ("definitions",) if is_top else ("definitions", "$defs")
        schema = {**given} if any(keyword in given for keyword in left_out) else given
        for keyword, value in given.items():
            if keyword in left_out:
                del schema[keyword]
            elif keyword in _REBUILT and (new := self._value(keyword, value)) is not value:
                schema = {**given} if schema is given else schema
                schema[keyword] = new
                if new is None:
                    del schema[keyword]
        return _modernized(_referring(schema) if self._leaves_out else schema)

    def _value(self, keyword: str, value: Any) -> Any:
        if keyword in _NAMES:
            return only_names(value)
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
        pointer = parts_of(given, self._root)
        target = None if pointer is None else target_of(self._root, pointer)
        if pointer is None or not isinstance(target, Mapping | bool):
            self.dangling.append(given)
            return None
        if not self._leaves_out:
            return given
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
    """Return the object that means the same as a boolean schema, and a list as `only_names`."""
    if isinstance(schema, bool):
        return {} if schema else {"not": {}}
    return only_names(schema)


def _referring(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a schema with nothing beside a `$ref` that Google does not accept there.

    What limits no value is left out. Beside a keyword that does, the reference becomes a member of
    `allOf`, so that `unevaluated…` still knows what it evaluates.
    """
    others = schema.keys() - _BESIDE_REFERENCE
    if not others or not isinstance(schema.get("$ref"), str):
        return schema
    if others.isdisjoint(_LIMITS):
        return _without(schema, others)
    members = schema.get("allOf", [])
    if not isinstance(members, list):
        return schema
    return {**_without(schema, {"$ref"}), "allOf": [*members, {"$ref": schema["$ref"]}]}


def _without(schema: Mapping[str, Any], keywords: Set[str]) -> dict[str, Any]:
    return {name: schema[name] for name in schema if name not in keywords}


def _modernized(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a schema without what older drafts write differently, and with what OpenAI misses."""
    schema = in_new_words(schema)
    items = schema.get("items")
    if isinstance(items, bool) or (items is None and _may_be_array(schema.get("type"))):
        schema = {**schema, "items": {} if items is None else _object(items)}
    for keyword, kind in _ANNOTATIONS:
        if keyword in schema and not isinstance(schema[keyword], kind):
            schema = _without(schema, {keyword})
    return schema


def _may_be_array(kind: Any) -> bool:
    return kind == "array" or (isinstance(kind, list) and "array" in kind)
