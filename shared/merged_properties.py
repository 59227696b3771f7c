"""The properties of an object that a JSON Schema describes by alternatives.

What `allOf`, `anyOf`, `then` and the like say of a property is composed to one schema. The work has
a bound: references may repeat what they lead to at each level, so that a small schema could have
members without end.
"""

import json
from collections.abc import Hashable, Iterable, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple, TypeVar

from arkloop.shared.json_schema import MAX_DEPTH, InvalidSchema
from arkloop.shared.schema_pointers import parts_of, target_of

COMPOSITIONS = ("allOf", "anyOf", "oneOf")
#: Keywords that take properties which no `properties` name; so may what is in an `if`.
_OF_OTHERS = ("additionalProperties", "patternProperties", "unevaluatedProperties", "if")
#: Stands for `then`, `else` and the like, which hold for some values only.
_CONDITIONAL = "if"
#: Keywords with schemas that hold for each value.
_FOR_ALL = ("$ref", "allOf")

#: Steps, and characters of what is composed: for 64 KiB a tenth of a second. A small schema may
#: have a union whose alternatives share a base of many fields.
_LEAST_WORK = 131_072
_WORK_PER_CHARACTER = 8
_WORK_PER_SCHEMA = 32  # some 20 µs
_WORK_PER_NAME = 8


class Merged(NamedTuple):
    """The `properties` and `required` of a schema, and the work of merging them.

    `takes_others` says whether one of its members may take properties that it does not name.
    """

    keywords: dict[str, Any]
    work: int
    takes_others: bool


def merged(schema: Mapping[str, Any], root: Mapping[str, Any], characters: int) -> Merged:
    """Return what a schema and its members have together.

    Its references are those of `root`, which has this length.

    Raises: InvalidSchema: its alternatives are too large to merge.
    """
    most = _LEAST_WORK + _WORK_PER_CHARACTER * characters
    merging = _Merging(root, most)
    keywords = merging.merged(schema)
    return Merged(keywords, most - merging.remaining, merging.takes_others)


#: The number that stands for the schema of an alternative that does not have the property: each
#: value is valid.
_ANY = 0
#: Lists of schemas for a property, by their numbers: a value is to match one of each list.
_Found = list[tuple[int, ...]]
_T = TypeVar("_T", bound=Hashable)
_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"))


class _Members(NamedTuple):
    properties: dict[str, _Found]
    required: list[str]
    work: int = 0  # of merging them with others


