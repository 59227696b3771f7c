"""The `input` of a request for a response: what of it is new, and what it continues.

Clients either name the response that they continue, or send all items again with those of earlier
responses among them. The ids of these, or of their calls, name their run: what the server has
already is not taken from the client again, only what follows the last of them. A conversation
without such ids took place elsewhere: the model reads it, with its calls, as a transcript in front
of the new message, and nothing of it is a turn of its own.
"""

import json
from collections.abc import Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from arkloop.api.protocols import responses_ids
from arkloop.api.protocols.responses_content import (
    earlier_content,
    line_of,
    message_content,
    text_of,
    with_attached,
)
from arkloop.api.protocols.responses_ids import ItemId
from arkloop.shared.errors import InvalidRequest
from arkloop.shared.threads.content import Content, Part

MAX_ITEMS = 10_000
#: Why an input is refused that has none of these, or several.
ONE_OF = "must have one of a new message of the user, results of function calls and an approval"
_FOREIGN = "is not an item of this server's responses; name the last response instead"
_INSTRUCTING = ("system", "developer")
#: Items of earlier responses: what they say is known, or is not given to models again.
_CALLS = ("function_call", "mcp_call")
_ANSWERS = (*_CALLS, "mcp_approval_request")
#: Items that ask the client, and those that reply to them.
_ASKING = ("function_call", "mcp_approval_request")
_REPLIES = ("function_call_output", "mcp_approval_response")
#: Items of another service that say nothing to this one's model.
_UNSAID = ("reasoning", "mcp_list_tools")
_OUTPUT = ("reasoning", "function_call", "mcp_call", "mcp_approval_request", "item_reference")


@dataclass(frozen=True, slots=True)
class Approval:
    """A reply to a request for approval, whose item names the event `seq` that asks for it."""

    request_item: str
    approve: bool
    reason: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """The new part of an input.

    `continues` is the latest item of the run whose items come before it, if any. `instructions` are
    those in its items, by the places of these, such as `input[0]`. `message` is the user's last
    one, with the files of those before it, and `last` the same without these. `earlier` are the
    lines of what was said before it, and `shown` those of them that the model has to read: attached
    files say all of a message that is nothing else. `follows_message` is true if a message of the
    user is between `continues` and it, and `follows_reply` if results or an approval are, which are
    left out. `results` are outputs of function calls by their `call_id`, and `results_before` those
    between `continues` and the message, without an approval; with either are `earlier_results`,
    those among the latest items, whose calls may be of the same response or of one before it.
    """

    continues: ItemId | None = None
    follows_message: bool = False
    follows_reply: bool = False
    instructions: Mapping[str, str] = field(default_factory=dict)
    earlier: tuple[str, ...] = ()
    shown: tuple[str, ...] = ()
    message: Content | None = None
    last: Content | None = None
    results: Mapping[str, str]
    results_before: Mapping[str, str] = field(default_factory=dict)
    earlier_results: Mapping[str, str] = field(default_factory=dict)
    approval: Approval | None = None
    approval_before: Approval | None = None


def read(
    value: Any,
    *,
    own_calls: Set[str] = frozenset(),
    has_calls: bool = True,
    has_items: bool = True,
) -> Input:
    """Read an input.

    `own_calls` are those that the response which it continues has asked for: clients may send them
    again without the ids of their items. Without `has_calls`, calls that only their `call_id` names
    are none of the conversation; without `has_items` no item is, whatever its id.

    Raises:
        InvalidRequest: it is no input, or has what is not supported.
    """
    if isinstance(value, str):
        message = message_content("input", value)
        return Input(message=message, last=message, results={})
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_ITEMS:
        raise InvalidRequest(input=[f"must be a string or a list of 1 to {MAX_ITEMS} items"])
    for place, item in enumerate(value):
        if not isinstance(item, dict):
            raise InvalidRequest(**{f"input[{place}]": ["must be an object"]})
    first, continues = known(value, has_calls=has_calls) if has_items else (0, None)
    return _new(value, first, continues, own_calls)


