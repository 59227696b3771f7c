"""A value against the schema of others: a tool's arguments (which may be an enemy's, MCP), or the
output of a run.
"""

import itertools
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from jsonschema_rs import ValidationError, ValidationErrorKind

from arkloop.shared.catalog import output_schema
from arkloop.shared.json_schema import MAX_MATCHED, JsonSchema, short
from arkloop.worker.contract.cpu_slices import cpu_slice

MAX_ERRORS = 5
_MAX_NAME_CHARACTERS = 80

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
        work = schema.work.product(value)
        if work <= _MAX_WORK_UNFELT and self._is_short(value, _MAX_MATCHED_UNFELT):
            return self._errors(value, work)
        with cpu_slice():
            if schema.work.is_too_much(value, work):
                return [self._too_large]
            return self._errors(value, work)

    def _is_short(self, value: Any, most: int) -> bool:
        return self._schema.matched_characters(value, most) <= most

    def _errors(self, value: Any, work: int) -> list[str]:
        schema = self._schema
        is_output = self._words is OUTPUT
        is_short = self._is_short(value, output_schema.MAX_MATCHED if is_output else MAX_MATCHED)
        if is_output and not is_short:
            return [self._too_large]
        try:
            found = schema.errors(value, work, with_patterns=is_short)
        except ValueError:
            return [f"The {self._words.whole}: nested too deeply, or not valid JSON."]
        sentences = (sentence for error in found for sentence in _sentences(error, self._words))
        return list(itertools.islice(dict.fromkeys(sentences), MAX_ERRORS))


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
