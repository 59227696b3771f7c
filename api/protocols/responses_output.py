"""The output of a response while it is streamed: its items, and the frames that say so."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from arkloop.api.protocols.projection import arguments_text
from arkloop.api.protocols.responses_object import Object

SERVER_LABEL = "arkloop"
_JSON = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))


@dataclass(slots=True)
class Call:
    """A tool call whose result is missing; `seq` is that of its `tool.call`.

    `edited` are arguments that a person has given it in place of its own.
    """

    seq: int
    name: str
    proposed: Any
    edited: Any = None
    is_with_client: bool = False

    @property
    def arguments(self) -> Any:
        return self.proposed if self.edited is None else self.edited


@dataclass(slots=True)
class _Item:
    """An output item while it is streamed; `text` is what has been streamed of it."""

    index: int
    item: Object
    text: list[str] = field(default_factory=list)


class ResponseOutput:
    """The items of a response; its methods return the frames of what they change."""

    def __init__(self, run_id: UUID) -> None:
        self._run_id = run_id
        self._sequence = 0
        self._items: dict[int, Object] = {}
        self._indices = 0
        self._message: _Item | None = None
        self._reasoning: _Item | None = None
        self._turn: list[int] = []  # indices of the items of the model turn that is not finished
        self._tools: dict[str, _Item] = {}

    def items(self) -> list[Object]:
        """Return the items that count so far, in order."""
        return [self._items[index] for index in sorted(self._items)]

    def frame(self, kind: str, **data: Any) -> bytes:
        sequence, self._sequence = self._sequence, self._sequence + 1
        text = _JSON.encode({"type": kind, "sequence_number": sequence, **data})
        return f"event: {kind}\ndata: {text}\n\n".encode()

    # ---- a model turn ----

    def text(self, seq: int, text: str) -> Iterator[bytes]:
        yield from self._close_reasoning()
        if self._message is None:
            item = {"type": "message", "status": "in_progress", "role": "assistant", "content": []}
            self._message, frame = self._open("msg", seq, item)
            self._turn.append(self._message.index)
            yield frame
            part = {"part": _part("")}
            yield self._of("response.content_part.added", self._message, content_index=0, **part)
        self._message.text.append(text)
        yield self._of(
            "response.output_text.delta", self._message, content_index=0, delta=text, logprobs=[]
        )

    def _close_message(self, status: str = "completed") -> Iterator[bytes]:
        message, self._message = self._message, None
        if message is None:
            return
        text = "".join(message.text)
        part = _part(text)
        message.item |= {"status": status, "content": [part]}
        at = {"content_index": 0}
        yield self._of("response.output_text.done", message, text=text, logprobs=[], **at)
        yield self._of("response.content_part.done", message, part=part, **at)
        yield self._done(message)

    def think(self, seq: int, text: str) -> Iterator[bytes]:
        if self._reasoning is None:
            item = {"type": "reasoning", "status": "in_progress", "summary": []}
            self._reasoning, frame = self._open("rs", seq, item)
            self._turn.append(self._reasoning.index)
            yield frame
            part = {"type": "summary_text", "text": ""}
            kind = "response.reasoning_summary_part.added"
            yield self._of(kind, self._reasoning, summary_index=0, part=part)
        self._reasoning.text.append(text)
        kind = "response.reasoning_summary_text.delta"
        yield self._of(kind, self._reasoning, summary_index=0, delta=text)

    def _close_reasoning(self, status: str = "completed") -> Iterator[bytes]:
        reasoning, self._reasoning = self._reasoning, None
        if reasoning is None:
            return
        text = "".join(reasoning.text)
        part = {"type": "summary_text", "text": text}
        reasoning.item |= {"status": status, "summary": [part]}
        kind = "response.reasoning_summary_text.done"
        yield self._of(kind, reasoning, summary_index=0, text=text)
        kind = "response.reasoning_summary_part.done"
        yield self._of(kind, reasoning, summary_index=0, part=part)
        yield self._done(reasoning)

    def void(self) -> Iterator[bytes]:
        """End what is open of the turn without its content, and take all of the turn back.

        The protocol cannot take text back: an item that is void is incomplete and empty in the end,
        and missing in the output.
        """
        for item in (self._reasoning, self._message):
            if item is not None:
                item.item["status"] = "incomplete"
                yield self._done(item)
        self._reasoning = self._message = None
        for index in self._turn:
            del self._items[index]
        self._turn.clear()

    def finish_turn(self, seq: int, data: Mapping[str, Any]) -> Iterator[bytes]:
        text: str = data["content"]
        if data.get("output_errors"):
            yield from self.void()
            return
        if self._message is not None and "".join(self._message.text) != text:
            yield from self.void()
        yield from self._close_reasoning()
        if text and self._message is None:
            yield from self.text(seq, text)
        yield from self._close_message()
        self._turn.clear()

    # ---- tools of the server ----

    def open_tool(self, call_id: str, call: Call, seq: int) -> Iterator[bytes]:
        text = arguments_text(call.arguments)
        item = {
            "type": "mcp_call",
            "status": "in_progress",
            "server_label": SERVER_LABEL,
            "name": call.name,
            "arguments": "",
            "output": None,
            "error": None,
        }
        tool, frame = self._open("mcp", seq, item)
        self._tools[call_id] = tool
        yield frame
        yield self._of("response.mcp_call.in_progress", tool)
        yield self._of("response.mcp_call_arguments.delta", tool, delta=text)
        yield self._of("response.mcp_call_arguments.done", tool, arguments=text)
        tool.item["arguments"] = text

    def close_tool(self, call: Call, seq: int, data: Mapping[str, Any]) -> Iterator[bytes]:
        """End a call by the `data` of its `tool.result`."""
        call_id = data["tool_call_id"]
        if call_id not in self._tools:
            yield from self.open_tool(call_id, call, seq)
        tool = self._tools.pop(call_id)
        if data["is_error"]:
            content = [{"type": "text", "text": data["output"]}]
            error = {"type": "mcp_tool_execution_error", "content": content}
            tool.item |= {"status": "failed", "error": error}
            yield self._of("response.mcp_call.failed", tool)
        else:
            tool.item |= {"status": "completed", "output": data["output"]}
            yield self._of("response.mcp_call.completed", tool)
        yield self._done(tool)

    def suspend_tools(self) -> Iterator[bytes]:
        """End the items of calls that go on in the next response, which has them instead."""
        for tool in self._tools.values():
            tool.item["status"] = "incomplete"
            yield self._done(tool)
            del self._items[tool.index]
        self._tools.clear()

    # ---- what the client is asked for ----

    def function_call(
        self, seq: int | str, call_id: str, call: Mapping[str, Any]
    ) -> Iterator[bytes]:
        text = arguments_text(call["arguments"])
        item = {
            "type": "function_call",
            "status": "in_progress",
            "call_id": call_id,
            "name": call["name"],
            "arguments": "",
        }
        function, frame = self._open("fc", seq, item)
        yield frame
        yield self._of("response.function_call_arguments.delta", function, delta=text)
        done = {"name": call["name"], "arguments": text}
        yield self._of("response.function_call_arguments.done", function, **done)
        function.item |= {"status": "completed", "arguments": text}
        yield self._done(function)

    def approval(self, seq: int, call: Call) -> Iterator[bytes]:
        item = {
            "type": "mcp_approval_request",
            "server_label": SERVER_LABEL,
            "name": call.name,
            "arguments": arguments_text(call.arguments),
        }
        request, frame = self._open("mcpr", seq, item)
        yield frame
        yield self._done(request)

    def question(self, seq: int, text: str) -> Iterator[bytes]:
        yield from self.text(seq, text)
        yield from self.close_turn()

    # ---- the end ----

    def close_turn(self, status: str = "completed") -> Iterator[bytes]:
        """End the text and the reasoning that are open."""
        yield from self._close_reasoning(status)
        yield from self._close_message(status)

    def interrupt(self) -> Iterator[bytes]:
        """End what is still open when the run ends."""
        yield from self.close_turn("incomplete")
        for tool in self._tools.values():
            tool.item["status"] = "incomplete"
            yield self._done(tool)
        self._tools.clear()

    # ---- frames ----

    def _open(self, prefix: str, seq: int | str, item: Object) -> tuple[_Item, bytes]:
        """Add an item to the output; returns it, and the frame that says so."""
        item = {"id": f"{prefix}_{self._run_id.hex}_{seq}", **item}
        opened = _Item(self._indices, item)
        self._items[opened.index] = item
        self._indices += 1
        at = {"output_index": opened.index}
        return opened, self.frame("response.output_item.added", **at, item=item)

    def _done(self, item: _Item) -> bytes:
        at = {"output_index": item.index}
        return self.frame("response.output_item.done", **at, item=item.item)

    def _of(self, kind: str, item: _Item, **data: Any) -> bytes:
        at = {"item_id": item.item["id"], "output_index": item.index}
        return self.frame(kind, **at, **data)


def _part(text: str) -> Object:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
