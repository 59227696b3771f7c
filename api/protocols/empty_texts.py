"""Texts without a character, which clients add to the files of a message without words."""

from collections.abc import Sequence
from typing import Any


def without_empty_texts(parts: Sequence[Any], kind: str = "text") -> list[tuple[int, Any]]:
    """Return the parts of a message with their places, without empty texts of this type."""
    return [(place, part) for place, part in enumerate(parts) if not _is_empty(part, kind)]


def _is_empty(part: Any, kind: str) -> bool:
    match part:
        case {"type": own_kind, "text": ""}:
            return bool(own_kind == kind)
    return False
