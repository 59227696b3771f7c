"""Values as JSON and Postgres can hold them."""

import math
import re
from decimal import Decimal
from typing import Any

from arkloop.shared.events.usage import RARE_TOKEN_FIELDS
from arkloop.shared.json_text import MAX_DEPTH

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
#: Left out where there is none.
_NOT_SENT = frozenset({"type", "cache_write_1h_tokens", "speed"})
_OPTIONAL = frozenset(
    {
        *(
            "approved_by",
            "calls",
            "characters",
            "files",
            "http_tool",
            "identity",
            "mcp_tool",
            "message",
            "options",
            "output",
            "output_errors",
            "provider_state",
            "result_from",
            "result_tokens",
            "summary",
            "worker_tool",
        ),
        *("cancel_reason", "parts", "schema", "superseded_by", "tool_call_id", "total", "url"),
    }
    | RARE_TOKEN_FIELDS
)


def is_too_deep(value: Any, most: int = MAX_DEPTH) -> bool:
    """Return whether lists and objects are nested deeper than `most`."""
    if not isinstance(value, dict | list):
        return False
    inner = value.values() if isinstance(value, dict) else value
    return most == 0 or any(is_too_deep(item, most - 1) for item in inner)


def plain(value: Any) -> Any:
    """Convert to what JSON and Postgres can hold: clean text, finite numbers, dicts for events."""
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, Decimal):
        return money(value)
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {clean(str(name)): plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    names = getattr(value, "__dataclass_fields__", None)
    if names is None:
        return value
    fields = ((name, getattr(value, name)) for name in names if name not in _NOT_SENT)
    return {
        name: plain(item)
        for name, item in fields
        if name not in _OPTIONAL or (item is not None and item != 0)
    }


def is_sent(name: str) -> bool:
    """Return whether the data of an event can have a field of this name."""
    return name not in _NOT_SENT


def is_left_out(name: str) -> bool:
    """Return whether a field of this name is left out where it has no value."""
    return name in _OPTIONAL


def clean(text: str) -> str:
    """Replace what Postgres refuses in texts of models and tools: NUL and lone surrogates."""
    return _LONE_SURROGATE.sub("\ufffd", text.replace("\x00", "\ufffd"))


def money(amount: Decimal) -> float:
    """Convert to a JSON number with at most 8 decimals."""
    return float(round(amount, 8))
