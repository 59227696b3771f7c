"""The turns of a run, folded from its events: what those who follow its stream have assembled.

The fold is pure and takes the events in their order. Of a finished turn it needs no
`message.delta` and no `tool.call.delta`: `message.completed` and `tool.call` have all of it, so
that who reads from Postgres may leave those out (`SUPERFLUOUS_TYPES`).
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from json.encoder import encode_basestring_ascii
from typing import Any

from arkloop.shared.events import types
from arkloop.shared.events.stored_events import StoredEvent

#: Types whose events say nothing more once their turn is finished.
SUPERFLUOUS_TYPES = (types.MessageDelta.type, types.ToolCallDelta.type)
#: What a tool has returned, beside its name and the call's id.
_RESULT = ("output", "is_error", "duration_ms", "files", "characters")
_PROGRESS = ("progress", "total", "message")
_SUB_RUN = ("run_id", "thread_id", "persona_id")


@dataclass(frozen=True, slots=True)
class _Piece:
    """Output of a turn that is not finished; `call` is `(tool_call_id, name)` for arguments."""

    seq: int
    type: str
    text: str
    call: tuple[str, str] = ("", "")


@dataclass(slots=True)
class Turn:
    """A model turn, with its calls and the questions that it led to."""

    message_id: str | None = None
    text: str = ""
    reasoning: str = ""
    usage: Any = None
    output_errors: Any = None
    calls: dict[str, dict[str, Any]] = field(default_factory=dict)
    questions: list[dict[str, Any]] = field(default_factory=list)
    pieces: list[_Piece] = field(default_factory=list)
    size: int = 0

    @property
    def is_closed(self) -> bool:
        """True if what is streamed next belongs to another turn."""
        return self.message_id is not None or bool(self.questions)

    def shown(self) -> dict[str, Any]:
        """Return the turn as JSON; `message_id` is None while it is not finished."""
        calls = [*self.calls.values(), *self._unfinished_calls()]
        turn = {
            "message_id": self.message_id,
            "reasoning": self.reasoning + self._joined(types.MessageThinking.type),
            "text": self.text + self._joined(types.MessageDelta.type),
            "tool_calls": calls,
            "questions": self.questions,
            "usage": self.usage,
        }
        if self.output_errors is not None:
            turn["output_errors"] = self.output_errors
        return turn

    def _joined(self, type_: str) -> str:
        return "".join(piece.text for piece in self.pieces if piece.type == type_)

    def _unfinished_calls(self) -> list[dict[str, Any]]:
        """Return the calls whose arguments the model is still writing."""
        written: dict[str, list[str]] = {}
        names: dict[str, str] = {}
        for piece in self.pieces:
            if piece.type == types.ToolCallDelta.type:
                id_, names[piece.call[0]] = piece.call
                written.setdefault(id_, []).append(piece.text)
        return [
            {"tool_call_id": id_, "name": names[id_], "arguments_text": "".join(texts)}
            for id_, texts in written.items()
        ]


class Turns:
    """The turns of one run up to the last event that was added.

    It keeps turns before number `before` (None: all), of these the last ones of together
    `most_bytes`, at least one; `first` is the number of the first that it has, from 0.
    """

    def __init__(self, *, before: int | None = None, most_bytes: float = float("inf")) -> None:
        self._before, self._most_bytes = before, most_bytes
        self._turns: list[Turn] = []
        self._calls: dict[str, dict[str, Any]] = {}
        self.first = 0
        #: Bytes of JSON of the turns, or more.
        self.size = 0
        #: The next turn would be number `before`: no event matters any more.
        self.is_full = before == 0

    def shown(self) -> list[dict[str, Any]]:
        return [turn.shown() for turn in self._turns]

    def add(self, event: StoredEvent) -> None:
        """Add the event that follows those before."""
        self.fold(event.seq, event.type, json.loads(event.payload)["data"], _size(event.payload))

    def fold(self, seq: int, type_: str, data: Mapping[str, Any], size: int = 0) -> None:
        """Add an event as it is on the wire; `size` are the bytes that it has in a response."""
        if self.is_full:
            return
        match type_:
            case "message.delta" | "message.thinking":
                self._stream(_Piece(seq, type_, data["content"]), size)
            case "tool.call.delta":
                call = data["tool_call_id"], data["name"]
                self._stream(_Piece(seq, type_, data["arguments_delta"], call), size)
            case "message.reset":
                self._reset(data["from_seq"])
            case "message.completed":
                self._complete(data, size)
            case "tool.call":
                self._call(data, size)
            case "tool.progress":
                self._change(data, size, progress=_fields(data, _PROGRESS))
            case "tool.result":
                self._change(data, size, result=_fields(data, _RESULT))
                self._calls.get(data["tool_call_id"], {}).pop("progress", None)
            case "run.delegated":
                self._change(data, size, sub_run=_fields(data, _SUB_RUN))
            case "run.waiting_for_input":
                self._ask(data, size)
            case "run.input_received":
                self._answer(data, size)

    def _last(self, size: int, *, is_open: bool = False) -> Turn | None:
        """Return the last turn, or a new one if there is none or an open one is needed."""
        if not self._turns or (is_open and self._turns[-1].is_closed):
            if self._before is not None and self.first + len(self._turns) >= self._before:
                self.is_full = True
                return None
            self._turns.append(Turn())
        turn = self._turns[-1]
        self._grow(turn, size)
        return turn

    def _grow(self, turn: Turn, size: int) -> None:
        turn.size += size
        self.size += size
        while len(self._turns) > 1 and self.size > self._most_bytes:
            gone = self._turns.pop(0)
            self.size -= gone.size
            self.first += 1
            for id_ in gone.calls:
                del self._calls[id_]

    def _stream(self, piece: _Piece, size: int) -> None:
        if (turn := self._last(size, is_open=True)) is not None:
            turn.pieces.append(piece)

    def _reset(self, from_seq: int) -> None:
        if not self._turns:
            return
        turn = self._turns[-1]
        turn.pieces = [piece for piece in turn.pieces if piece.seq < from_seq]
        if not (turn.pieces or turn.calls or turn.is_closed):
            self.size -= self._turns.pop().size

    def _complete(self, data: Mapping[str, Any], size: int) -> None:
        if (turn := self._last(size, is_open=True)) is None:
            return
        turn.reasoning = turn.shown()["reasoning"]
        turn.message_id, turn.text, turn.usage = (
            data["message_id"],
            data["content"],
            data.get("usage"),
        )
        turn.output_errors = data.get("output_errors")
        turn.pieces.clear()

    def _call(self, data: Mapping[str, Any], size: int) -> None:
        if (turn := self._last(size)) is None:
            return
        id_ = data["tool_call_id"]
        call = {**_fields(data, ("tool_call_id", "name", "arguments")), "result": None}
        turn.calls[id_] = self._calls[id_] = call

    def _change(self, data: Mapping[str, Any], size: int, **change: Any) -> None:
        """Change the call of the event, of whatever turn it is."""
        if (call := self._calls.get(data["tool_call_id"])) is not None:
            call.update(change)
            self._grow(self._turns[-1], size)

    def _ask(self, data: Mapping[str, Any], size: int) -> None:
        if (turn := self._last(size)) is not None:
            turn.questions.append({**data, "answer": None})

    def _answer(self, data: Mapping[str, Any], size: int) -> None:
        for turn in reversed(self._turns):
            for question in turn.questions:
                if question["request_id"] == data["request_id"]:
                    question["answer"] = data["content"]
                    self._grow(turn, size)
                    return


def _fields(data: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: data[name] for name in names if name in data}


def _size(payload: str) -> int:
    """Return the bytes of an event in a response, whose JSON is ASCII."""
    if payload.isascii():
        return len(payload)
    return len(encode_basestring_ascii(payload))


def still_open(stored: Iterable[StoredEvent]) -> list[StoredEvent]:
    """Return the events of these that belong to the model turn which is not finished."""
    found: list[StoredEvent] = []
    for event in stored:
        if event.type == types.MessageCompleted.type:
            found.clear()
        elif event.type == types.MessageReset.type:
            from_seq = json.loads(event.payload)["data"]["from_seq"]
            found = [one for one in found if one.seq < from_seq]
        elif event.type in types.STREAMED_TYPES:
            found.append(event)
    return found
