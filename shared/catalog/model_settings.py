"""Settings of model calls: sampling, reasoning and the choice of tools, the same for every vendor.

They are set on a route, a persona and a run. For each name the run's value counts before the
persona's, and the persona's before the route's; null stands for the vendor's default.
"""

import json
import math
import re
from collections.abc import Collection, Mapping
from typing import Any

from arkloop.shared.catalog.field_readers import FLAG, FieldReader, object_of
from arkloop.shared.catalog.prices import SPEED_FIELDS
from arkloop.shared.events.plain import clean, is_too_deep

EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
VERBOSITIES = ("low", "medium", "high")
#: Or `{"name": …}`, for one tool.
TOOL_CHOICES = ("auto", "none", "required")
#: What chat completions accept.
MAX_STOPS = 4
MAX_STOP_CHARACTERS = 256
MAX_EXTRA_BYTES = 16_384
MAX_EXTRA_DEPTH = 16
_TOOL_NAME = re.compile("[A-Za-z0-9_-]{1,64}")

#: Fields of requests that the service sets itself: the run's conversation, its stream, its limits.
RESERVED = frozenset(
    {
        *("model", "messages", "input", "instructions", "system", "prompt", "tools"),
        *("functions", "function_call", "stream", "stream_options", "store", "include", "n"),
        *("max_tokens", "max_completion_tokens", "max_output_tokens", "background"),
        *("background_options", "conversation", "previous_response_id", "stop_sequences"),
    }
)


class InvalidModelSettings(ValueError):
    """`problems` says what is wrong: setting → why."""

    def __init__(self, problems: Mapping[str, list[str]]) -> None:
        super().__init__("; ".join(f"{name}: {', '.join(why)}" for name, why in problems.items()))
        self.problems = problems


def read(value: Any) -> dict[str, Any]:
    """Read settings as JSON or YAML has them; `stop` becomes a list.

    Raises:
        InvalidModelSettings: unknown names, wrong types, or beyond the limits; all at once.
        ValueError: it is no object.
    """
    if not isinstance(value, Mapping):
        raise ValueError("must be an object")
    settings: dict[str, Any] = {}
    problems: dict[str, list[str]] = {}
    for name, setting in value.items():
        known = _SETTINGS.get(name)
        try:
            if known is None:
                raise ValueError(f"unknown setting; the settings are {', '.join(_SETTINGS)}")
            settings[name] = None if setting is None else known.read(setting)
        except ValueError as error:
            problems[clean(str(name))[:100]] = [str(error)]
    if problems:
        raise InvalidModelSettings(problems)
    return settings


def effective(*levels: Mapping[str, Any]) -> dict[str, Any]:
    """Merge settings, the weakest first, into those that are sent."""
    merged: dict[str, Any] = {}
    for level in levels:
        merged |= level
    return {name: value for name, value in merged.items() if value is not None}


def ordered_speed(settings: Mapping[str, Any]) -> str:
    """Return the speed that the settings order from the vendor; empty if they order none."""
    extra = settings.get("extra_body") or {}
    ordered = (extra.get(name) for name in SPEED_FIELDS)
    return next((speed for speed in ordered if isinstance(speed, str)), "")


def without(settings: Mapping[str, Any], dropped: Collection[str]) -> dict[str, Any]:
    """Return the settings without the `dropped` ones; `extra_body.<field>` names one field."""
    left = {name: value for name, value in settings.items() if name not in dropped}
    if "extra_body" in left:
        extra = left["extra_body"]
        left["extra_body"] = {k: v for k, v in extra.items() if f"extra_body.{k}" not in dropped}
    return left


def _number(most: int) -> FieldReader:
    def read_number(value: Any) -> float:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not math.isfinite(value) or not 0 <= value <= most:
            raise ValueError(f"must be a number from 0 to {most}")
        return float(value)

    return FieldReader(read_number, {"type": "number", "minimum": 0, "maximum": most})


def _one_of(choices: Collection[str]) -> FieldReader:
    def read_choice(value: Any) -> str:
        if not isinstance(value, str) or value not in choices:
            raise ValueError(f"must be one of {', '.join(choices)}")
        return value

    return FieldReader(read_choice, {"type": "string", "enum": [*choices]})


def _seed(value: Any) -> int:
    if type(value) is not int or not -(2**63) <= value < 2**63:
        raise ValueError("must be an integer of 64 bits")
    return value


def _stop(value: Any) -> list[str]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not 1 <= len(texts) <= MAX_STOPS:
        raise ValueError(f"must be a string or a list of 1 to {MAX_STOPS} strings")
    for text in texts:
        if not isinstance(text, str) or not 1 <= len(text) <= MAX_STOP_CHARACTERS:
            raise ValueError(f"must be of 1 to {MAX_STOP_CHARACTERS} characters each")
        if clean(text) != text:
            raise ValueError("must not contain NUL or lone surrogates")
    return list(texts)


def _tool_choice(value: Any) -> str | dict[str, str]:
    if isinstance(value, str) and value in TOOL_CHOICES:
        return value
    if isinstance(value, dict) and set(value) == {"name"}:
        name = value["name"]
        if isinstance(name, str) and _TOOL_NAME.fullmatch(name):
            return {"name": name}
    raise ValueError(f'must be one of {", ".join(TOOL_CHOICES)}, or {{"name": "<tool>"}}')


def _extra_body(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
        raise ValueError("must be an object")
    own = sorted(value.keys() & (RESERVED | _SETTINGS.keys()))
    if own:
        raise ValueError(f"must not contain {', '.join(own)}: the service sets these itself")
    if is_too_deep(value, MAX_EXTRA_DEPTH):
        raise ValueError(f"must not be nested deeper than {MAX_EXTRA_DEPTH} levels")
    try:
        text = json.dumps(value, allow_nan=False, ensure_ascii=False)
        size = len(text.encode())
    except (TypeError, ValueError):
        raise ValueError("must be JSON: finite numbers, valid text") from None
    if size > MAX_EXTRA_BYTES or clean(text) != text or "\\u0000" in text:
        raise ValueError(f"must have at most {MAX_EXTRA_BYTES} bytes as JSON, and no NUL")
    return value


_STOP = {"type": "string", "minLength": 1, "maxLength": MAX_STOP_CHARACTERS}
_CHOICE = {"type": "string", "enum": [*TOOL_CHOICES]}
_CHOSEN_TOOL = {
    "type": "object",
    "properties": {"name": {"type": "string", "pattern": f"^{_TOOL_NAME.pattern}$"}},
    "required": ["name"],
    "additionalProperties": False,
}
_SETTINGS: Mapping[str, FieldReader] = {
    "temperature": _number(2),
    "top_p": _number(1),
    "seed": FieldReader(_seed, {"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1}),
    "stop": FieldReader(
        _stop, {"anyOf": [_STOP, {"type": "array", "items": _STOP, "maxItems": MAX_STOPS}]}
    ),
    "tool_choice": FieldReader(_tool_choice, {"anyOf": [_CHOICE, _CHOSEN_TOOL]}),
    "parallel_tool_calls": FLAG,
    "reasoning_effort": _one_of(EFFORTS),
    "verbosity": _one_of(VERBOSITIES),
    "extra_body": FieldReader(_extra_body, {"type": "object"}),
}
#: Every setting.
NAMES = frozenset(_SETTINGS)
FIELD = FieldReader(
    read, object_of({name: setting.json_schema for name, setting in _SETTINGS.items()})
)
