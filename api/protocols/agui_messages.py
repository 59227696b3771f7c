"""The messages of a run as a client of AG-UI has assembled them, for snapshots of all messages."""

import json
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

Message = dict[str, Any]

#: Where most streams have nothing: a set of its own takes 216 bytes.
NO_IDS: frozenset[str] = frozenset()


class PackedMessages:
    """Messages of a client, compressed: a stream holds them for as long as it is open."""

    def __init__(self, messages: Sequence[Message] = ()) -> None:
        self._packed = zlib.compress(json.dumps(messages).encode(), 1) if messages else b""

    def unpacked(self) -> list[Message]:
        messages: list[Message] = json.loads(zlib.decompress(self._packed)) if self._packed else []
        return messages

    def without_results(self, call_ids: Collection[str]) -> "PackedMessages":
        """Return the same messages without the results of these calls."""
        return PackedMessages([m for m in self.unpacked() if m.get("toolCallId") not in call_ids])


class RunMessages:
    """The messages of one run, by their ids, in order."""

    def __init__(self) -> None:
        self._own: dict[str, Message] = {}
        self._void: frozenset[str] = NO_IDS
        self._proposed = "", ""  # a call that a person has edited, and its arguments before

    def text(self, message_id: str, text: str) -> None:
        """Set the text of a turn."""
        self._assistant(message_id)["content"] = text

    def reasoning(self, message_id: str, text: str) -> None:
        self._own[message_id] = {"id": message_id, "role": "reasoning", "content": text}
        self._void -= {message_id}

    def call(self, message_id: str, call_id: str, name: str, arguments: str) -> None:
        """Add a call to the message of its turn."""
        function = {"name": name, "arguments": arguments}
        calls = self._assistant(message_id).setdefault("toolCalls", [])
        calls.append({"id": call_id, "type": "function", "function": function})

    def calls_of(self, names: Collection[str]) -> Iterator[str]:
        """Yield the ids of the calls of these tools."""
        for message in self._own.values():
            for call in message.get("toolCalls", ()):
                if call["function"]["name"] in names:
                    yield call["id"]

    def name_of(self, call_id: str) -> str | None:
        """Return the name of the tool that a call is for; None of an unknown call."""
        return next((str(function["name"]) for function in self._functions(call_id)), None)

    def change_arguments(self, call_id: str, arguments: str) -> bool:
        """Set the arguments of a call; returns False if they are what it has, or it is unknown."""
        function = next(self._functions(call_id), None)
        if function is None or _parsed(function["arguments"]) == _parsed(arguments):
            return False
        function["arguments"] = arguments
        return True

    def edit(self, call_id: str, arguments: str) -> bool:
        """Set the arguments that a person gives a call; returns False if it has them already."""
        proposed = next(self._functions(call_id))["arguments"]
        changed = self.change_arguments(call_id, arguments)
        if changed:
            self._proposed = call_id, proposed
        return changed

    def propose_again(self, call_id: str) -> bool:
        """Set the arguments that a call had before `edit`; returns False if it has them."""
        edited_id, proposed = self._proposed
        return edited_id == call_id and self.change_arguments(call_id, proposed)

    def result(self, message_id: str, call_id: str, content: str) -> None:
        message = {"id": message_id, "role": "tool", "content": content, "toolCallId": call_id}
        self._own[message_id] = message

    def void(self, message_id: str) -> None:
        """Take a turn's message back."""
        self._own.pop(message_id, None)
        self._void |= {message_id}

    def after(self, earlier: Sequence[Message]) -> list[Message]:
        """Return these messages and then those of the run that are not among them."""
        shown = [self._own.get(m["id"], m) for m in earlier if m["id"] not in self._void]
        there = {m["id"] for m in shown}
        # The results that the client has sent are there under ids of its own.
        answered = {m.get("toolCallId") for m in shown if m["role"] == "tool"}
        shown += [
            message
            for id_, message in self._own.items()
            if id_ not in there and message.get("toolCallId", id_) not in answered
        ]
        return shown

    def _assistant(self, message_id: str) -> Message:
        self._void -= {message_id}
        return self._own.setdefault(message_id, {"id": message_id, "role": "assistant"})

    def _functions(self, call_id: str) -> Iterator[dict[str, Any]]:
        return (
            call["function"]
            for message in self._own.values()
            for call in message.get("toolCalls", ())
            if call["id"] == call_id
        )


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def usage_between(
    before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Return the usage of each model between two `run.cost` events, by their `routes`."""
    shown = []
    used_before = {(part["route_id"], part["model"]): part["usage"] for part in before}
    for part in after:
        earlier = used_before.get((part["route_id"], part["model"]), {})
        used = {
            name: part["usage"].get(field, 0) - earlier.get(field, 0)
            for name, field in _TOKENS.items()
        }
        if any(used.values()):
            total = used["input_tokens"] + used["output_tokens"]
            shown.append({"model": part["model"], **used, "total_tokens": total})
    return shown


_TOKENS = {
    "input_tokens": "input_tokens",
    "output_tokens": "output_tokens",
    "reasoning_tokens": "reasoning_tokens",
    "cached_input_tokens": "cache_read_tokens",
    "cache_write_input_tokens": "cache_write_tokens",
}
