"""The pieces of a model turn while it is streamed, for readers that can only void all of it."""

from collections.abc import Mapping
from typing import Any

_PIECES = ("message.thinking", "message.delta")


class OpenTurn:
    """The text and the reasoning that a run has streamed since its last finished turn."""

    __slots__ = ("_pieces",)

    def __init__(self) -> None:
        self._pieces: list[tuple[int, str, str]] = []

    def add(self, event: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        """Return the events to fold for the next one of the run.

        A reset may keep the beginning of the turn, which then comes once more, as if it had been
        streamed after the reset.
        """
        kind, seq, data = event["type"], event["seq"], event["data"]
        if kind in _PIECES:
            self._pieces.append((seq, kind, data["content"]))
        elif kind == "message.completed":
            self._pieces.clear()
        elif kind == "message.reset":
            self._pieces = [piece for piece in self._pieces if piece[0] < data["from_seq"]]
            return [event, *self._again(event)]
        return [event]

    def _again(self, event: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        texts = [(kind, "".join(p[2] for p in self._pieces if p[1] == kind)) for kind in _PIECES]
        return [{**event, "type": kind, "data": {"content": text}} for kind, text in texts if text]
