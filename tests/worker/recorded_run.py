"""An attempt of a run without any store: what the loop requests is kept in lists."""

import base64
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from decimal import Decimal
from typing import Any

from arkloop.shared.catalog.model_routes import Route
from arkloop.shared.catalog.prices import Prices
from arkloop.shared.events import types
from arkloop.shared.events.types import ContextCompacted, Event, RouteCost, ToolResult
from arkloop.shared.events.usage import Usage
from arkloop.shared.runs.states import ResultSource
from arkloop.shared.runs.transitions import Totals
from arkloop.worker.agent.conversation import Entry, History
from arkloop.worker.agent.route_chain import RouteChain
from arkloop.worker.contract.attachments import Attachment
from arkloop.worker.contract.context import Plan
from arkloop.worker.contract.identity import RunIdentity
from arkloop.worker.contract.input_requests import InputRequest
from arkloop.worker.contract.messages import (
    Message,
    ModelRequest,
    Steered,
    ToolMessage,
    UserMessage,
)
from arkloop.worker.contract.retry_deadline import RetryDeadline
from arkloop.worker.contract.stop_signal import StopSignal
from arkloop.worker.providers import Provider


class RecordedRun:
    """A `RunContext`; `begun` are tool calls that an earlier attempt began."""

    def __init__(self, attempt: int = 1, begun: Iterable[str] = ()) -> None:
        self.attempt = attempt
        self.stop = StopSignal()
        self.events: list[Event] = []
        self.streamed: list[str] = []
        self.thoughts: list[str] = []
        self.prompts: list[tuple[str, ModelRequest, bytes]] = []
        self.arguments: list[tuple[str, str, str]] = []  # (id, name, piece)
        self.voided: list[str] = []
        self.paused: list[float] = []
        self.shared_pauses: list[bool] = []
        self.is_limited = False
        self.reserved: list[tuple[str, Usage]] = []
        self.settled = 0
        self.exhausted = 0
        self.admitted: list[tuple[str, int]] = []
        self.told_others: list[float] = []
        self.backed_off: list[float] = []
        self.checkpoints = 0
        self.done: list[ToolResult] = []
        self.expected: list[str] = []
        self.whole_outputs: dict[str, str] = {}
        self.required: dict[str, InputRequest] = {}
        self.contexts: dict[int, ContextCompacted] = {}
        self.totals = Totals()
        self.last_usage = Usage()
        self.contents: dict[str, bytes] = {}
        self._begun = set(begun)
        self.is_resumed = attempt > 1

    def check(self) -> None:
        self.stop.check()

    def wait(self, seconds: float) -> None:
        """Wait without passing any time."""
        self.paused.append(seconds)
        self.stop.check()

    def aborting(self, abort: Callable[[], None]) -> AbstractContextManager[None]:
        return self.stop.aborting(abort)

    def stream_text(self, text: str) -> None:
        self.streamed.append(text)

    def stream_thinking(self, text: str) -> None:
        self.thoughts.append(text)

    def stream_arguments(self, tool_call_id: str, name: str, text: str) -> None:
        self.arguments.append((tool_call_id, name, text))

    def keep_prompt(self, route: Route, request: ModelRequest, body: bytes) -> None:
        self.prompts.append((route.id, request, body))

    @property
    def open_text(self) -> str:
        return "".join(self.streamed)

    def void_text(self, reason: str, *then: Event) -> None:
        self.voided.append(reason)
        self.events.extend(then)

    def emit(self, *happened: Event) -> int:
        self.events.extend(happened)
        return len(self.events) - len(happened) + 1

    def note(self, *events: Event) -> int:
        return self.emit(*events)

    def compact(self, to: ContextCompacted, *happened: Event) -> None:
        self.emit(*happened, to)
        self.contexts[to.window_tokens] = to

    def checkpoint(self) -> None:
        self.checkpoints += 1

    def take_messages(self, steered: list[Steered], among: Collection[str] | None = None) -> None:
        pass

    def offered_messages(self, steered: Sequence[Steered]) -> Sequence[types.RunSteered]:
        return ()

    def begin_tool_call(self, tool_call_id: str, result_from: ResultSource | None = None) -> bool:
        return tool_call_id not in self._begun

    def expect_result(self, tool_call_id: str) -> None:
        self.expected.append(tool_call_id)

    def require_input(self, tool_call_id: str, request: InputRequest) -> None:
        self.required[tool_call_id] = request

    def continue_tool_call(self, tool_call_id: str) -> bool:
        return self.required.pop(tool_call_id, None) is not None

    def end_tool_call(self, result: ToolResult, whole_output: str | None = None) -> ToolResult:
        self.done.append(result)
        if whole_output is not None:
            self.whole_outputs[result.tool_call_id] = whole_output
        return result

    def stored_result(self, result_id: str) -> str | None:
        event = self.events[int(result_id.partition(".")[2]) - 1]
        if not isinstance(event, ToolResult):
            return None
        return self.whole_outputs.get(event.tool_call_id, event.output)

    @contextmanager
    def loaded(self, attachments: Sequence[Attachment]) -> Iterator[Mapping[str, bytes]]:
        """Return what `contents` has of them."""
        wanted = {attachment.file_id for attachment in attachments}
        yield {name: content for name, content in self.contents.items() if name in wanted}

    def keep(self, images: Sequence[str]) -> list[dict[str, Any]]:
        """Keep the images in `contents`, but for empty ones."""
        kept = []
        for image in filter(None, images):
            file_id, content = f"file-{len(self.contents) + 1}", base64.b64decode(image)
            self.contents[file_id] = content
            facts = {"name": "image-1", "media_type": "image/png", "size": len(content)}
            kept.append({"file_id": file_id, **facts})
        return kept

    @property
    def files(self) -> "RecordedRun":
        return self

    def add_usage(self, route: Route, usage: Usage) -> Event:
        self.last_usage = usage
        self.totals = self.totals.plus(RouteCost(route.id, route.model, usage, route.cost(usage)))
        return self.cost()

    def cost(self) -> Event:
        return types.RunCost(self.totals.usage, self.totals.cost_usd, self.totals.routes)

    @property
    def admission(self) -> "RecordedRun":
        """The run itself: everything it is asked for is in one place."""
        return self

    def reserve(self, route: Route, worst_case: Usage, plan: Plan | None = None) -> None:
        self.reserved.append((route.id, worst_case))

    def note_exhausted(self) -> None:
        self.exhausted += 1

    def settle(self) -> None:
        self.settled += 1

    def admit(self, route: Route, tokens: int, deadline: RetryDeadline) -> None:
        self.admitted.append((route.id, tokens))

    def pause_route(self, route: Route, seconds: float, *, is_shared: bool) -> None:
        self.told_others.append(seconds)
        self.shared_pauses.append(is_shared)

    def back_off(self, route: Route, seconds: float, *, is_shared: bool) -> None:
        self.backed_off.append(seconds)
        self.shared_pauses.append(is_shared)
        self.wait(seconds)

    @property
    def usage(self) -> Usage:
        return self.totals.usage

    @property
    def cost_usd(self) -> Decimal:
        return self.totals.cost_usd


