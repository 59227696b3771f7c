"""The conversion of a server's response to a call into one text of bounded size, and images."""

import base64
import json
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
#: What the beginning of a file has in base64.
_HEAD_CHARACTERS = -(-media_types.HEAD_BYTES // 3) * 4


def reduce(result: dict[str, Any]) -> None:
    """Leave one text of a result's content, and images, for the SDK to validate and keep.

    The text is that of the parts, one after the other, those of embedded resources after a note
    with the address, and a note for each part that is not text; without any part the structured
    content as JSON. Of more than `MAX_TEXT_BYTES` the beginning is kept, and marked. The first
    `MAX_IMAGES` images of types that models accept are kept, too.
    """
    content = result.get("content")
    if not isinstance(content, list):
        return
    structured = result.pop("structuredContent", None)
    images: list[dict[str, str]] = []
    parts: list[str] = []
    left = MAX_TEXT_BYTES + 1  # a character has a byte at least: the rest is cut in any case
    for part in content:
        image = _image(part) if len(images) < MAX_IMAGES else None
        if image is not None:
            images.append(image)
        parts.append((f"[image {len(images)}]" if image is not None else _text(part))[:left])
        left -= len(parts[-1]) + 1
        if left <= 0:
            break
    text = "\n".join(parts)
    if not text and structured is not None:
        text = json.dumps(structured, ensure_ascii=False)[: MAX_TEXT_BYTES + 1]
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


def _short(text: str) -> str:
    return text if len(text) <= 200 else text[:200] + "…"
