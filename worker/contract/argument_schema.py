"""A tool's arguments against its schema, which may be an enemy's (MCP).

A schema is rebuilt before it is compiled: references are replaced by what they
lead to, so that nothing is fetched and the work is bounded by a count of nodes.
What cannot be checked within bounds is left out; the tool's server still can.
"""

import itertools
import json
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any
from urllib.parse import unquote

import jsonschema_rs
from jsonschema_rs import ValidationError, ValidationErrorKind, Validator

from worker.contract.cpu_slices import cpu_slice

#: Of a schema whose references are replaced; 8 characters of plain data count as one.
MAX_NODES = 5_000
MAX_DEPTH = 40
MAX_PATTERNS = 32
#: `unevaluatedItems` and `unevaluatedProperties` below one another: each doubles the work.
MAX_UNEVALUATED = 3

#: Nodes of the schema times the weight of the arguments: beyond it they are refused. A tenth of a
#: second, in which no other run of the process advances.
MAX_WORK = 1_000_000
#: Patterns times characters of the arguments: beyond it patterns are left out. Each may cost 2 µs.
MAX_MATCHED = 20_000

MAX_ERRORS = 5
_MAX_NAME_CHARACTERS = 80
_MAX_REASON_CHARACTERS = 240

#: Beyond this work only the first error is looked for. Finding all of them takes a time that grows
#: with the square.
_MAX_WORK_FOR_ALL = 20_000
#: Beyond this, of either kind, a check is a piece of long work: some milliseconds.
_MAX_WORK_UNFELT = 20_000
_MAX_MATCHED_UNFELT = 1_000

#: Linear in the length of the text and in the size of the pattern; sizes in bytes.
_PATTERNS = jsonschema_rs.RegexOptions(size_limit=16_384, dfa_size_limit=16_384)

_OLD_DRAFTS = ("draft-04", "draft-06", "draft-07")
_SCHEMA = (
    *("additionalItems", "additionalProperties", "contains", "else", "if", "items", "not"),
    *("propertyNames", "then", "unevaluatedItems", "unevaluatedProperties"),
)
_LIST_OF_SCHEMAS = ("allOf", "anyOf", "items", "oneOf", "prefixItems")
_MAP_OF_SCHEMAS = ("dependencies", "dependentSchemas", "patternProperties", "properties")
#: What others refer to, and what only people read.
_NEEDLESS = (
    *("$anchor", "$comment", "$defs", "$dynamicAnchor", "$id", "$ref", "$schema", "definitions"),
    *("default", "deprecated", "description", "example", "examples", "id", "readOnly", "title"),
    "writeOnly",
)
_UNEVALUATED = ("unevaluatedItems", "unevaluatedProperties")
#: Would turn a subschema that became more lenient into a refusal.
_STRICT = ("if", "not", *_UNEVALUATED)


class InvalidSchema(Exception):
    """A schema that no arguments can be checked against; the message says why."""


