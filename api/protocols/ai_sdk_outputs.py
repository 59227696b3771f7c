"""Outputs of a page's tools: JSON values there, and the texts that runs have of them."""

import json
import math
from typing import Any

from arkloop.shared.events.plain import is_too_deep

JSON = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))


def text_of(value: Any) -> str:
    """Return an output of the client as text, from which `value_of` restores it."""
    if isinstance(value, str) and value_of(value) == value:
        return value
    return JSON.encode(value)


def value_of(text: str) -> Any:
    """Return the JSON value that the text is, if it can be sent, else the text."""
    try:
        value = json.loads(text, parse_constant=_finite, parse_float=_finite)
        if is_too_deep(value):  # Python reads more levels than it writes
            return text
        if "\\u" in text:  # only an escape makes a lone surrogate
            JSON.encode(value).encode()
        return value
    except (ValueError, RecursionError):
        return text


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError
    return number