def known(items: Any, *, has_calls: bool = True) -> tuple[int, ItemId | None]:
    """Return the number of items up to the last known one, and the id of its run's latest item.

    While no text has an id, other items count until something follows that names no run: many
    clients send the ids of reasoning and calls, and texts without theirs. These name none of the
    runs that are texts alone, so the model reads all of such a conversation as a transcript. A text
    between calls and the replies to them is of the same turn: some clients send it last.
    """
    continues: ItemId | None = None
    first = 0
    has_text_ids = False
    asked: tuple[int, ItemId | None] | None = None  # behind a turn that asks the client
    for place, item in enumerate(items if isinstance(items, list) else ()):
        if not isinstance(item, dict):
            continue
        if (found := id_of_output(item, has_calls=has_calls)) is not None:
            if continues is not None and continues.run_id == found.run_id:
                # A function call comes last among the items, and its event may be an earlier one.
                found = max(continues, found)
            continues, first = found, place + 1
            has_text_ids = has_text_ids or _is_text(item)
            asked = (first, continues) if item.get("type") in _ASKING else None
        elif not has_text_ids and _is_answer(item):
            is_text = item.get("role") == "assistant"
            asked = (place + 1, asked[1]) if asked is not None and is_text else None
            continues, first = None, 0
        else:
            if asked is not None and item.get("type") in _REPLIES:
                first, continues = asked
            asked = None
    return first, continues


def _is_text(item: Mapping[str, Any]) -> bool:
    """Return whether an item of an earlier response is a text of it, or refers to one."""
    return item.get("role") == "assistant" or (
        item.get("type") == "item_reference" and item["id"].startswith("msg_")
    )


def _is_answer(item: Mapping[str, Any]) -> bool:
    return item.get("role") == "assistant" or item.get("type") in _ANSWERS


def id_of_output(item: Mapping[str, Any], *, has_calls: bool = True) -> ItemId | None:
    """Return the id of an item of an earlier response, None for other items."""
    if item.get("role") != "assistant" and item.get("type") not in _OUTPUT:
        return None
    found = responses_ids.parse_item(item.get("id"))
    if found is None and has_calls and item.get("type") == "function_call":
        found = responses_ids.parse_item(item.get("call_id"))
    return found


