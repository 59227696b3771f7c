"""JSON Schemas of others, made safe to compile and to check values against.

A schema is rebuilt before it is compiled: references are replaced by what they lead to, so that
nothing is fetched and the work is bounded by a count of nodes. What is beyond bounds is left out.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import jsonschema_rs
from jsonschema_rs import ValidationError, Validator

from arkloop.shared.schema_keywords import (
    MORE_NODES,
    UniqueItems,
    alternatives,
    constant_nodes,
    in_new_words,
    only_names,
    takes_any_name,
    takes_longer,
)
from arkloop.shared.schema_patterns import OPTIONS, folded_classes, problem
from arkloop.shared.schema_pointers import parts_of, pointer_to, refers_alone, target_of
from arkloop.shared.schema_work import Work

#: Of a schema whose references are replaced; 8 characters of plain data count as one.
MAX_NODES = 5_000
MAX_DEPTH = 40
#: And of their weights: a large one weighs as much as several, and so does one with wide classes
#: that ignores case. Each of these may take 4 ms to compile.
MAX_PATTERNS = 32
#: The smallest `multipleOf`: how long its check takes grows with the digits after the point.
MIN_MULTIPLE = 1e-30
#: `unevaluatedItems` and `unevaluatedProperties` below one another: each doubles the work.
MAX_UNEVALUATED = 3
#: Characters that patterns have to match: beyond it a check leaves patterns out or refuses the
#: value. Each may cost 8 µs.
MAX_MATCHED = 20_000
#: Beyond this work only the first error is looked for. Finding all of them takes a time that grows
#: with the square, by far the longest for names that do not fit: each has a copy of the object.
_MAX_WORK_FOR_ALL = 20_000
_MAX_COPIED = 250_000
#: Characters of the keywords of one schema that count as a node, with 8 more for each: most have
#: fewer. Unknown ones count, too, since the library keeps them.
_KEYWORDS_PER_NODE = 128
#: Likewise of the names of properties around a schema: each is kept with the text of its place.
_NAMES_PER_NODE = 256
_MAX_REASON_CHARACTERS = 240

_SCHEMA = (
    *("additionalItems", "additionalProperties", "contains", "else", "if", "items", "not"),
    *("propertyNames", "then", "unevaluatedItems", "unevaluatedProperties"),
)
#: Subschemas for the value itself, for the items of a list, and those with a name for each.
_IN_PLACE = ("allOf", "anyOf", "oneOf", "not", "if", "then", "else")
_OF_ITEMS = ("items", "additionalItems", "contains", "unevaluatedItems")
_DEPENDENCIES = ("dependencies", "dependentSchemas")
_LIST_OF_SCHEMAS = ("allOf", "anyOf", "items", "oneOf", "prefixItems")
_MAP_OF_SCHEMAS = (
    *("dependencies", "dependentRequired", "dependentSchemas", "patternProperties", "properties"),
)
#: Keywords with a list of names.
_NAMES = ("required", "type")
#: What others refer to, and what only people read.
_NEEDLESS = (
    *("$anchor", "$comment", "$defs", "$dynamicAnchor", "$id", "$ref", "$schema", "definitions"),
    *("default", "deprecated", "description", "example", "examples", "id", "readOnly", "title"),
    "writeOnly",
)
#: The pointers of the root and of the references that led to a part, however they are written.
_Trail = tuple[tuple[str, ...], ...]
_UNEVALUATED = ("unevaluatedItems", "unevaluatedProperties")
#: Would turn a subschema that became more lenient into a refusal.
_STRICT = ("if", "maxContains", "not", *_UNEVALUATED)
#: Likewise if there is a `format` in this keyword.
_STRICT_WITH_FORMAT = {"if": "if", "maxContains": "contains", "not": "not"}


class InvalidSchema(Exception):
    """A schema that no value can be checked against; the message says why."""


class JsonSchema:
    """A compiled JSON Schema, drafts 4 to 2020-12.

    Not checked: `format`, a `pattern` that is large or that only a backtracking engine can match,
    a `multipleOf` that is tiny, and what a schema says of itself again below itself: `unchecked`
    has a sentence about each, except for `format`. A keyword that would refuse more values without
    it, like a `not` around it, is not checked either.

    Raises:
        InvalidSchema: it is no schema, too large, or refers to another document.
    """

    def __init__(self, schema: Mapping[str, Any]) -> None:
        self._schema = schema
        try:
            rebuilding = _Rebuilding(schema, MAX_PATTERNS)
            self.validator = _compiled(rebuilding.result)
        except ValidationError as error:
            raise no_schema(error, schema) from None
        except (ValueError, TypeError, AttributeError, RecursionError):
            raise InvalidSchema("Not a JSON Schema.") from None
        self.nodes = rebuilding.nodes
        #: For each value: its nodes, of which some take longer than others.
        self.weight = rebuilding.nodes + rebuilding.more
        self.pattern_weight = rebuilding.pattern_weight
        self.patterns: Sequence[str] = rebuilding.patterns
        self.work = Work(rebuilding.result, rebuilding.weights, self.weight)
        self._patterned = rebuilding.patterned
        self._rebuilt = rebuilding.result if self._patterned else None
        self._most_for_all = _MAX_WORK_FOR_ALL
        if rebuilding.restricts_names:  # its weight times the square of the value's
            self._most_for_all = min(_MAX_WORK_FOR_ALL, math.isqrt(_MAX_COPIED * self.weight))
        self.unchecked: Sequence[str] = rebuilding.left_out

    @cached_property
    def validator_without_patterns(self) -> Validator:
        """The validator for values that are too long for patterns."""
        return _compiled(_Rebuilding(self._schema, 0).result)

    def errors(
        self, value: Any, work: int, *, with_patterns: bool = True
    ) -> Sequence[ValidationError]:
        """Return the errors of a value, the first one alone if the work of checking it is much.

        Raises: ValueError: it is nested too deeply, or not JSON.
        """
        validator = self.validator if with_patterns else self.validator_without_patterns
        if validator.is_valid(value):
            return []
        if work <= self._most_for_all:
            return list(validator.iter_errors(value))
        # The library finds all errors of each alternative only to tell that none of them fits.
        most = MAX_PATTERNS if with_patterns else 0
        brief = _Rebuilding(self._schema, most, is_brief=True).result
        try:
            _compiled(brief, is_brief=True).validate(value)
            validator.validate(value)
        except ValidationError as error:
            return [error]
        raise AssertionError("the value is not valid")

    def matched_characters(self, value: Any, most: int) -> int:
        """Count the characters that patterns may have to match in a value; stop beyond `most`.

        Text is counted once for each pattern that may apply to it, and once more for each `anyOf`
        and the like around the pattern, at which a validator looks for errors again: at `allOf`,
        and so at `$ref`, it does not. Each value on the way to a pattern counts as one character.
        """
        found = 0
        for characters in self._matched(self._rebuilt, value, 1):
            found += characters
            if found > most:
                break
        return found

    def _matched(self, schema: Any, value: Any, times: int) -> Iterator[int]:
        if id(schema) not in self._patterned:
            return
        yield times
        if isinstance(value, str) and "pattern" in schema:
            yield times * len(value)
        if isinstance(value, Mapping) and "patternProperties" in schema:
            yield times * len(schema["patternProperties"]) * sum(map(len, value))
        for inner, part in self._parts(schema, value):
            yield from self._matched(inner, part, times)
        for keyword in _IN_PLACE:
            inner = schema.get(keyword, ())
            for one in inner if isinstance(inner, list) else (inner,):
                yield from self._matched(one, value, times + (keyword != "allOf"))
        for keyword in _DEPENDENCIES:
            for one in schema.get(keyword, {}).values():
                yield from self._matched(one, value, times + 1)

    def _parts(self, schema: Mapping[str, Any], value: Any) -> Iterator[tuple[Any, Any]]:
        """Yield the parts of a value, each with a subschema with patterns that may apply to it."""
        parts: list[tuple[Any, Iterable[Any]]]
        if isinstance(value, Mapping):
            named = schema.get("properties", {})
            yield from ((inner, value[name]) for name, inner in named.items() if name in value)
            others = [v for name, v in value.items() if name not in named]
            among = schema.get("patternProperties", {}).values()
            parts = [(inner, value.values()) for inner in among]
            parts.append((schema.get("propertyNames"), value))
            parts.append((schema.get("additionalProperties"), others))
            parts.append((schema.get("unevaluatedProperties"), value.values()))
        elif isinstance(value, list):
            parts = [(schema.get(keyword), value) for keyword in _OF_ITEMS]
            for keyword in ("items", "prefixItems"):
                if isinstance(first := schema.get(keyword), list):
                    yield from zip(first, value, strict=False)
        else:
            return
        for inner, items in parts:
            if id(inner) in self._patterned:
                yield from ((inner, item) for item in items)


def _compiled(schema: dict[str, Any], *, is_brief: bool = False) -> Validator:
    """Compile a rebuilt schema, on request without the errors within alternatives."""
    keywords: dict[str, Any] = {"uniqueItems": UniqueItems}
    if is_brief:
        draft = {"$schema": schema["$schema"]} if "$schema" in schema else {}
        for keyword in ("anyOf", "oneOf"):
            keywords[keyword] = alternatives(keyword, lambda part: _compiled({**draft, **part}))
    return jsonschema_rs.validator_for(
        schema,
        validate_formats=False,
        offline=True,
        pattern_options=OPTIONS,
        mask="the value",
        keywords=keywords,
    )


class _Rebuilding:
    """The schema rebuilt as `result`, without references, with its `nodes` and `pattern_weight`.

    `more` is what it weighs beyond its nodes.
    """

    def __init__(
        self, root: Mapping[str, Any], max_patterns: int, *, is_brief: bool = False
    ) -> None:
        self.nodes = self.more = self.pattern_weight = self._unevaluated = 0
        self._name_characters = self._formats = self._dropped_ifs = 0
        self._root = root
        self._max_patterns = max_patterns
        self._is_brief = is_brief
        #: Of references: to read a long one takes a while.
        self._targets: dict[str, tuple[tuple[str, ...], Any]] = {}
        self._weights: dict[str, int] = {}  # of patterns, likewise
        self.patterns: list[str] = []
        self.left_out: list[str] = []
        self.restricts_names = False
        self.weights: dict[int, int] = {}  # of all rebuilt schemas, by id
        #: Rebuilt schemas with patterns in them, by id; kept, so that no other one gets the id.
        self.patterned: dict[int, Any] = {}
        self._draft = root.get("$schema", "")
        self._refers_alone = refers_alone(root)
        self.result = self._schema(root, ((),), 0)
        if self._draft:
            self.result["$schema"] = self._draft

    def _schema(self, node: Any, trail: _Trail, depth: int) -> Any:
        """Rebuild one schema; `trail` has the pointers of the references that led to it."""
        before = self.nodes + self.more
        self._count(1 + self._name_characters // _NAMES_PER_NODE)
        if depth > MAX_DEPTH:
            raise InvalidSchema(f"The schema is nested deeper than {MAX_DEPTH} levels.")
        if not isinstance(node, Mapping):
            self._count(constant_nodes(node))  # the names of `dependencies`, say
            return only_names(node)
        if not self._draft and isinstance(node, dict):
            node = in_new_words(node)
        self._count((8 * len(node) + sum(map(len, node))) // _KEYWORDS_PER_NODE)
        reference = node.get("$ref")
        if "$dynamicRef" in node or "$recursiveRef" in node:
            raise InvalidSchema("Dynamic references (`$dynamicRef`) are not supported.")
        own = node.get("$id")
        if depth and isinstance(own, str) and not own.startswith("#"):  # an anchor, in old drafts
            raise InvalidSchema("Embedded schema resources (`$id`) are not supported.")
        if isinstance(reference, str) and self._refers_alone:
            return self._referred(reference, trail, depth)
        left_out, patterns = len(self.left_out), self.pattern_weight
        dropped_ifs = self._dropped_ifs
        looks_twice = any(keyword in node for keyword in _UNEVALUATED)
        self._unevaluated += looks_twice
        rebuilt: dict[str, Any] = {}
        with_format = set()
        for keyword, value in node.items():
            if keyword not in _NEEDLESS:
                formats = self._formats
                self._keyword(rebuilt, keyword, value, trail, depth + 1)
                if self._formats > formats:
                    with_format.add(keyword)
        if isinstance(reference, str):
            referred = self._referred(reference, trail, depth)
            rebuilt["allOf"] = [*rebuilt.get("allOf", ()), referred]
        self._unevaluated -= looks_twice
        if "patternProperties" in node and "patternProperties" not in rebuilt:
            rebuilt.pop("additionalProperties", None)
        is_lenient = len(self.left_out) > left_out
        if is_lenient:
            for keyword in _STRICT:
                rebuilt.pop(keyword, None)
        for keyword, around in _STRICT_WITH_FORMAT.items():
            if around in with_format:
                rebuilt.pop(keyword, None)
        self._dropped_ifs += "if" in with_format
        if self._dropped_ifs > dropped_ifs:  # and with it, what `then` and `else` evaluate
            for keyword in _UNEVALUATED:
                rebuilt.pop(keyword, None)
        # `alternatives` come after `unevaluated…` beside them, which refuses all if none fits.
        is_late = self._is_brief and looks_twice
        for keyword in ("anyOf", "oneOf"):
            is_any = keyword == "oneOf" and (is_lenient or keyword in with_format)
            if keyword in rebuilt and (is_late or is_any):
                either = {"anyOf" if is_any else keyword: rebuilt.pop(keyword)}
                self.patterned[id(either)] = either
                self.weights[id(either)] = self.nodes + self.more - before
                rebuilt["allOf"] = [*rebuilt.get("allOf", ()), either]
        if self.pattern_weight > patterns:
            self.patterned[id(rebuilt)] = rebuilt
        self.weights[id(rebuilt)] = self.nodes + self.more - before
        return rebuilt

    def _keyword(
        self, rebuilt: dict[str, Any], keyword: str, value: Any, trail: _Trail, depth: int
    ) -> None:
        if keyword in _LIST_OF_SCHEMAS and isinstance(value, list):
            rebuilt[keyword] = [self._schema(item, trail, depth) for item in value]
        elif keyword in _MAP_OF_SCHEMAS and isinstance(value, Mapping):
            of_patterns = value if keyword == "patternProperties" else ()
            if why := next(filter(None, map(self._unmatched, of_patterns)), None):
                self.left_out.append(f"The pattern of `patternProperties` {why}")
                return
            rebuilt[keyword] = {
                name: self._named(name, item, trail, depth) for name, item in value.items()
            }
        elif keyword in _UNEVALUATED and self._unevaluated > MAX_UNEVALUATED:
            self.left_out.append(f"`{keyword}` is nested deeper than {MAX_UNEVALUATED} levels.")
        elif keyword in _SCHEMA:
            rebuilt[keyword] = self._schema(value, trail, depth)
            if keyword == "propertyNames" and not takes_any_name(rebuilt[keyword]):
                self.restricts_names = True
        elif keyword == "pattern" and isinstance(value, str) and (why := self._unmatched(value)):
            self.left_out.append(f"The pattern {short(value)!r} {why}")
        elif keyword == "multipleOf" and isinstance(value, float) and 0 < value < MIN_MULTIPLE:
            self.left_out.append(f"A `multipleOf` below {MIN_MULTIPLE} is not supported.")
        else:
            self._count(constant_nodes(value))
            self.more += MORE_NODES * takes_longer(keyword, value)
            self._formats += keyword == "format" and isinstance(value, str)
            rebuilt[keyword] = only_names(value) if keyword in _NAMES else value

    def _named(self, name: str, node: Any, trail: _Trail, depth: int) -> Any:
        self._name_characters += len(name)
        rebuilt = self._schema(node, trail, depth)
        self._name_characters -= len(name)
        return rebuilt

    def _referred(self, reference: str, trail: _Trail, depth: int) -> Any:
        if reference not in self._targets:
            self._targets[reference] = self._target(reference)
        pointer, target = self._targets[reference]
        if pointer in trail:
            self.left_out.append(f"The recursive `$ref` {short(reference)!r} is not supported.")
            return {}
        return self._schema(target, (*trail, pointer), depth + 1)

    def _target(self, reference: str) -> tuple[tuple[str, ...], Any]:
        """Return where a reference leads to, and what is there.

        Raises: InvalidSchema: there is nothing within the schema.
        """
        pointer = parts_of(reference, self._root)
        if pointer is None and reference.startswith("#"):
            raise InvalidSchema("References to anchors are not supported; use `#/$defs/<name>`.")
        if pointer is None:
            raise InvalidSchema("References to other documents are not supported.")
        target = target_of(self._root, pointer)
        if target is None:
            raise InvalidSchema(f"Unresolvable `$ref`: {short(reference)}")
        return pointer, target

    def _unmatched(self, pattern: str) -> str | None:
        """Return the end of a sentence about a pattern that is not matched."""
        if pattern not in self._weights:
            self._weights[pattern] = 1 + len(pattern) // 1_000 + folded_classes(pattern)
        weight = self._weights[pattern]
        if self.pattern_weight + weight > self._max_patterns:
            return f"is beyond the limit of {MAX_PATTERNS} patterns."
        self.pattern_weight += weight
        self.patterns.append(pattern)
        return problem(pattern)

    def _count(self, nodes: int) -> None:
        self.nodes += nodes
        if self.nodes > MAX_NODES:
            raise InvalidSchema("The schema is too large.")


def no_schema(error: ValidationError, given: Mapping[str, Any]) -> InvalidSchema:
    """Build the error for what is no schema, with the place in `given`, which may have been rebuilt
    since.
    """
    place = short(pointer_to(given, error.instance_path))
    where = f", at {place}" if place else ""
    return InvalidSchema(f"Not a JSON Schema: {short(error.message)}{where}")


def short(text: str) -> str:
    """Shorten a text to a part of a sentence."""
    text = " ".join(text.split())
    return text if len(text) <= _MAX_REASON_CHARACTERS else text[:_MAX_REASON_CHARACTERS] + "…"
