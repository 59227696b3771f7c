"""A conversation that the thread lacks, as lines in front of the message that follows it.

They are part of the message, since its author vouches for no more of them than for their own words.
Each begins with who said it, and further lines of a text are indented: no text that was said
elsewhere, by a tool for example, can end the conversation and continue as the author's.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

Part = Mapping[str, Any]

#: The metadata of a message that was sent behind earlier lines: how many of them are in front of
#: it, and the SHA-256 of all. It is client data, so other messages may have it, too.
_COUNT, _DIGEST = "responses.earlier_lines", "responses.earlier_digest"
_BEGIN, _END = "<earlier_conversation>", "</earlier_conversation>"
_SHOWN = re.compile(rf"{_BEGIN}\n.*?\n{_END}\n(?:\n|\Z)", re.DOTALL)


def in_front_of(content: str | Sequence[Part], lines: Sequence[str]) -> str | Sequence[Part]:
    """Return the content with these lines in front of its first text, or as one more part."""
    if not lines:
        return content
    shown = "\n".join([_BEGIN, *map(_indented, lines), _END, ""])
    if isinstance(content, str):
        return f"{shown}\n{content}"
    parts = list(content)
    if (first := _first_text(parts)) is None:
        parts.insert(0, {"type": "text", "text": shown})
    else:
        parts[first] = {"type": "text", "text": f"{shown}\n{parts[first]['text']}"}
    return parts


def metadata_of(shown: Sequence[str], lines: Sequence[str]) -> dict[str, str]:
    """Return the metadata of a message that was sent behind `lines`, of which it has `shown`."""
    return {_COUNT: str(len(shown)), _DIGEST: digest(lines) or ""} if lines else {}


def digest(lines: Sequence[str]) -> str | None:
    return hashlib.sha256(json.dumps(lines).encode()).hexdigest() if lines else None


def digest_in(metadata: Mapping[str, str]) -> str | None:
    """Return the digest of the lines behind which a message was sent; None without any."""
    return metadata.get(_DIGEST)


def own_text(text: str, metadata: Mapping[str, str]) -> str:
    """Return the text of a message, which has no parts, without such lines."""
    return without(text) if metadata.get(_COUNT, "0") != "0" else text


def own_parts(parts: Sequence[Part], metadata: Mapping[str, str]) -> Sequence[Part]:
    """Return the parts of a message without such lines."""
    if (first := _first_text(parts)) is None:
        return parts
    text = own_text(parts[first]["text"], metadata)
    own = [{**parts[first], "text": text}] if text else []
    return [*parts[:first], *own, *parts[first + 1 :]]


def without(text: str) -> str:
    """Return a text without such lines at its beginning."""
    found = _SHOWN.match(text)
    return text[found.end() :] if found else text


def _first_text(parts: Sequence[Part]) -> int | None:
    return next((at for at, part in enumerate(parts) if part["type"] == "text"), None)


def _indented(line: str) -> str:
    return "\n  ".join(line.splitlines())
