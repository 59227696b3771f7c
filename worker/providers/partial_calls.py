"""Tool calls that arrive in pieces, and how a conversation names calls to another server."""

import hashlib
import json
import re
from typing import Any

from shared.events import clean, plain
from worker.messages import ToolCall
from worker.outcomes import ProviderError

#: Far beyond what any model writes; a server that never stops must not fill the memory.
MAX_ARGUMENTS_CHARACTERS = 4 * 1024 * 1024
MAX_CALLS = 1024
MAX_NAME_CHARACTERS = 4096  # of a call's id, and of its name
#: As deep as a request to the API may be; Python cannot encode all that it can decode.
MAX_DEPTH = 64

_NOT_PORTABLE = re.compile(r"[^A-Za-z0-9_-]")
_MAX_ID_LENGTH = 40
_MAX_NAME_LENGTH = 64


class PartialCalls:
    """The calls of one turn, by their place in it."""

    def __init__(self, turn: int) -> None:
        self._turn = turn
        self._calls: list[tuple[int, list[str]]] = []
        self._open: dict[int, list[str]] = {}  # the last call at each place
        self._length = 0
        self._last = -1

    def add(
        self, place: int | None, call_id: str | None, name: str | None, arguments: str | None
    ) -> None:
        """One piece. Servers that give calls no place, or all the same, begin each with its name
        or its id.
        """
        call_id, name = clean(call_id or ""), clean(name or "")
        if place is None:
            is_new = self._last < 0 or self._begins(call_id, name)
            place = self._last + 1 if is_new else self._last
        self._last = place
        parts = self._open.get(place)
        if parts is None or _begins_next(parts, call_id, name, arguments or ""):
            parts = self._open[place] = ["", "", ""]
            self._calls.append((place, parts))
        parts[0] = call_id or parts[0]
        if name and name != parts[1]:  # some servers repeat it in each piece
            parts[1] += name
        parts[2] += arguments or ""
        self._length += len(arguments or "")
        if (
            self._length > MAX_ARGUMENTS_CHARACTERS
            or len(self._calls) > MAX_CALLS
            or max(len(parts[0]), len(parts[1])) > MAX_NAME_CHARACTERS
        ):
            raise ProviderError("malformed", "The model's tool calls got too long.")

    def whole(self) -> tuple[ToolCall, ...]:
        """All of them, in order; they can be stored, and be sent on.

        Arguments that are no JSON, or nested deeper than `MAX_DEPTH`, stay the text they were.
        """
        return tuple(
            ToolCall(call_id or f"call_{self._turn + 1}_{number}", name, _arguments(text))
            for number, (_, (call_id, name, text)) in enumerate(
                sorted(self._calls, key=lambda call: call[0]), 1
            )
        )

    def _begins(self, call_id: str, name: str) -> bool:
        known_id, known_name, _ = self._open[self._last]
        if call_id and known_id:
            return call_id != known_id
        return bool(name and known_name)


def _begins_next(parts: list[str], call_id: str, name: str, arguments: str) -> bool:
    """Whether a piece at the place of a call belongs to the next one: Gemini's places are all 0.

    Other servers repeat id and name in each piece, or give each piece an id of its own.
    """
    known_id, known_name, text = parts
    if not (name and known_name) or (call_id and call_id == known_id):
        return False
    if call_id and known_id:
        return name != known_name or not text or _is_json(text)
    return (name != known_name or bool(arguments.strip())) and _is_json(text)


def _is_json(text: str) -> bool:
    if not text.rstrip().endswith("}"):
        return False
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _arguments(text: str) -> Any:
    try:
        arguments = json.loads(text or "{}", parse_constant=_refuse)
        if _depth(arguments) <= MAX_DEPTH:
            return plain(arguments)
    except (ValueError, RecursionError):
        pass
    return clean(text)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def _depth(value: Any) -> int:
    if not isinstance(value, dict | list):
        return 0
    return 1 + max(map(_depth, value.values() if isinstance(value, dict) else value), default=0)


def portable_id(call_id: str) -> str:
    """An id that every vendor takes: another server may have made the call."""
    if len(call_id) <= _MAX_ID_LENGTH and call_id and not _NOT_PORTABLE.search(call_id):
        return call_id
    return "call_" + hashlib.sha256(call_id.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def portable_name(name: str) -> str:
    """A tool's name that every vendor takes: a model may have made it up."""
    return _NOT_PORTABLE.sub("_", name)[:_MAX_NAME_LENGTH] or "_"
