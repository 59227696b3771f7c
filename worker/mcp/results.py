"""The conversion of a server's response to a call into one text of bounded size, and images."""

import base64
import json
from collections.abc import Collection
from typing import Any

import mcp_types as types

from arkloop.shared.events.plain import clean
from arkloop.shared.files import media_types

_CUT = "\n[truncated: the response is larger than 1 MiB]"
#: The worker, which all orgs share, has a few copies of it, of up to four bytes a character.
MAX_TEXT_BYTES = 1024 * 1024 - len(_CUT)
#: Of what a server says of an error.
MAX_ERROR_CHARACTERS = 2000
#: Of one result.
MAX_IMAGES = 8
#: In structured content, in place of what a part has as well.
_REPEATED = "[omitted: the content has it]"
#: What the beginning of a file has in base64.
_HEAD_CHARACTERS = -(-media_types.HEAD_BYTES // 3) * 4


def reduce(result: dict[str, Any]) -> None:
    """Leave one text of a result's content, and images, for the SDK to validate and keep.

    The text is that of the parts, one after the other, those of embedded resources after a note
    with the address, and a note for each part that is not text. The structured content follows as
    JSON if no part is text, without what it repeats of the parts. Of more than `MAX_TEXT_BYTES` the
    beginning is kept, and marked. The first `MAX_IMAGES` images of types that models accept are
    kept, too, but none of an error.
    """
    content = result.get("content")
    if not isinstance(content, list):
        return
    structured = result.pop("structuredContent", None)
    images: list[dict[str, str]] = []
    parts: list[str] = []
    most_images = 0 if result.get("isError") else MAX_IMAGES  # a failure is text alone
    left = MAX_TEXT_BYTES + 1  # a character has a byte at least: the rest is cut in any case
    for part in content:
        image = _image(part) if len(images) < most_images else None
        if image is not None:
            images.append(image)
        parts.append((f"[image {len(images)}]" if image is not None else _text(part))[:left])
        left -= len(parts[-1]) + 1
        if left <= 0:
            break
    if structured is not None and not any(map(_is_text, content)):
        parts = [part for part in parts if part]
        if not parts or not _repeats(structured, content):
            new = _without_data(structured, {data for data in map(_data, content) if data})
            parts.append(json.dumps(new, ensure_ascii=False)[: MAX_TEXT_BYTES + 1])
    text = "\n".join(parts)
    text = cut(clean(text), MAX_TEXT_BYTES, _CUT)
    result["content"] = [{"type": "text", "text": text}, *images]


def text_of(result: types.CallToolResult) -> str:
    """Return the text that `reduce` has left."""
    return "".join(part.text for part in result.content if isinstance(part, types.TextContent))


def images_of(result: types.CallToolResult) -> list[str]:
    """Return the images that `reduce` has left, in base64."""
    return [part.data for part in result.content if isinstance(part, types.ImageContent)]


def _image(part: Any) -> dict[str, str] | None:
    """Return an image that a model would accept, by its content; None for every other part."""
    match part:
        case {"type": "image", "data": str(data)} | {
            "type": "resource",
            "resource": {"blob": str(data)},
        }:
            try:
                head = base64.b64decode(data[:_HEAD_CHARACTERS], validate=True)
            except ValueError:
                return None
            media_type = media_types.of_head(head)
            if media_type in media_types.IMAGES:
                return {"type": "image", "data": data, "mimeType": media_type}
    return None


def cut(text: str, most: int, mark: str) -> str:
    """Cut the text to at most `most` bytes, followed by the mark if it was longer."""
    data = text.encode()
    return text if len(data) <= most else data[:most].decode(errors="ignore") + mark


def _text(part: Any) -> str:
    match part:
        case {"type": "text", "text": str(text)}:
            return text
        case {"type": "image" | "audio" as kind, "data": str(data), "mimeType": str(mime_type)}:
            return f"[{kind} omitted: {_short(mime_type)}, about {len(data) * 3 // 4} bytes]"
        case {"type": "resource_link", "uri": str(uri)}:
            return f"[resource omitted: {_short(uri)}]"
        case {"type": "resource", "resource": {"uri": str(uri), "text": str(text)}}:
            return f"[resource: {_short(uri)}]\n{text}"
        case {"type": "resource", "resource": {"uri": str(uri)}}:
            return f"[resource omitted: {_short(uri)}]"
    return "[omitted: content of an unknown type]"


def _is_text(part: Any) -> bool:
    """Return whether a part has text of the server, and not only a note in its place."""
    match part:
        case {"type": "text", "text": str(text)} | {
            "type": "resource",
            "resource": {"uri": str(), "text": str(text)},
        }:
            return bool(text)
    return False


def _repeats(structured: Any, content: list[Any]) -> bool:
    """Return whether structured content is empty, or has the parts and nothing else.

    The official SDK for Python writes those of a function that returns parts in this way, with
    null for each field that they lack, and in one field if there may be several.
    """
    only = _without_nulls(structured)
    if isinstance(only, dict) and len(only) == 1:
        [only] = only.values()
    parts = only if isinstance(only, list) else [only]
    return not only or parts == _without_nulls(content)


def _without_nulls(value: Any) -> Any:
    match value:
        case dict():
            return {name: _without_nulls(of) for name, of in value.items() if of is not None}
        case list():
            return [_without_nulls(of) for of in value]
    return value


def _data(part: Any) -> str | None:
    match part:
        case {"data": str(data)} | {"resource": {"blob": str(data)}}:
            return data
    return None


def _without_data(value: Any, data: Collection[str]) -> Any:
    """Return a value with a note in place of each text, or `data:` address, with one of `data`."""
    match value:
        case dict():
            return {name: _without_data(of, data) for name, of in value.items()}
        case list():
            return [_without_data(of, data) for of in value]
        case str() if value.rpartition(",")[2] in data:
            return _REPEATED
    return value


def _short(text: str) -> str:
    return text if len(text) <= 200 else text[:200] + "…"