class _Merging:
    """The merging of the properties of a schema's alternatives.

    Schemas are numbered by their text, so that the work grows with their number and not with its
    square.
    """

    def __init__(self, root: Mapping[str, Any], work: int) -> None:
        self._root = root
        self._known: dict[tuple[str, ...] | None, _Members] = {}  # by pointer
        self._numbers = {"": _ANY}  # of schemas, by text
        self._texts = [""]  # by number
        self._schemas: list[Any] = [{}]  # likewise
        self.remaining = work
        self.takes_others = False

    def merged(self, schema: Mapping[str, Any]) -> dict[str, Any]:
        """Return `properties` and `required` of a schema, without those that would be empty."""
        properties, required, _ = self._members(schema)
        named = {name: self._joined(found) for name, found in properties.items()}
        merged = {"properties": named, "required": required}
        return {keyword: value for keyword, value in merged.items() if value}

    def _members(self, schema: Any, depth: int = 0) -> _Members:
        """Return the properties that a value may have, and the names of those that it must have."""
        if depth > MAX_DEPTH or not isinstance(schema, Mapping):
            return _Members({}, [])
        self._spend(_WORK_PER_SCHEMA)
        if depth and any(schema.get(keyword, False) is not False for keyword in _OF_OTHERS):
            self.takes_others = True
        own = schema.get("properties")
        own = own if isinstance(own, Mapping) else {}
        properties: dict[str, _Found] = {name: [(self._noted(one),)] for name, one in own.items()}
        required = dict.fromkeys(_names(schema.get("required")))
        for keyword in ("$ref", *COMPOSITIONS, _CONDITIONAL):
            parts = self._parts(keyword, schema, depth + 1)
            self._spend(len(parts) + sum(part.work for part in parts))
            having: dict[str, list[_Found]] = {}
            for part in parts:
                for name, found in part.properties.items():
                    having.setdefault(name, []).append(found)
            for name, among in having.items():
                lists = [*chain.from_iterable(among)]
                if keyword not in _FOR_ALL:
                    others = [(_ANY,)] if len(among) < len(parts) else []
                    lists = [(*_union([*map(self._alternative, among), *others]),)]
                properties[name] = _union([properties.get(name, []), lists])
            by_all = set.intersection(*(set(part.required) for part in parts)) if parts else ()
            for name in chain.from_iterable(part.required for part in parts):
                if name in by_all or keyword in _FOR_ALL:
                    required[name] = None
        schemas = sum(len(either) for found in properties.values() for either in found)
        work = len(required) + _WORK_PER_NAME * len(properties) + schemas
        return _Members(properties, [*required], work)

    def _parts(self, keyword: str, schema: Mapping[str, Any], depth: int) -> list[_Members]:
        if keyword == _CONDITIONAL:
            named = [schema.get(one) for one in ("dependencies", "dependentSchemas")]
            cases = chain(*(one.values() for one in named if isinstance(one, Mapping)))
            # None of them may apply.
            either = [schema.get("then"), schema.get("else"), *cases, None]
            return [self._members(one, depth) for one in either]
        value = schema.get(keyword)
        if isinstance(value, list):
            return [self._members(one, depth) for one in value]
        if keyword != "$ref" or not isinstance(value, str):
            return []
        pointer = parts_of(value, self._root)
        if pointer not in self._known:
            self._known[pointer] = _Members({}, [])  # where it refers to itself
            target = None if pointer is None else target_of(self._root, pointer)
            self._known[pointer] = self._members(target, depth)
        return [self._known[pointer]]

    def _joined(self, found: _Found) -> Any:
        """Return one schema for a property of the top."""
        self._spend(sum(len(self._texts[number]) for number in chain.from_iterable(found)))
        strict = [either for either in found if _ANY not in either]
        if not strict:  # The model is to know it even if only some alternatives have it.
            return self._one("anyOf", [number for number in _union(found) if number != _ANY])
        return _one("allOf", [self._one("anyOf", either) for either in strict])

    def _alternative(self, found: _Found) -> Iterable[int]:
        """Return the schemas for a property within an alternative, of which a value matches one.

        Those of nested alternatives are left out beside others: composed at each level, they could
        grow far beyond the size of the whole.
        """
        own = [either[0] for either in found if len(either) == 1]
        if len(own) > 1:
            texts = [self._texts[number] for number in own]
            self._spend(sum(map(len, texts)))
            text = f'{{"allOf":[{",".join(texts)}]}}'
            return [self._number(text, self._one("allOf", own))]
        if own:
            return own
        strict = (either for either in found if _ANY not in either)
        return next(strict, None) or _union(found)

    def _noted(self, schema: Any) -> int:
        """Return the number of a schema."""
        text = _CANONICAL.encode(schema)
        self._spend(len(text))
        return self._number(text, schema)

    def _number(self, text: str, schema: Any) -> int:
        number = self._numbers.setdefault(text, len(self._texts))
        if number == len(self._texts):
            self._texts.append(text)
            self._schemas.append(schema)
        return number

    def _one(self, keyword: str, numbers: Sequence[int]) -> Any:
        return _one(keyword, [self._schemas[number] for number in numbers])

    def _spend(self, work: int) -> None:
        self.remaining -= work
        if self.remaining < 0:
            raise InvalidSchema("The schema is too large.")


def _one(keyword: str, schemas: list[Any]) -> Any:
    return schemas[0] if len(schemas) == 1 else {keyword: schemas}


def _union(lists: Iterable[Iterable[_T]]) -> list[_T]:
    """Return all different items of the lists."""
    return [*dict.fromkeys(chain.from_iterable(lists))]


def _names(required: Any) -> list[str]:
    names = required if isinstance(required, list) else []
    return [name for name in names if isinstance(name, str)]
