"""A value against the schema of others: a tool's arguments (which may be an enemy's, MCP), or the
output of a run.
"""

import itertools
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from jsonschema_rs import ValidationError, ValidationErrorKind, Validator

from arkloop.shared.catalog import output_schema
from arkloop.shared.json_schema import MAX_WORK, JsonSchema, measured, short
from arkloop.worker.contract.cpu_slices import cpu_slice

#: Patterns times characters of arguments: beyond it patterns are left out. Each may cost 3 µs.
MAX_MATCHED = 20_000

MAX_ERRORS = 5
_MAX_NAME_CHARACTERS = 80

#: Beyond this work only the first error is looked for. Finding all of them takes a time that grows
#: with the square.
_MAX_WORK_FOR_ALL = 20_000
#: Beyond this, of either kind, a check is a piece of long work: some milliseconds.
_MAX_WORK_UNFELT = 20_000
_MAX_MATCHED_UNFELT = 1_000


class Words(NamedTuple):
    """The words for a value, and for a part of it, in sentences about them."""

    whole: str
    part: str


ARGUMENTS = Words("arguments", "argument")
OUTPUT = Words("output", "property")


class ArgumentSchema:
    """Checks values against a JSON Schema, as far as `JsonSchema` says.

    Arguments that are long are checked without patterns; an output never is.

    Raises:
        InvalidSchema: nothing can be checked against it.
    """

    def __init__(self, schema: Mapping[str, Any], words: Words = ARGUMENTS) -> None:
        self._schema = JsonSchema(schema)
        self._words = words
        self._too_large = f"The {words.whole}: too large to validate."

    def errors(self, value: Any) -> list[str]:
        """Describe what does not fit, in sentences that repeat no value; at most `MAX_ERRORS`."""
        schema = self._schema
        weight, characters = measured(value, MAX_WORK // schema.nodes)
        work, matched = schema.nodes * weight, schema.patterns * characters
        if work > MAX_WORK:
            return [self._too_large]
        if work <= _MAX_WORK_UNFELT and matched <= _MAX_MATCHED_UNFELT:
            return self._errors(value, work, matched)
        with cpu_slice():
            return self._errors(value, work, matched)

    def _errors(self, value: Any, work: int, matched: int) -> list[str]:
        schema = self._schema
        is_short = matched <= MAX_MATCHED
        if not is_short and self._words is OUTPUT:
            most = output_schema.MAX_MATCHED
            if schema.matched_characters(value, most) > most:
                return [self._too_large]
            is_short = True
        validator = schema.validator if is_short else schema.validator_without_patterns
        try:
            if validator.is_valid(value):
                return []
            found = _found(validator, value, work <= _MAX_WORK_FOR_ALL)
        except ValueError:
            return [f"The {self._words.whole}: nested too deeply, or not valid JSON."]
        sentences = (sentence for error in found for sentence in _sentences(error, self._words))
        return list(itertools.islice(dict.fromkeys(sentences), MAX_ERRORS))


def _found(validator: Validator, value: Any, want_all: bool) -> list[ValidationError]:
    if want_all:
        return list(validator.iter_errors(value))
    try:
        validator.validate(value)
    except ValidationError as error:
        return [error]
    return []


def _sentences(error: ValidationError, words: Words) -> Iterator[str]:
    path, kind = error.instance_path, error.kind
    match kind:
        case ValidationErrorKind.Required():
            yield f"Missing {words.part} {_name([*path, str(kind.property)])}."
        case (
            ValidationErrorKind.AdditionalProperties() | ValidationErrorKind.UnevaluatedProperties()
        ):
            for name in kind.unexpected[:MAX_ERRORS]:
                yield f"Unknown {words.part} {_name([*path, name])}."
        case ValidationErrorKind.FalseSchema():
            unknown = f"Unknown {words.part} {_name(path)}."
            yield unknown if path else f"No {words.whole} are allowed."
        case ValidationErrorKind.Type():
            types = " or ".join(kind.types)
            yield f"{_subject(path, words)} must be of type {types}."
        case _:
            yield f"{_subject(path, words)}: {short(error.message)}."


def _subject(path: list[str | int], words: Words) -> str:
    return f"The {words.part} {_name(path)}" if path else f"The {words.whole}"


def _name(path: list[str | int]) -> str:
    """Format a path as one writes it: `filter.tags[0]`."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    text = text.removeprefix(".")
    if len(text) > _MAX_NAME_CHARACTERS:
        text = text[:_MAX_NAME_CHARACTERS] + "…"
    return repr(text)
