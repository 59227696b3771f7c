"""The contents of items of an input: of messages, and of what has a line of a transcript."""

from collections.abc import Mapping, Sequence
from typing import Any

from marshmallow import ValidationError

from arkloop.api.http.content import MAX_PARTS, MAX_URL_CHARACTERS, MessageContent, reasons
from arkloop.api.protocols.empty_texts import without_empty_texts
from arkloop.shared.errors import InvalidRequest
from arkloop.shared.threads.content import Content, Part

_CONTENT = MessageContent()


def text_of(name: str, content: Any) -> str:
    """Read a content that is nothing but text."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else [None]
    texts = [_text_part(part) for part in parts]
    if None in texts:
        raise InvalidRequest(**{name: ["must be a string or a list of texts"]})
    return "\n".join(text for text in texts if text is not None)


def line_of(name: str, content: Any) -> str:
    """Read a content of which a transcript or a result has the text, with a note for each file."""
    if isinstance(content, list):
        content = [_noted(part) for part in content]
    return text_of(name, content)


def _noted(part: Any) -> Any:
    match part:
        case {"type": "refusal", "refusal": str(text)}:
            return {"type": "text", "text": text}
        case {"type": "input_image" | "input_file"}:
            kind = part["type"].removeprefix("input_")
            names = (part.get(field) for field in ("file_id", "image_url", "file_url", "filename"))
            shown = (name for name in names if is_name(name))
            return {"type": "text", "text": f"[{kind}: {next(shown, 'without a name')}]"}
    return part


def is_name(value: Any) -> bool:
    """Return whether a value may be the name in a note: it is short, and no data."""
    is_short = isinstance(value, str) and len(value) <= MAX_URL_CHARACTERS
    return is_short and value[:5] != "data:"


def _text_part(part: Any) -> str | None:
    match part:
        case {"type": "input_text" | "output_text" | "text", "text": str(text)}:
            return text
    return None


def message_content(name: str, content: Any) -> Content:
    """Read the content of a message of the user, with any number of parts.

    Only the last message may not have more than others of a thread: clients keep one that was
    refused, and send it in front of each further one.

    Raises: InvalidRequest
    """
    given, pieces = content, [content]
    if isinstance(content, list):
        said = without_empty_texts(content, "input_text")
        given = [_part(f"{name}[{place}]", part) for place, part in said]
        places = range(0, max(len(given), 1), MAX_PARTS)
        pieces = [given[place : place + MAX_PARTS] for place in places]
    try:
        for piece in pieces:
            _CONTENT.deserialize(piece)
    except ValidationError as error:
        raise InvalidRequest(**{name: reasons(error)}) from None
    return Content.of(given)


def earlier_content(name: str, content: Any) -> Content | None:
    """Read the content of a message in front of the last one, None if it is empty.

    Such a message was refused as the last one, perhaps for a part, which has a note in its place.

    Raises: InvalidRequest
    """
    if isinstance(content, list):
        said = (part for _, part in without_empty_texts(content, "input_text"))
        content = [_accepted(part) for part in said]
    return None if content in (None, "", []) else message_content(name, content)


def _accepted(part: Any) -> Any:
    """Return a part that a message may have, with a note in place of one that is refused."""
    match part:
        case {"type": "input_image" | "input_file"}:
            try:
                _CONTENT.deserialize([_part("", part)])
            except (InvalidRequest, ValidationError):
                return {**_noted(part), "type": "input_text"}
        case {"type": str(kind)} if kind != "input_text" and is_name(kind):
            return {"type": "input_text", "text": _text_part(part) or f"[{kind}]"}
    return part


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


def with_attached(message: Content, attached: Sequence[Part]) -> Content:
    """Return the message with files of those before it, which the model has to see with it."""
    own = message.parts or [{"type": "text", "text": message.text}]
    files: list[Part] = []
    for part in attached:
        if part not in own and part not in files:
            files.append(part)
        if len(files) > MAX_PARTS:  # a request may have tens of thousands
            break
    if not files and len(own) <= MAX_PARTS:
        return message
    try:
        whole: Content = _CONTENT.deserialize([*files, *own])
        return whole
    except ValidationError as error:
        raise InvalidRequest(input=reasons(error)) from None
