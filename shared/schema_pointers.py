"""References within a JSON Schema, and what they lead to."""

import re
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import unquote

_INDEX = re.compile(r"0|[1-9][0-9]*")


def refers_alone(root: Mapping[str, Any]) -> bool:
    """Return whether keywords beside a `$ref` mean nothing, as in drafts before 2019-09."""
    return "draft-0" in str(root.get("$schema"))


def parts_of(reference: str, root: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Return the parts of a reference within the schema, None for one that leads elsewhere.

    It may begin with the schema's own `$id`, of which the fragment is no part: it is an anchor, or
    in a part of a larger schema, the place of that.
    """
    own = root.get("$id")
    if isinstance(own, str):
        if reference == own and not own.partition("#")[2].startswith("/"):
            return ()
        reference = reference.removeprefix(own.partition("#")[0])
    if reference in ("", "#"):
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


def pointer_to(root: Mapping[str, Any], path: Iterable[str | int]) -> str:
    """Return the JSON Pointer (RFC 6901) of a path, as far as there is something in `root`.

    The path may be one of the schema without references: what one leads to then stands in the place
    of the reference and of all beside it, in newer drafts behind the schema's own `allOf`. A
    `oneOf` may have become an `anyOf` there. The pointer is that of where it is written.
    """
    is_alone = refers_alone(root)
    place: Any = root
    found: tuple[str, ...] = ()
    pointer = found
    rest = [*path]
    most = len(rest)  # references without a part of the path between them, which may be a circle
    while rest:
        referred = _referred(place, root)
        if referred is not None and is_alone:
            if rest[0] in place or not most:  # the path may also be one of what stands beside it
                break
            most -= 1
            pointer, place = referred, target_of(root, referred)
            continue
        if referred is not None and rest[:2] == ["allOf", _length(place.get("allOf"))]:
            found = pointer = referred
            place, rest = target_of(root, referred), rest[2:]
            continue
        match rest:
            case ["allOf", int(n), "anyOf", *below] if _was_one_of(n, place):
                rest = ["oneOf", *below]
        try:
            place = place[rest[0]]
        except (LookupError, TypeError):
            break
        found = pointer = (*pointer, str(rest.pop(0)))
    if rest and isinstance(place, list):  # one that was lengthened since
        found = found[:-1]
    return "".join("/" + part.replace("~", "~0").replace("/", "~1") for part in found)


def _referred(place: Any, root: Mapping[str, Any]) -> tuple[str, ...] | None:
    reference = place.get("$ref") if isinstance(place, Mapping) else None
    return parts_of(reference, root) if isinstance(reference, str) else None


def _was_one_of(member: int, place: Any) -> bool:
    """Return whether a member of `allOf` was added for the `oneOf` beside it."""
    is_one_of = isinstance(place, Mapping) and "oneOf" in place
    return is_one_of and member >= _length(place.get("allOf"))


def _length(of: Any) -> int:
    return len(of) if isinstance(of, list) else 0
