"""A tool's arguments against its schema, which may be an enemy's (MCP).

A schema is rebuilt before it is compiled: references are replaced by what they
lead to, so that nothing is fetched and the work is bounded by a count of nodes.
What cannot be checked within bounds is left out; the tool's server still can.
"""

import itertools
import json
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import unquote

import jsonschema_rs
from jsonschema_rs import ValidationError, ValidationErrorKind

#: Of a schema whose references are replaced; 32 characters of plain data count as one.
MAX_NODES = 5_000
MAX_DEPTH = 40
MAX_PATTERNS = 32

MAX_ERRORS = 5
_MAX_NAME_CHARACTERS = 80
_MAX_REASON_CHARACTERS = 240

#: Nodes of the schema times values of the arguments: beyond this only the first error is looked
#: for. Finding all of them takes a time that grows with the square.
_MAX_WORK = 20_000

#: Linear in the length of the text, whatever the pattern; sizes in bytes.
_PATTERNS = jsonschema_rs.RegexOptions(size_limit=262_144, dfa_size_limit=262_144)

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
#: Would turn a subschema that became more lenient into a refusal.
_STRICT = ("if", "not", "unevaluatedItems", "unevaluatedProperties")


class InvalidSchema(Exception):
    """No arguments can be checked against this schema; the message says why."""


class ArgumentSchema:
    """Checks arguments against a JSON Schema, drafts 4 to 2020-12.

    Not checked: `format`, a `pattern` that only a backtracking engine can
    match, and what a schema says of itself again below itself.

    Raises:
        InvalidSchema: it is no schema, too large, or refers to another document.
    """

    def __init__(self, schema: Mapping[str, Any]) -> None:
        try:
            rebuilding = _Rebuilding(schema)
            self._validator = jsonschema_rs.validator_for(
                rebuilding.result,
                validate_formats=False,
                offline=True,
                pattern_options=_PATTERNS,
                mask="the value",
            )
        except ValidationError as error:
            raise InvalidSchema(f"Not a JSON Schema: {_short(error.message)}") from None
        except (ValueError, TypeError, AttributeError, RecursionError):
            raise InvalidSchema("Not a JSON Schema.") from None
        self._nodes = rebuilding.nodes

    def errors(self, arguments: Mapping[str, Any]) -> list[str]:
        """What does not fit, in sentences that repeat no value; at most `MAX_ERRORS`."""
        try:
            if self._validator.is_valid(arguments):
                return []
            found = self._found(arguments)
        except ValueError:
            return ["The arguments are nested too deep, or are not what JSON can hold."]
        sentences = itertools.chain.from_iterable(map(_sentences, found))
        return list(itertools.islice(dict.fromkeys(sentences), MAX_ERRORS))

    def _found(self, arguments: Mapping[str, Any]) -> list[ValidationError]:
        if self._nodes * _size(arguments, _MAX_WORK) <= _MAX_WORK:
            return list(self._validator.iter_errors(dict(arguments)))
        try:
            self._validator.validate(dict(arguments))
        except ValidationError as error:
            return [error]
        return []


