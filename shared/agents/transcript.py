"""The turns of a custom agent's run: which events follow from what the agent does.

A turn is text, or text with the calls that follow it, as one of the built-in loop: a call ends the
text before it, and calls up to the first result belong to one turn.
"""

import json
import re
import time
from collections.abc import Iterable, Sequence
from typing import Any

from arkloop.shared import ids
from arkloop.shared.agents.agent_run import UNKNOWN_OUTCOME, Call
from arkloop.shared.events import types
from arkloop.shared.events.plain import clean, is_too_deep
from arkloop.shared.events.types import Event, MessageCompleted
from arkloop.shared.events.usage import Usage

CALL_ID = re.compile("[!-~]{1,128}")
MAX_NAME_CHARACTERS = 128


class Transcript:
    """The calls of a run and its open turn; its methods return the events to be written."""

    def __init__(self, calls: Iterable[tuple[Call, str | None]] = ()) -> None:
        """Start with the calls of earlier executions, each with its output if it has one."""
        earlier = list(calls)
        self._calls = {call["id"]: call for call, _ in earlier}
        self._outputs = {call["id"]: output for call, output in earlier if output is not None}
        self._unsettled = [call for call, output in earlier if output is None]
        self._began: dict[str, float] = {}
        self._usage = Usage()
        self._takes_calls = False

    @property
    def pending(self) -> Sequence[Call]:
        """Calls of earlier executions whose outcome is not known."""
        return tuple(self._unsettled)

    def has_call(self, call_id: str) -> bool:
        return call_id in self._calls

    def is_lost(self, call_id: str) -> bool:
        """Return whether an earlier execution began the call, and its outcome is not known."""
        return any(call["id"] == call_id for call in self._unsettled)

    def output_of(self, call_id: str) -> str | None:
        """Return the output that is recorded for the call; None without one."""
        return self._outputs.get(call_id)

    def add_usage(self, usage: Usage) -> None:
        """Count a model call: the next turn has its usage."""
        self._usage += usage

    def turn(self, text: str) -> MessageCompleted:
        """Finish the turn whose text this is."""
        usage, self._usage, self._takes_calls = self._usage, Usage(), False
        return MessageCompleted(str(ids.new_id()), clean(text), usage)

    def begins_turn(self, text: str) -> bool:
        """Return whether a call after this text belongs to a new turn."""
        return bool(text) or not self._takes_calls

    def call(self, call: Call, text: str) -> list[Event]:
        """Begin a call after the open turn's text."""
        events: list[Event] = []
        if self.begins_turn(text):
            events.append(self.turn(text))
        self._takes_calls = True
        self._calls[call["id"]] = call
        self._began[call["id"]] = time.monotonic()
        return [*events, types.ToolCallRequested(call["id"], call["name"], call["arguments"])]

    def result(
        self, call_id: str, output: str, *, is_error: bool, characters: int | None = None
    ) -> list[Event]:
        """End a call; a second result of a call is dropped.

        `characters` is the length of the whole output if this is a part of it.

        Raises:
            ValueError: there is no such call.
        """
        if call_id not in self._calls:
            raise ValueError(f"There is no call {call_id!r}: tool_call comes first.")
        if call_id in self._outputs:
            return []
        self._outputs[call_id] = output
        self._takes_calls = False
        self._unsettled = [call for call in self._unsettled if call["id"] != call_id]
        began = self._began.pop(call_id, None)
        duration_ms = 0 if began is None else round((time.monotonic() - began) * 1000)
        name = self._calls[call_id]["name"]
        ended = types.ToolResult(call_id, name, output, is_error, duration_ms, None, characters)
        return [ended]

    def settle(self) -> list[Event]:
        """End the calls whose outcome is not known: a new turn begins."""
        return [
            event
            for call in self.pending
            for event in self.result(call["id"], UNKNOWN_OUTCOME, is_error=True)
        ]


def call_of(name: Any, arguments: Any, call_id: str | None) -> Call:
    """Check a call of an agent; without an id it gets one.

    Raises:
        ValueError
    """
    if not isinstance(name, str) or not 1 <= len(name) <= MAX_NAME_CHARACTERS:
        raise ValueError(f"The name of a tool has 1 to {MAX_NAME_CHARACTERS} characters.")
    if call_id is None:
        call_id = f"call_{ids.new_id().hex}"
    elif not isinstance(call_id, str) or not CALL_ID.fullmatch(call_id):
        raise ValueError("The id of a call has 1 to 128 printable ASCII characters.")
    return Call(id=call_id, name=clean(name), arguments=json.loads(json_of(arguments)))


def json_of(value: Any) -> str:
    """Return the value as JSON text. Raises: ValueError: it is not JSON, or nested too deep."""
    try:
        text = json.dumps(value, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"Not JSON: {error}") from None
    if is_too_deep(value):
        raise ValueError("Nested too deep.")
    return clean(text)
