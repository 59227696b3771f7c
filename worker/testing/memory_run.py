"""A run without any store: its events are numbered and encoded as clients get them, in a list."""

import base64
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

from arkloop.shared import times
from arkloop.shared.catalog.model_routes import Route
from arkloop.shared.events import types
from arkloop.shared.events.stored_events import encode
from arkloop.shared.events.types import ContextCompacted, Event, RouteCost, ToolResult
from arkloop.shared.events.usage import Usage
from arkloop.shared.runs.transitions import Totals
from arkloop.worker.contract.attachments import Attachment
from arkloop.worker.contract.context import Plan
from arkloop.worker.contract.input_requests import InputRequest
from arkloop.worker.contract.messages import Steered
from arkloop.worker.contract.retry_deadline import RetryDeadline
from arkloop.worker.contract.stop_signal import StopSignal


class MemoryRun:
    """A `RunContext` of one attempt, which no budget limits.

    `events` are those that `GET /v1/runs/{run_id}/events` would have; the text of a turn is one
    `message.delta`, so that the list is the same each time.
    """

    attempt = 1
    is_resumed = False
    is_limited = False

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.stop = StopSignal()
        self.totals = Totals()
        self.last_usage = Usage()
        self._streamed: list[tuple[Callable[[str], Event], str]] = []
        self._open_text = ""
        self._turn_begins = 1
        self._results: dict[str, str] = {}
        self._whole_outputs: dict[str, str] = {}
        self._files: dict[str, bytes] = {}

    # ---- what tools may use ----

    def check(self) -> None:
        self.stop.check()

    def wait(self, seconds: float) -> None:
        self.stop.wait(seconds)

    def aborting(self, abort: Callable[[], None]) -> AbstractContextManager[None]:
        return self.stop.aborting(abort)

    def stored_result(self, result_id: str) -> str | None:
        return self._results.get(result_id.partition(".")[2])

    # ---- the transcript ----

    def stream_text(self, text: str) -> None:
        self._open_text += text
        self._streamed.append((types.MessageDelta, text))

    def stream_thinking(self, text: str) -> None:
        self._streamed.append((types.MessageThinking, text))

    def stream_arguments(self, tool_call_id: str, name: str, text: str) -> None:
        self._streamed.append((partial(types.ToolCallDelta, tool_call_id, name), text))

    def keep_prompt(self, *_: object) -> None:
        pass

    @property
    def open_text(self) -> str:
        return self._open_text

    def void_text(self, reason: str, *then: Event) -> None:
        self._write_streamed()
        self.emit(types.MessageReset(self._turn_begins, reason), *then)

    def emit(self, *events: Event) -> int:
        seq = self.note(*events)
        self._open_text = ""
        self._turn_begins = len(self.events) + 1
        return seq

    def note(self, *events: Event) -> int:
        """Write events within the turn that is being streamed."""
        self._write_streamed()
        return self._write(*events)

    def checkpoint(self) -> None:
        pass

    def take_messages(self, steered: list[Steered], among: Collection[str] | None = None) -> None:
        pass

    def offered_messages(self, steered: Sequence[Steered]) -> Sequence[types.RunSteered]:
        return ()

    def _write_streamed(self) -> None:
        streamed, self._streamed = self._streamed, []
        while streamed:
            kind, texts = streamed[0][0], []
            while streamed and _is_same(streamed[0][0], kind):
                texts.append(streamed.pop(0)[1])
            self._write(kind("".join(texts)))

    def _write(self, *events: Event) -> int:
        first = len(self.events) + 1
        for event in events:
            seq = len(self.events) + 1
            self.events.append(json.loads(encode(seq, event, times.now()).payload))
            if isinstance(event, ToolResult):
                whole = self._whole_outputs.get(event.tool_call_id, event.output)
                self._results[str(seq)] = whole
        return first

    # ---- the ledger, the thread and the files ----

    def begin_tool_call(self, tool_call_id: str, *_: object) -> bool:
        return True

    def expect_result(self, tool_call_id: str) -> None:
        pass

    def require_input(self, tool_call_id: str, request: InputRequest) -> None:
        pass

    def continue_tool_call(self, tool_call_id: str) -> bool:
        return True

    def end_tool_call(self, result: ToolResult, whole_output: str | None = None) -> ToolResult:
        if whole_output is not None:
            self._whole_outputs[result.tool_call_id] = whole_output
        return result

    def compact(self, to: ContextCompacted, *events: Event) -> None:
        self.emit(*events, to)

    @property
    def files(self) -> "MemoryRun":
        """The run itself."""
        return self

    @contextmanager
    def loaded(self, attachments: Sequence[Attachment]) -> Iterator[Mapping[str, bytes]]:
        """Return those of the files that tools have returned."""
        wanted = {attachment.file_id for attachment in attachments}
        yield {name: content for name, content in self._files.items() if name in wanted}

    def keep(self, images: Sequence[str]) -> list[dict[str, Any]]:
        kept = []
        for image in images:
            file_id, content = f"file-{len(self._files) + 1}", base64.b64decode(image)
            self._files[file_id] = content
            facts = {"name": file_id, "media_type": "image/png", "size": len(content)}
            kept.append({"file_id": file_id, **facts})
        return kept

    # ---- admission ----

    @property
    def admission(self) -> "MemoryRun":
        """The run itself."""
        return self

    def cost(self) -> Event:
        return types.RunCost(self.totals.usage, self.totals.cost_usd, self.totals.routes)

    def admit(self, route: Route, tokens: int, deadline: RetryDeadline) -> None:
        pass

    def reserve(self, route: Route, worst_case: Usage, plan: Plan | None = None) -> None:
        pass

    def note_exhausted(self) -> None:
        pass

    def add_usage(self, route: Route, usage: Usage) -> Event:
        self.last_usage = usage
        self.totals = self.totals.plus(RouteCost(route.id, route.model, usage, route.cost(usage)))
        return self.cost()

    def settle(self) -> None:
        pass

    def pause_route(self, route: Route, seconds: float, *, is_shared: bool) -> None:
        pass

    def back_off(self, route: Route, seconds: float, *, is_shared: bool) -> None:
        """Continue at once: a test has no other runs that the pause is for."""


def _is_same(kind: Callable[[str], Event], other: Callable[[str], Event]) -> bool:
    if isinstance(kind, partial) and isinstance(other, partial):
        return kind.args == other.args
    return kind is other
