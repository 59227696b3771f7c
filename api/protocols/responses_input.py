"""The `input` of a request for a response: what of it is new, and what it continues.

Clients either name the response that they continue, or send all items again with those of earlier
responses among them. The ids of these say which run they come from: what the server has already is
not taken from the client again, only what follows the last of them. A conversation without such ids
took place elsewhere: the model reads it as a transcript, and nothing of it is a turn of its own.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from marshmallow import ValidationError

from arkloop.api.http.content import MessageContent, reasons
from arkloop.api.protocols import responses_ids
from arkloop.api.protocols.responses_ids import ItemId
from arkloop.shared.errors import InvalidRequest
from arkloop.shared.threads.content import Content, Part

MAX_ITEMS = 10_000
#: In front of a conversation that took place elsewhere.
_TRANSCRIPT = "The conversation before the user's message:"
#: Why an input is refused that has none of these, or several.
ONE_OF = "must have either a new message of the user, results of function calls or an approval"
_CONTENT = MessageContent()
_INSTRUCTING = ("system", "developer")
#: Items of earlier responses: what they say is known, or is not given to models again.
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

    `continues` is the latest item of the run whose items come before it, if any. `message` is the
    user's last one, with the files of those before it; `follows_message` is true if one of those is
    between the two, and `follows_reply` if results or an approval are, which are left out.
    `results` are outputs of function calls by their `call_id`; with them are `earlier_results`,
    those among the latest items, whose calls may be of the same response or of one before it.
    """

    continues: ItemId | None = None
    follows_message: bool = False
    follows_reply: bool = False
    instructions: tuple[str, ...] = ()
    message: Content | None = None
    results: Mapping[str, str]
    earlier_results: Mapping[str, str] = field(default_factory=dict)
    approval: Approval | None = None


def read(value: Any) -> Input:
    """Read an input.

    Raises:
        InvalidRequest: it is no input, or has what is not supported.
    """
    if isinstance(value, str):
        return Input(message=_content("input", value), results={})
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_ITEMS:
        raise InvalidRequest(input=[f"must be a string or a list of 1 to {MAX_ITEMS} items"])
    continues: ItemId | None = None
    first = 0
    for place, item in enumerate(value):
        if not isinstance(item, dict):
            raise InvalidRequest(**{f"input[{place}]": ["must be an object"]})
        if (shown := id_of_output(item)) is not None:
            if continues is not None and continues.run_id == shown.run_id:
                # A function call comes last among the items, and its event may be an earlier one.
                shown = max(continues, shown)
            continues, first = shown, place + 1
    return _new(value, first, continues)


def id_of_output(item: Mapping[str, Any]) -> ItemId | None:
    """Return the id of an item of an earlier response, None for other items."""
    is_output = item.get("role") == "assistant" or item.get("type") in _OUTPUT
    return responses_ids.parse_item(item.get("id")) if is_output else None