#: On whose behalf the tools are called.
RUN = RunIdentity(run_id="run", thread_id="thread", org_id="org", trace_id="5" * 32)
ROUTE = Route(
    id="scripted",
    provider="scripted",
    model="scripted-1",
    prices=Prices(input=Decimal(1), output=Decimal(2)),
)


def chain_of(*providers: Provider) -> RouteChain:
    """Make a route for each provider: `scripted`, then `scripted-2` and so on."""
    routes = [
        replace(ROUTE, id=ROUTE.id if i == 1 else f"{ROUTE.id}-{i}")
        for i in range(1, len(providers) + 1)
    ]
    of_route = dict(zip((route.id for route in routes), providers, strict=True))
    return RouteChain(routes, lambda route: of_route[route.id])


def history_of(*messages: Message) -> History:
    """Build a thread in which each message is at a position of its own, with the results of its
    calls.
    """
    entries: list[list[Message]] = []
    for message in messages:
        if not isinstance(message, ToolMessage):
            entries.append([])
        entries[-1].append(message)
    return History([Entry(i, 1, entry) for i, entry in enumerate(entries, 1)])


def request(*messages: str | Message, **fields: object) -> ModelRequest:
    """Build a model call; plain text is the user's."""
    said = [UserMessage(m) if isinstance(m, str) else m for m in messages]
    values: dict[str, Any] = {"model": "scripted-1", "system_prompt": "", **fields}
    return ModelRequest(messages=said, **values)
