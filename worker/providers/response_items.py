"""The items of a response of OpenAI's Responses API, as they are streamed and at its end."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from arkloop.worker.contract.messages import CallDelta

CALL = "function_call"
#: Between the texts of two messages of one response.
GAP = "\n\n"
_NO_CALL = CallDelta("")


@dataclass(slots=True, eq=False)
class Item:
    """An item of the response: a message, reasoning, or a function call."""

    key: Any = None  # its number or its id in the events
    data: Mapping[str, Any] = field(default_factory=dict)
    kind: Any = None  # its type, as far as the events have shown it
    characters: int = 0  # of text or reasoning that were streamed
    gap: int = 0  # of these characters, those that separate the text from another message's
    said: list[str] = field(default_factory=list)  # the text that was streamed, without the gap
    pieces: dict[Any, list[str]] = field(default_factory=dict)  # of the text, by part
    arguments: list[str] = field(default_factory=list)
    call: CallDelta = _NO_CALL  # the beginning of a function call
    is_done: bool = False

    @property
    def is_empty(self) -> bool:
        return self.kind != CALL and not self.characters


class _Signs:
    """The signs by which an item is found in another place."""

    def __init__(self, kind: Any, data: Mapping[str, Any], key: Any, arguments: Any) -> None:
        self.kind, self.name = kind, data.get("name")
        self.arguments, self.is_whole = _canonical(arguments)
        ids = (data.get("id"), data.get("call_id")) if data else (key, key)
        whole = (self.name, self.arguments) if self.arguments else None
        #: The surest first; None: it does not have this one.
        self.all = (ids[0] or None, whole, ids[1] or None, key, ())

    def may_be(self, final: "_Signs") -> bool:
        """Return whether it can be this one, whatever their ids: whole arguments do not change."""
        if self.name and final.name and self.name != final.name:
            return False
        if not (self.is_whole and self.arguments and final.arguments):
            return True
        return self.arguments == final.arguments


def final_answer(items: Sequence[Item]) -> str:
    """Return the text of the messages that are marked as the final answer."""
    return "".join("".join(one.said) for one in items if one.data.get("phase") == "final_answer")


def has_arguments(arguments: Any) -> bool:
    """Return whether arguments are there: servers fill in `{}` for those that they leave out."""
    return _canonical(arguments)[0] not in ("", "{}")


def find(items: Sequence[Item], output: Sequence[Mapping[str, Any]]) -> list[Item | None]:
    """Find the item of each part of the final response, as far as it was streamed.

    Gateways leave items out there, so that others have new places, or give them new ids: an item
    without a known id is the next of its type, and a call the one with its arguments.
    """
    found: list[Item | None] = [None] * len(output)
    left = {item: _of_streamed(item) for item in items}
    finals = [
        _Signs(data.get("type"), data, place, data.get("arguments"))
        for place, data in enumerate(output)
    ]
    for number in range(5):
        alike = defaultdict(list)
        for item, signs in left.items():
            alike[signs.kind, signs.all[number]].append(item)
        for place, final in enumerate(finals):
            sign = final.all[number]
            if found[place] is None and sign is not None:
                for item in alike[final.kind, sign]:
                    if item in left and left[item].may_be(final):
                        found[place] = item
                        del left[item]
                        break
    return found


def _of_streamed(item: Item) -> _Signs:
    arguments = "".join(item.arguments) or (item.is_done and item.data.get("arguments"))
    signs = _Signs(item.kind, item.data, None if item.data else item.key, arguments)
    signs.is_whole = (item.is_done or signs.is_whole) and has_arguments(arguments)
    return signs


def _canonical(arguments: Any) -> tuple[str, bool]:
    """Return a text that is the same for the same arguments, and whether they are JSON."""
    try:
        return json.dumps(json.loads(arguments), sort_keys=True), True
    except (ValueError, TypeError, RecursionError):
        return str(arguments or ""), False
