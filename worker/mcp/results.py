"""What a server answers to a call, as one text of bounded size."""

import json
from typing import Any

import mcp_types as types

from shared.events import clean

MAX_TEXT_BYTES = 1024 * 1024
_CUT = "\n[cut: the answer is larger than 1 MiB]"


def text_of(result: types.CallToolResult) -> str:
    """The text parts, one after the other, with a note for each part that is not text.

    Without any part it is the structured content as JSON. Of more than
    `MAX_TEXT_BYTES` the beginning is kept, and marked.
    """
    text = "\n".join(map(_part, result.content))
    if not text and result.structured_content is not None:
        text = json.dumps(result.structured_content, ensure_ascii=False)
    return cut(clean(text), MAX_TEXT_BYTES, _CUT)


def cut(text: str, most: int, mark: str) -> str:
    """The text, or so many bytes of it with the mark behind."""
    data = text.encode()
    return text if len(data) <= most else data[:most].decode(errors="ignore") + mark


def _part(part: Any) -> str:
    match part:
        case types.TextContent():
            return part.text
        case types.ImageContent() | types.AudioContent():
            kind = part.type
            size = len(part.data) * 3 // 4
            return f"[{kind} left out: {_short(part.mime_type)}, about {size} bytes]"
        case types.ResourceLink():
            return f"[resource left out: {_short(str(part.uri))}]"
        case types.EmbeddedResource():
            return f"[resource left out: {_short(str(part.resource.uri))}]"
    return "[left out: content of an unknown type]"


def _short(text: str) -> str:
    return text if len(text) <= 200 else text[:200] + "…"