def _new(items: Sequence[Mapping[str, Any]], first: int, continues: ItemId | None) -> Input:
    instructions: list[str] = []
    earlier: list[str] = []
    message: Content | None = None
    attached: list[Part] = []
    results: dict[str, str] = {}
    approval: Approval | None = None
    follows_reply = False
    for place, item in enumerate(items):
        name = f"input[{place}]"
        kind, role = item.get("type", "message"), item.get("role")
        if kind == "message" and role in _INSTRUCTING:
            instructions.append(_text(f"{name}.content", item.get("content")))
        elif place < first:
            continue
        elif kind == "message" and role == "user":
            if message is not None:
                earlier.append(f"User: {message.text}")
                attached += [part for part in message.parts or () if part["type"] != "text"]
            if continues is not None and (results or approval is not None):
                results, approval, follows_reply = {}, None, True
            message = _content(f"{name}.content", item.get("content"))
        elif kind == "function_call_output":
            call_id = item.get("call_id")
            if not isinstance(call_id, str) or call_id in results:
                why = "must be a string that no other item has"
                raise InvalidRequest(**{f"{name}.call_id": [why]})
            results[call_id] = _text(f"{name}.output", item.get("output"))
        elif kind == "mcp_approval_response":
            approval = _approval(name, item)
        elif kind == "message" and role == "assistant" and continues is None:
            if message is not None:
                earlier.append(f"User: {message.text}")
                message, attached = None, []
            earlier.append(f"Assistant: {_text(f'{name}.content', item.get('content'))}")
        elif (kind == "message" and role == "assistant") or kind in _OUTPUT:
            why = "is not an item of this server's responses; name the last response instead"
            raise InvalidRequest(**{f"{name}.id": [why]})
        else:
            raise InvalidRequest(**{name: ["items of this type or role are not supported"]})
    if sum((message is not None, bool(results), approval is not None)) != 1:
        raise InvalidRequest(input=[ONE_OF])
    if earlier:
        instructions.append("\n\n".join([_TRANSCRIPT, *earlier]))
    return Input(
        continues=continues,
        follows_message=continues is not None and bool(earlier),
        follows_reply=follows_reply,
        instructions=tuple(instructions),
        message=message and _with_attached(message, attached),
        results=results,
        earlier_results=_earlier_results(items[:first], continues) if results else {},
        approval=approval,
    )


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
                found.setdefault(item["call_id"], _text("", item.get("output")))
            continue
        of_run = id_of_output(item)
        if of_run is None or continues is None or of_run.run_id != continues.run_id:
            break
        if item.get("role") == "assistant":
            break
    return found


def _with_attached(message: Content, attached: Sequence[Part]) -> Content:
    """Return the message with files of those before it, which the model has to see with it."""
    own = message.parts or [{"type": "text", "text": message.text}]
    files = [part for place, part in enumerate(attached) if part not in [*own, *attached[:place]]]
    if not files:
        return message
    try:
        whole: Content = _CONTENT.deserialize([*files, *own])
        return whole
    except ValidationError as error:
        raise InvalidRequest(input=reasons(error)) from None


def _approval(name: str, item: Mapping[str, Any]) -> Approval:
    request, approve, reason = (item.get(n) for n in ("approval_request_id", "approve", "reason"))
    if not isinstance(request, str):
        raise InvalidRequest(**{f"{name}.approval_request_id": ["must be a string"]})
    if not isinstance(approve, bool):
        raise InvalidRequest(**{f"{name}.approve": ["must be true or false"]})
    if reason is not None and not isinstance(reason, str):
        raise InvalidRequest(**{f"{name}.reason": ["must be a string"]})
    return Approval(request, approve, reason)


def _text(name: str, content: Any) -> str:
    """Read a content that is nothing but text."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else [None]
    texts = [_text_part(part) for part in parts]
    if None in texts:
        raise InvalidRequest(**{name: ["must be a string or a list of texts"]})
    return "\n".join(text for text in texts if text is not None)


def _text_part(part: Any) -> str | None:
    match part:
        case {"type": "input_text" | "output_text" | "text", "text": str(text)}:
            return text
    return None


def _content(name: str, content: Any) -> Content:
    parts = content
    if isinstance(content, list):
        parts = [_part(f"{name}[{place}]", part) for place, part in enumerate(content)]
    try:
        read: Content = _CONTENT.deserialize(parts)
        return read
    except ValidationError as error:
        raise InvalidRequest(**{name: reasons(error)}) from None


def _part(name: str, part: Any) -> Mapping[str, Any]:
    match part:
        case {"type": "input_text", "text": str(text)}:
            return {"type": "text", "text": text}
        case {"type": "input_image" | "input_file", "file_id": str(file_id)}:
            return {"type": part["type"].removeprefix("input_"), "file_id": file_id}
        case {"type": "input_image", "image_url": str(url)} if not url.startswith("data:"):
            return {"type": "image", "url": url}
        case {"type": "input_file", "file_url": str(url)}:
            return {"type": "file", "url": url}
        case {"type": "input_image" | "input_file"}:
            raise InvalidRequest(**{name: ["must have a file_id, an https URL or data in base64"]})
    raise InvalidRequest(**{name: ["must be of type input_text, input_image or input_file"]})
