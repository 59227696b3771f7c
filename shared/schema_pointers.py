"""References within a JSON Schema, and what they lead to."""

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

_INDEX = re.compile(r"0|[1-9][0-9]*")


def parts_of(reference: str) -> tuple[str, ...] | None:
    """Return the parts of a reference within the schema, None for one that leads elsewhere."""
    if reference == "#":
        return ()
    if not reference.startswith("#/"):
        return None
    parts = unquote(reference[2:]).split("/")
    return tuple(part.replace("~1", "/").replace("~0", "~") for part in parts)


def target_of(root: Mapping[str, Any], pointer: tuple[str, ...]) -> Any:
    """Return what is at a pointer, None if there is nothing."""
    target: Any = root
    for part in pointer:
        if isinstance(target, list) and not _INDEX.fullmatch(part):
            return None
        try:
            target = target[int(part) if isinstance(target, list) else part]
        except (LookupError, TypeError, ValueError):
            return None
    return target