class ArgumentSchema:
    """Checks arguments against a JSON Schema, drafts 4 to 2020-12.

    Not checked: `format`, a `pattern` that is large or that only a backtracking
    engine can match, and what a schema says of itself again below itself.

    Raises:
        InvalidSchema: it is no schema, too large, or refers to another document.
    """

    def __init__(self, schema: Mapping[str, Any]) -> None:
        self._schema = schema
        try:
            rebuilding = _Rebuilding(schema, MAX_PATTERNS)
            self._validator = _compiled(rebuilding)
        except ValidationError as error:
            raise InvalidSchema(f"Not a JSON Schema: {_short(error.message)}") from None
        except (ValueError, TypeError, AttributeError, RecursionError):
            raise InvalidSchema("Not a JSON Schema.") from None
        self._nodes = rebuilding.nodes
        self._patterns = rebuilding.patterns

    def errors(self, arguments: Mapping[str, Any]) -> list[str]:
        """Describe what does not fit, in sentences that repeat no value; at most `MAX_ERRORS`."""
        weight, characters = _measured(arguments, MAX_WORK // self._nodes)
        work, matched = self._nodes * weight, self._patterns * characters
        if work > MAX_WORK:
            return ["The arguments are too large to validate."]
        if work <= _MAX_WORK_UNFELT and matched <= _MAX_MATCHED_UNFELT:
            return self._errors(arguments, work, matched)
        with cpu_slice():
            return self._errors(arguments, work, matched)

    def _errors(self, arguments: Mapping[str, Any], work: int, matched: int) -> list[str]:
        validator = self._validator if matched <= MAX_MATCHED else self._without_patterns
        try:
            if validator.is_valid(arguments):
                return []
            found = _found(validator, arguments, work <= _MAX_WORK_FOR_ALL)
        except ValueError:
            return ["The arguments are nested too deeply, or are not valid JSON."]
        sentences = itertools.chain.from_iterable(map(_sentences, found))
        return list(itertools.islice(dict.fromkeys(sentences), MAX_ERRORS))

    @cached_property
    def _without_patterns(self) -> Validator:
        return _compiled(_Rebuilding(self._schema, 0))


def _compiled(rebuilding: "_Rebuilding") -> Validator:
    return jsonschema_rs.validator_for(
        rebuilding.result,
        validate_formats=False,
        offline=True,
        pattern_options=_PATTERNS,
        mask="the value",
    )


def _found(
    validator: Validator, arguments: Mapping[str, Any], want_all: bool
) -> list[ValidationError]:
    if want_all:
        return list(validator.iter_errors(dict(arguments)))
    try:
        validator.validate(dict(arguments))
    except ValidationError as error:
        return [error]
    return []


class _Rebuilding:
    """The schema rebuilt as `result`, without references, with counts of `nodes` and `patterns`."""

    def __init__(self, root: Mapping[str, Any], max_patterns: int) -> None:
        self.nodes = self.patterns = self._unevaluated = 0
        self._root = root
        self._max_patterns = max_patterns
        self._left_out = 0
        draft = root.get("$schema", "")
        self._refers_alone = any(name in draft for name in _OLD_DRAFTS)
        self.result = self._schema(root, ("#",), 0)
        if draft:
            self.result["$schema"] = draft

    def _schema(self, node: Any, trail: tuple[str, ...], depth: int) -> Any:
        """Rebuild one schema; `trail` has the references that led to it."""
        self._count(1)
        if depth > MAX_DEPTH:
            raise InvalidSchema(f"The schema is nested deeper than {MAX_DEPTH} levels.")
        if not isinstance(node, Mapping):
            return node
        reference = node.get("$ref")
        if "$dynamicRef" in node or "$recursiveRef" in node:
            raise InvalidSchema("Dynamic references (`$dynamicRef`) are not supported.")
        if depth and isinstance(node.get("$id"), str):
            raise InvalidSchema("Embedded schema resources (`$id`) are not supported.")
        if isinstance(reference, str) and self._refers_alone:
            return self._referred(reference, trail, depth)
        left_out = self._left_out
        looks_twice = any(keyword in node for keyword in _UNEVALUATED)
        self._unevaluated += looks_twice
        rebuilt: dict[str, Any] = {}
        for keyword, value in node.items():
            if keyword not in _NEEDLESS:
                self._keyword(rebuilt, keyword, value, trail, depth + 1)
        if isinstance(reference, str):
            referred = self._referred(reference, trail, depth)
            rebuilt["allOf"] = [*rebuilt.get("allOf", ()), referred]
        self._unevaluated -= looks_twice
        if "patternProperties" in node and "patternProperties" not in rebuilt:
            rebuilt.pop("additionalProperties", None)
        if self._left_out > left_out:
            for keyword in _STRICT:
                rebuilt.pop(keyword, None)
            if "oneOf" in rebuilt:
                either = {"anyOf": rebuilt.pop("oneOf")}
                rebuilt["allOf"] = [*rebuilt.get("allOf", ()), either]
        return rebuilt

    def _keyword(
        self, rebuilt: dict[str, Any], keyword: str, value: Any, trail: tuple[str, ...], depth: int
    ) -> None:
        if keyword in _LIST_OF_SCHEMAS and isinstance(value, list):
            rebuilt[keyword] = [self._schema(item, trail, depth) for item in value]
        elif keyword in _MAP_OF_SCHEMAS and isinstance(value, Mapping):
            if keyword == "patternProperties" and not all(map(self._can_match, value)):
                self._left_out += 1
                return
            rebuilt[keyword] = {
                name: self._schema(item, trail, depth) for name, item in value.items()
            }
        elif keyword in _UNEVALUATED and self._unevaluated > MAX_UNEVALUATED:
            self._left_out += 1
        elif keyword in _SCHEMA:
            rebuilt[keyword] = self._schema(value, trail, depth)
        elif keyword == "pattern" and isinstance(value, str) and not self._can_match(value):
            self._left_out += 1
        else:
            self._count(len(json.dumps(value)) // 8)
            rebuilt[keyword] = value

    def _referred(self, reference: str, trail: tuple[str, ...], depth: int) -> Any:
        if reference in trail:
            self._left_out += 1
            return {}
        target: Any = self._root
        if reference != "#":
            if not reference.startswith("#/"):
                raise InvalidSchema("References to other documents are not supported.")
            for part in unquote(reference[2:]).split("/"):
                name = part.replace("~1", "/").replace("~0", "~")
                try:
                    target = target[int(name) if isinstance(target, list) else name]
                except (LookupError, TypeError, ValueError):
                    raise InvalidSchema("Unresolvable `$ref`.") from None
        return self._schema(target, (*trail, reference), depth + 1)

    def _can_match(self, pattern: str) -> bool:
        if self.patterns >= self._max_patterns:
            return False
        self.patterns += 1
        try:
            jsonschema_rs.validator_for({"pattern": pattern}, pattern_options=_PATTERNS)
        except ValueError:
            return False
        return True

    def _count(self, nodes: int) -> None:
        self.nodes += nodes
        if self.nodes > MAX_NODES:
            raise InvalidSchema("The schema is too large.")


def _measured(value: Any, limit: int) -> tuple[int, int]:
    """Measure how much work checking takes, at least `limit + 1` beyond that, and the characters.

    Each value weighs 1, and so do 64 characters: what goes wrong copies them. Integers of many
    digits weigh the square of what they are too long.
    """
    weight, characters, waiting = 0, 0, [value]
    while waiting and weight + characters // 64 <= limit:
        value = waiting.pop()
        weight += 1
        match value:
            case Mapping():
                waiting.extend(value.values())
                characters += sum(map(len, value))
            case list():
                waiting.extend(value)
            case str():
                characters += len(value)
            case int():
                weight += (value.bit_length() // 64) ** 2
    return weight + characters // 64, characters


def _sentences(error: ValidationError) -> Iterator[str]:
    path, kind = error.instance_path, error.kind
    match kind:
        case ValidationErrorKind.Required():
            yield f"Missing argument {_name([*path, str(kind.property)])}."
        case (
            ValidationErrorKind.AdditionalProperties() | ValidationErrorKind.UnevaluatedProperties()
        ):
            for name in kind.unexpected[:MAX_ERRORS]:
                yield f"Unknown argument {_name([*path, name])}."
        case ValidationErrorKind.FalseSchema():
            yield f"Unknown argument {_name(path)}." if path else "No arguments are allowed."
        case ValidationErrorKind.Type():
            types = " or ".join(kind.types)
            yield f"{_subject(path)} must be of type {types}."
        case _:
            yield f"{_subject(path)}: {_short(error.message)}."


def _subject(path: list[str | int]) -> str:
    return f"The argument {_name(path)}" if path else "The arguments"


def _name(path: list[str | int]) -> str:
    """Format a path as one writes it: `filter.tags[0]`."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    text = text.removeprefix(".")
    if len(text) > _MAX_NAME_CHARACTERS:
        text = text[:_MAX_NAME_CHARACTERS] + "…"
    return repr(text)


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _MAX_REASON_CHARACTERS else text[:_MAX_REASON_CHARACTERS] + "…"
