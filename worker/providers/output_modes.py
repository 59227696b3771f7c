"""The ways in which APIs make models give output that fits a schema, and the schemas they take.

Sources: "Structured outputs" of both vendors
(https://developers.openai.com/api/docs/guides/structured-outputs#supported-schemas,
https://platform.claude.com/docs/en/build-with-claude/structured-outputs#json-schema-limitations),
and what Anthropic's SDK removes from schemas (`anthropic/lib/_parse/_transform.py`).
"""

from collections.abc import Mapping
from enum import Enum
from typing import Any

#: The name of the schema among the settings of a model call.
SETTING = "output_schema"
#: The tool by which models answer where the API has no mode for it.
FINAL_TOOL = "final_answer"
#: The beginning of the message that asks for another answer.
REJECTED = "Your answer does not have the required form:"


class OutputMode(Enum):
    """The way to output that fits a schema."""

    NATIVE = "native"  # the API makes the answer fit, and shows the model the schema
    CONSTRAINED = "constrained"  # the API makes the answer fit; the prompt must show the schema
    TOOL = "tool"  # the model calls a tool, whose arguments are the output


_KEYWORDS = frozenset(
    {
        *("type", "properties", "required", "additionalProperties", "items", "enum", "const"),
        *("anyOf", "$ref", "$defs", "definitions", "title", "description", "format"),
    }
)
_EXCLUSIVE = ("exclusiveMinimum", "exclusiveMaximum")
_OPENAI = _KEYWORDS | {
    *("pattern", "multipleOf", "minimum", "maximum", *_EXCLUSIVE, "minItems", "maxItems")
}
_ANTHROPIC = _KEYWORDS | {"allOf"}
#: A schema has one of them.
_KINDS = frozenset({"type", "enum", "const", "anyOf", "allOf", "$ref"})
_FORMATS = frozenset(
    {"date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid"}
)
#: Of keywords that are read here. A stored schema may have other ones where nothing refers to them.
_TYPES = (
    *(("properties", Mapping), ("$defs", Mapping), ("definitions", Mapping)),
    *(("anyOf", list), ("allOf", list), ("required", list), ("format", str)),
)
#: Of objects in OpenAI's strict mode.
_MAX_OPENAI_LEVELS = 10


def mode_of_others(*, has_tools: bool) -> OutputMode:
    """Return the mode of servers that are compatible with OpenAI.

    Their grammars know nothing of tools: some refuse both together, with others the model could
    call no tool any more.
    """
    return OutputMode.TOOL if has_tools else OutputMode.CONSTRAINED


def is_strict(schema: Mapping[str, Any]) -> bool:
    """Return whether OpenAI's strict mode takes the schema as it is.

    It requires every property, and forbids others: where the schema does not, it would mean
    something else. Nothing may stand beside a `$ref`.
    """
    is_flat_enough = _levels(schema) <= _MAX_OPENAI_LEVELS
    undated = without_draft(schema)
    return is_flat_enough and "anyOf" not in schema and _fits(undated, _OPENAI, is_openai=True)


def openai_format(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return the schema in the form that both of OpenAI's APIs have for it."""
    return {"name": "output", "schema": schema, "strict": is_strict(schema)}


def is_of_anthropic(schema: Mapping[str, Any]) -> bool:
    """Return whether Anthropic's structured output takes the schema `without_draft` as it is."""
    return _fits(without_draft(schema), _ANTHROPIC, is_openai=False)


def without_draft(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return the schema without its `$schema`, which Zod and vendors' SDKs write.

    OpenAI's SDK sends it in strict mode; Anthropic does not list it, and reads draft 2020-12 alone.
    """
    return {keyword: value for keyword, value in schema.items() if keyword != "$schema"}


def _fits(schema: Any, keywords: frozenset[str], *, is_openai: bool) -> bool:
    if not isinstance(schema, Mapping) or not schema.keys() <= keywords:
        return False
    if not all(isinstance(schema[name], type_) for name, type_ in _TYPES if name in schema):
        return False
    if any(isinstance(schema.get(bound), bool) for bound in _EXCLUSIVE):  # a word of draft 4
        return False
    if schema.get("format", "date") not in _FORMATS:
        return False
    if not schema.keys() & _KINDS:
        return False
    if is_openai and "$ref" in schema and len(schema) > 1:
        return False
    if not is_openai and any(
        "$ref" in one for one in schema.get("allOf", ()) if isinstance(one, Mapping)
    ):
        return False
    properties, types = schema.get("properties", {}), schema.get("type")
    if "properties" in schema or "object" in (types if isinstance(types, list) else [types]):
        is_closed = schema.get("additionalProperties") is False
        if not is_closed or (
            is_openai and {*map(str, schema.get("required", ()))} != {*properties}
        ):
            return False
    inner = [*properties.values(), *schema.get("anyOf", ()), *schema.get("allOf", ())]
    inner += [schema["items"]] if "items" in schema else []
    for name in ("$defs", "definitions"):
        inner += schema.get(name, {}).values()
    return all(_fits(one, keywords, is_openai=is_openai) for one in inner)


def _levels(value: Any) -> int:
    """Count the objects within each other that a schema describes."""
    if isinstance(value, list):
        return max(map(_levels, value), default=0)
    if not isinstance(value, Mapping):
        return 0
    return ("properties" in value) + max(map(_levels, value.values()), default=0)
