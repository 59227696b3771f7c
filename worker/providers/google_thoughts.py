"""The thinking of Gemini and Gemma in the content of chat completions.

Google flags it: `{"content": "<thought>Plan", "extra_content": {"google": {"thought": true}}}`. The
end tag stands in front of the answer, whose chunks have no flag, or at the end of the thinking. The
answer may also begin behind it, in a flagged chunk.
"""

from collections.abc import Mapping
from typing import Any

_BEGIN, _END = "<thought>", "</thought>"


class Thoughts:
    """The thinking in one response, which is separated from the answer without its tags."""

    def __init__(self) -> None:
        self._is_flagged = False  # the last content was
        self._held: list[str] = []  # from the last end tag on: thinking if another one follows

    def split(self, delta: Mapping[str, Any]) -> tuple[str, Any]:
        """Return the thinking in a piece's content, and the rest of the content."""
        content = delta.get("content")
        if not isinstance(content, str) or not content:
            return "", content
        text, was_flagged = content.lstrip(), self._is_flagged
        self._is_flagged = _is_flagged(delta)
        if not self._is_flagged:
            if was_flagged and text.startswith(_END):
                return self._release(), text.removeprefix(_END)
            return "", self.rest() + content
        answer = ""
        if text.startswith(_BEGIN):
            answer, content = self.rest(), text.removeprefix(_BEGIN)
        thinking, end, behind = content.rpartition(_END)
        if end:
            thinking = self._release() + thinking
            self._held = [end, behind]
            return thinking, answer
        if self._held:
            self._held.append(content)
            return "", answer
        return content, answer

    def rest(self) -> str:
        """Return what stands behind the last end tag: as no other one follows, it is the answer."""
        text = self._release().removeprefix(_END)
        return text if text.strip() else ""

    def _release(self) -> str:
        held, self._held = "".join(self._held), []
        return held


def _is_flagged(delta: Mapping[str, Any]) -> bool:
    extra = delta.get("extra_content")
    google = extra.get("google") if isinstance(extra, Mapping) else None
    return isinstance(google, Mapping) and google.get("thought") is True