class _Transcript:
    """Lines of a conversation that took place elsewhere, or of what precedes the last message."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.attached = set[int]()  # those that nothing but files of the last message say
        self.last_call: str | None = None  # the name of its item in the input
        self._lines_of_calls: dict[str, int] = {}
        self._requests = set[str]()

    def add_call(self, name: str, item: Mapping[str, Any]) -> None:
        """Add a call, with its output if the item has it."""
        texts = [item.get(field) for field in ("name", "arguments")]
        if not all(isinstance(text, str) for text in texts):
            raise InvalidRequest(**{name: ["must have a name and arguments, which are strings"]})
        self.last_call = name
        if isinstance(call_id := item.get("call_id"), str):
            self._lines_of_calls[call_id] = len(self.lines)
        self.lines.append("Called {}({})".format(*texts))
        if item.get("output") is not None:
            self.lines[-1] += f": {line_of(f'{name}.output', item['output'])}"
        if (error := item.get("error")) is not None:
            self.lines[-1] += f": error: {error if isinstance(error, str) else json.dumps(error)}"

    def add_request(self, name: str, item: Mapping[str, Any]) -> None:
        """Note a request for approval, of which the call says all that the model has to know."""
        self.last_call = name
        if isinstance(request_id := item.get("id"), str):
            self._requests.add(request_id)

    def has_request(self, item: Mapping[str, Any]) -> bool:
        """Return whether the item is the reply to one of these requests."""
        request_id = item.get("approval_request_id")
        return isinstance(request_id, str) and request_id in self._requests

    def add_output(self, name: str, item: Mapping[str, Any]) -> bool:
        """Add the output of one of these calls; returns whether it is that."""
        call_id = item.get("call_id")
        line = self._lines_of_calls.pop(call_id, None) if isinstance(call_id, str) else None
        if line is not None:
            self.lines[line] += f": {line_of(f'{name}.output', item.get('output'))}"
        return line is not None

    def shown(self) -> tuple[str, ...]:
        """Return the lines without those that are files of the last message."""
        return tuple(line for at, line in enumerate(self.lines) if at not in self.attached)


def _new(
    items: Sequence[Mapping[str, Any]],
    first: int,
    continues: ItemId | None,
    own_calls: Set[str],
) -> Input:
    instructions: dict[str, str] = {}
    earlier = _Transcript()
    message: Content | None = None
    attached: list[Part] = []
    results: dict[str, str] = {}
    before: dict[str, str] = {}
    approval: Approval | None = None
    approval_before: Approval | None = None
    follows_reply = False
    last = max((place for place, item in enumerate(items) if item.get("role") == "user"), default=0)
    for place, item in enumerate(items):
        name = f"input[{place}]"
        kind, role = item.get("type", "message"), item.get("role")
        if kind == "message" and role in _INSTRUCTING:
            if text := text_of(f"{name}.content", item.get("content")):
                instructions[name] = text
        elif place < first or (kind == "function_call" and _is_one_of(item, own_calls)):
            continue
        elif kind == "message" and role == "user":
            read_content = message_content if place == last else earlier_content
            said = read_content(f"{name}.content", item.get("content"))
            if said is None:
                continue
            if message is not None:
                files = [part for part in message.parts or () if part["type"] != "text"]
                if len(files) == len(message.parts or (None,)):
                    earlier.attached.add(len(earlier.lines))
                earlier.lines.append(user_line(message.text))
                attached += files
            is_known = continues is not None or results.keys() <= own_calls
            if (results and is_known) or (approval is not None and continues is not None):
                before = {} if approval is not None else results
                approval_before = approval
                results, approval, follows_reply = {}, None, True
            message = said
        elif kind == "function_call_output" and earlier.add_output(name, item):
            continue
        elif kind == "function_call_output":
            call_id = item.get("call_id")
            if not isinstance(call_id, str) or call_id in results:
                why = "must be a string that no other item has"
                raise InvalidRequest(**{f"{name}.call_id": [why]})
            results[call_id] = line_of(f"{name}.output", item.get("output"))
        elif kind == "mcp_approval_response" and earlier.has_request(item):
            continue
        elif kind == "mcp_approval_response":
            approval = _approval(name, item)
        elif continues is None and (
            kind in _ANSWERS or (kind == "message" and role == "assistant")
        ):
            if message is not None:
                earlier.lines.append(user_line(message.text))
                message, attached = None, []
                earlier.attached.clear()
            if kind in _CALLS:
                earlier.add_call(name, item)
            elif kind in _ANSWERS:
                earlier.add_request(name, item)
            else:
                text = line_of(f"{name}.content", item.get("content"))
                earlier.lines.append(f"Assistant: {text}")
        elif continues is None and kind in _UNSAID:
            continue
        elif (kind == "message" and role == "assistant") or kind in _OUTPUT:
            raise InvalidRequest(**{f"{name}.id": [_FOREIGN]})
        else:
            raise InvalidRequest(**{name: ["items of this type or role are not supported"]})
    if message is None and not results and approval is None and earlier.last_call is not None:
        raise InvalidRequest(**{f"{earlier.last_call}.id": [_FOREIGN]})
    if sum((message is not None, bool(results), approval is not None)) != 1:
        raise InvalidRequest(input=[ONE_OF])
    return Input(
        continues=continues,
        follows_message=continues is not None and bool(earlier.lines),
        follows_reply=follows_reply,
        instructions=instructions,
        earlier=tuple(earlier.lines),
        shown=earlier.shown(),
        message=message and with_attached(message, attached),
        last=message,
        results=results,
        results_before=before,
        earlier_results=_earlier_results(items[:first], continues) if results or before else {},
        approval=approval,
        approval_before=approval_before,
    )


def user_line(text: str) -> str:
    """Return the line of a transcript for a message of the user."""
    return f"User: {text}"


def _is_one_of(item: Mapping[str, Any], calls: Set[str]) -> bool:
    call_id = item.get("call_id")
    return isinstance(call_id, str) and call_id in calls


def _earlier_results(
    items: Sequence[Mapping[str, Any]], continues: ItemId | None
) -> dict[str, str]:
    """Return the outputs among the last of these items, which are of one run, up to a message.

    Clients may send each call with its output behind it, though a response has several calls.
    """
    found: dict[str, str] = {}
    for item in reversed(items):
        if item.get("type") == "function_call_output" and isinstance(item.get("call_id"), str):
            with suppress(InvalidRequest):  # what is not needed is not checked
                found.setdefault(item["call_id"], line_of("", item.get("output")))
            continue
        of_run = id_of_output(item)
        if of_run is None or continues is None or of_run.run_id != continues.run_id:
            break
        if item.get("role") == "assistant":
            break
    return found


def _approval(name: str, item: Mapping[str, Any]) -> Approval:
    request, approve, reason = (item.get(n) for n in ("approval_request_id", "approve", "reason"))
    if not isinstance(request, str):
        raise InvalidRequest(**{f"{name}.approval_request_id": ["must be a string"]})
    if not isinstance(approve, bool):
        raise InvalidRequest(**{f"{name}.approve": ["must be true or false"]})
    if reason is not None and not isinstance(reason, str):
        raise InvalidRequest(**{f"{name}.reason": ["must be a string"]})
    return Approval(request, approve, reason)
