"""Tool calls that arrive in pieces, and how a conversation names calls to another server."""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from arkloop.shared.events.plain import clean, is_too_deep, plain
from arkloop.worker.contract.messages import (
    AssistantMessage,
    CallDelta,
    Message,
    ToolCall,
    ToolMessage,
)
from arkloop.worker.contract.outcomes import ProviderError
from arkloop.worker.providers.output_modes import FINAL_TOOL

#: Far beyond what any model writes; a server that never stops must not fill the memory.
MAX_ARGUMENTS_CHARACTERS = 4 * 1024 * 1024
MAX_CALLS = 1024
MAX_NAME_CHARACTERS = 4096  # of a call's id, and of its name

_NOT_PORTABLE = re.compile(r"[^A-Za-z0-9_-]")
_MAX_ID_LENGTH = 40
_MAX_NAME_LENGTH = 64


@dataclass(slots=True)
class _Call:
    position: int
    id: str = ""
    name: str = ""
    text: str = ""  # its arguments
    state: Any = None


class PartialCalls:
    """The calls of one turn, in the order in which they begin."""

    def __init__(self, turn: int) -> None:
        self._turn = turn
        self._calls: list[_Call] = []
        self._open: dict[int, _Call] = {}  # the last call at each place
        self._length = 0
        self._last = -1

    def add(
        self,
        place: int | None,
        call_id: str | None,
        name: str | None,
        arguments: str | None,
        state: Any = None,
    ) -> CallDelta:
        """Add one piece; returns it with what is known of its call.

        Servers that give calls no place, or all the same, begin each with its name or its id.
        `state` is what the vendor requires back with the call.
        """
        call_id, name = clean(call_id or ""), clean(name or "")
        if place is None:
            is_new = self._last < 0 or self._begins(call_id, name)
            place = self._last + 1 if is_new else self._last
        self._last = place
        call = self._open.get(place)
        if call is None or _begins_next(call, call_id, name, arguments or ""):
            call = self._open[place] = _Call(len(self._calls))
            self._calls.append(call)
        call.id = call_id or call.id
        # Some servers repeat it in each piece, or as far as they have it.
        call.name = name if name.startswith(call.name) else call.name + name
        call.text += arguments or ""
        if state is not None:
            call.state = state
        self._length += len(arguments or "")
        if (
            self._length > MAX_ARGUMENTS_CHARACTERS
            or len(self._calls) > MAX_CALLS
            or max(len(call.id), len(call.name)) > MAX_NAME_CHARACTERS
        ):
            raise ProviderError("malformed", "The model's tool calls are too long.")
        return CallDelta(clean(arguments or ""), call.position, call.id, call.name)

    def whole(self) -> tuple[ToolCall, ...]:
        """Return all calls, in order; they can be stored, and be sent on.

        Arguments that are no JSON, or nested too deep, stay the text they were.
        """
        return tuple(
            ToolCall(
                call.id or f"call_{self._turn + 1}_{number}",
                call.name,
                _arguments(call.text),
                # A whole output is read and kept as it is; for other calls it would be kept twice.
                clean(call.text) if call.name == FINAL_TOOL else "",
            )
            for number, call in enumerate(self._calls, 1)
        )

    def states(self) -> tuple[Any, ...]:
        """Return the vendor's state for each of the calls of `whole`; empty if none has any."""
        states = tuple(call.state for call in self._calls)
        return states if any(state is not None for state in states) else ()

    def _begins(self, call_id: str, name: str) -> bool:
        known = self._open[self._last]
        if call_id and known.id:
            return call_id != known.id
        return bool(name and known.name)


def _begins_next(known: _Call, call_id: str, name: str, arguments: str) -> bool:
    """Return whether a piece at a call's place belongs to the next call: Gemini's places are all 0.

    Other servers repeat id and name in each piece, or give each piece an id of its own: a call of
    the same name is the next one only if the last one's arguments are whole.
    """
    if not (name and known.name) or (call_id and call_id == known.id):
        return False
    if call_id and known.id:
        return name != known.name or _is_json(known.text)
    return (name != known.name or bool(arguments.strip())) and _is_json(known.text)


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
        if not is_too_deep(arguments):
            return plain(arguments)
    except (ValueError, RecursionError):
        pass
    return clean(text)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not valid JSON")


def portable_arguments(arguments: Any) -> dict[str, Any]:
    """Return the arguments as an object, which vendors and chat templates require.

    Arguments that were not an object failed the call; the model sees what it wrote.
    """
    return arguments if isinstance(arguments, dict) else {"not_an_object": arguments}


def with_ids(messages: Iterable[Message], id_of: Callable[[ToolCall], str]) -> Iterator[Message]:
    """Yield the messages with these ids of calls; a result has that of its call.

    `id_of` is called once for each call, in order: with what comes before alone, the beginning of
    each request is the same.
    """
    sent: dict[str, str] = {}
    for message in messages:
        match message:
            case AssistantMessage(tool_calls=calls) if calls:
                named = tuple(replace(call, id=id_of(call)) for call in calls)
                sent.update((call.id, other.id) for call, other in zip(calls, named, strict=True))
                yield replace(message, tool_calls=named)
            case ToolMessage(tool_call_id=call_id):
                yield replace(message, tool_call_id=sent.get(call_id) or portable_id(call_id))
            case _:
                yield message


def portable_id(call_id: str) -> str:
    """Return an id that every vendor accepts: another server may have made the call."""
    if len(call_id) <= _MAX_ID_LENGTH and call_id and not _NOT_PORTABLE.search(call_id):
        return call_id
    return "call_" + hashlib.sha256(call_id.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def portable_name(name: str) -> str:
    """Return a tool name that every vendor accepts: a model may have made it up."""
    return _NOT_PORTABLE.sub("_", name)[:_MAX_NAME_LENGTH] or "_"