class _Rebuilding:
    """The schema again as `result`, without references, of so many `nodes`."""

    def __init__(self, root: Mapping[str, Any]) -> None:
        self.nodes = 0
        self._root = root
        self._patterns = 0
        self._left_out = 0
        draft = root.get("$schema", "")
        self._refers_alone = any(name in draft for name in _OLD_DRAFTS)
        self.result = self._schema(root, ("#",), 0)
        if draft:
            self.result["$schema"] = draft

    def _schema(self, node: Any, trail: tuple[str, ...], depth: int) -> Any:
        """`trail`: the references that led here."""
        self._count(1)
        if depth > MAX_DEPTH:
            raise InvalidSchema(f"The schema is nested deeper than {MAX_DEPTH} levels.")
        if not isinstance(node, Mapping):
            return node
        reference = node.get("$ref")
        if "$dynamicRef" in node or "$recursiveRef" in node:
            raise InvalidSchema("The schema has dynamic references.")
        if depth and isinstance(node.get("$id"), str):
            raise InvalidSchema("The schema has another document within it.")
        if isinstance(reference, str) and self._refers_alone:
            return self._referred(reference, trail, depth)
        left_out = self._left_out
        rebuilt: dict[str, Any] = {}
        for keyword, value in node.items():
            if keyword not in _NEEDLESS:
                self._keyword(rebuilt, keyword, value, trail, depth + 1)
        if isinstance(reference, str):
            referred = self._referred(reference, trail, depth)
            rebuilt["allOf"] = [*rebuilt.get("allOf", ()), referred]
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
                raise InvalidSchema("The schema has patterns of names that cannot be checked.")
            rebuilt[keyword] = {
                name: self._schema(item, trail, depth) for name, item in value.items()
            }
        elif keyword in _SCHEMA:
            rebuilt[keyword] = self._schema(value, trail, depth)
        elif keyword == "pattern" and isinstance(value, str) and not self._can_match(value):
            self._left_out += 1
        else:
            self._count(len(json.dumps(value)) // 32)
            rebuilt[keyword] = value

    def _referred(self, reference: str, trail: tuple[str, ...], depth: int) -> Any:
        if reference in trail:
            self._left_out += 1
            return {}
        target: Any = self._root
        if reference != "#":
            if not reference.startswith("#/"):
                raise InvalidSchema("The schema refers to another document.")
            for part in unquote(reference[2:]).split("/"):
                name = part.replace("~1", "/").replace("~0", "~")
                try:
                    target = target[int(name) if isinstance(target, list) else name]
                except (LookupError, TypeError, ValueError):
                    raise InvalidSchema("The schema refers to what it does not have.") from None
        return self._schema(target, (*trail, reference), depth + 1)

    def _can_match(self, pattern: str) -> bool:
        self._patterns += 1
        if self._patterns > MAX_PATTERNS:
            return False
        try:
            jsonschema_rs.validator_for({"pattern": pattern}, pattern_options=_PATTERNS)
        except ValueError:
            return False
        return True

    def _count(self, nodes: int) -> None:
        self.nodes += nodes
        if self.nodes > MAX_NODES:
            raise InvalidSchema("The schema is too large.")


def _size(value: Any, limit: int) -> int:
    """How many values it holds, itself included; at least `limit` if there are more."""
    size, waiting = 0, [value]
    while waiting and size < limit:
        value = waiting.pop()
        size += 1
        if isinstance(value, Mapping):
            waiting.extend(value.values())
        elif isinstance(value, list):
            waiting.extend(value)
    return size


def _sentences(error: ValidationError) -> Iterator[str]:
    path, kind = error.instance_path, error.kind
    match kind:
        case ValidationErrorKind.Required():
            yield f"The argument {_name([*path, str(kind.property)])} is missing."
        case (
            ValidationErrorKind.AdditionalProperties() | ValidationErrorKind.UnevaluatedProperties()
        ):
            for name in kind.unexpected[:MAX_ERRORS]:
                yield f"There is no argument {_name([*path, name])}."
        case ValidationErrorKind.FalseSchema():
            yield f"There is no argument {_name(path)}." if path else "There are no arguments."
        case ValidationErrorKind.Type():
            types = " or ".join(kind.types)
            yield f"{_subject(path)} must be of type {types}."
        case _:
            yield f"{_subject(path)}: {_short(error.message)}."


def _subject(path: list[str | int]) -> str:
    return f"The argument {_name(path)}" if path else "The arguments"


def _name(path: list[str | int]) -> str:
    """As one writes it: `filter.tags[0]`."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    text = text.removeprefix(".")
    if len(text) > _MAX_NAME_CHARACTERS:
        text = text[:_MAX_NAME_CHARACTERS] + "…"
    return repr(text)


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _MAX_REASON_CHARACTERS else text[:_MAX_REASON_CHARACTERS] + "…"
