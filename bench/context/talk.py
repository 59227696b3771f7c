"""A thread in memory, and a vendor that counts tokens and has a prompt cache."""

import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import takewhile
from typing import Any, Protocol

from arkloop.shared.catalog.model_routes import Route
from arkloop.shared.catalog.personas import Persona
from arkloop.shared.catalog.prices import Prices
from arkloop.shared.events.types import ContextCompacted
from arkloop.shared.events.usage import Usage
from arkloop.worker.agent import loop
from arkloop.worker.agent.agent import Agent
from arkloop.worker.agent.conversation import Counted, Entry, History, Turn, counted_of, entries_of
from arkloop.worker.agent.route_chain import RouteChain
from arkloop.worker.contract.messages import (
    AssistantMessage,
    Chunk,
    Message,
    ModelRequest,
    TextDelta,
    ToolCall,
    TurnEnd,
    UserMessage,
    state_text,
)
from arkloop.worker.contract.outcomes import ProviderError
from arkloop.worker.contract.stop_signal import StopSignal
from arkloop.worker.providers import Provider, size_errors, token_counts
from arkloop.worker.providers.output_modes import OutputMode
from arkloop.worker.tools import Tool
from tests.worker.recorded_run import RUN, RecordedRun

#: OpenAI caches prefixes of at least the first, in steps of the second number of tokens.
CACHED_FROM, CACHED_STEP = 1024, 128
_PROMPT = "You are a careful assistant who answers from what the tools return."


class CountedProvider(Provider, Protocol):
    """A provider that keeps the usage of its calls."""

    usages: list[Usage]


@dataclass
class Vendor:
    """A model of `context_tokens` that refuses more, by its own count, in OpenAI's words.

    `count` returns the tokens of a text; `answer` writes a turn. `requests` are those accepted.
    """

    context_tokens: int
    count: Callable[[str], int]
    answer: Callable[[ModelRequest], tuple[str, tuple[ToolCall, ...]]]
    requests: list[ModelRequest] = field(default_factory=list)
    usages: list[Usage] = field(default_factory=list)
    refused: int = 0

    @property
    def settings(self) -> Collection[str]:
        """The model settings that it supports: none."""
        return ()

    def output_mode(self, schema: Mapping[str, Any], *, has_tools: bool) -> OutputMode:
        return OutputMode.TOOL

    def stream(self, request: ModelRequest, stop: StopSignal) -> Iterator[Chunk]:
        sizes = self._sizes(request)
        if sum(sizes) + (request.max_output_tokens or 0) > self.context_tokens:
            self.refused += 1
            why = (
                f"This model's maximum context length is {self.context_tokens} tokens. However,"
                f" your messages resulted in {sum(sizes)} tokens."
            )
            raise ProviderError("invalid_request", why, too_large=size_errors.read(why, None))
        cached = max((self._shared(before, request) for before in self.requests[-2:]), default=0)
        text, calls = self.answer(request)
        self.requests.append(request)
        usage = Usage(
            input_tokens=sum(sizes),
            output_tokens=self.count(text) + sum(self.count(str(c.arguments)) for c in calls),
            cache_read_tokens=cached,
        )
        self.usages.append(usage)
        if text:
            yield TextDelta(text)
        yield TurnEnd("tool_calls" if calls else "stop", calls, usage)

    def estimate(self, request: ModelRequest, output: str) -> Usage:
        return token_counts.estimate(request, output)

    def worst_case(self, request: ModelRequest) -> Usage:
        return token_counts.worst_case(request)

    def close(self) -> None:
        pass

    def shared_parts(self) -> list[float]:
        """Return the part of each request's predecessor with which it begins, by tokens."""
        pairs = zip(self.requests, self.requests[1:], strict=False)
        return [self._shared(one, two, exactly=True) / sum(self._sizes(one)) for one, two in pairs]

    def _shared(self, before: ModelRequest, request: ModelRequest, *, exactly: bool = False) -> int:
        """Count the tokens with which both requests begin, as far as a vendor caches them."""
        if (before.system_prompt, before.tools) != (request.system_prompt, request.tools):
            return 0
        pairs = zip(self._texts(before), self._texts(request), strict=False)
        same = takewhile(lambda pair: pair[0] == pair[1], pairs)
        tokens = sum(self.count(one) for one, _ in same)
        if exactly:
            return tokens
        return tokens // CACHED_STEP * CACHED_STEP if tokens >= CACHED_FROM else 0

    def _sizes(self, request: ModelRequest) -> list[int]:
        return [self.count(text) for text in self._texts(request)]

    def _texts(self, request: ModelRequest) -> list[str]:
        tools = [f"{tool.name} {tool.description} {tool.parameters}" for tool in request.tools]
        return [request.system_prompt, *tools, *map(_text, request.messages)]


def _text(message: Message) -> str:
    calls = getattr(message, "tool_calls", ())
    written = "".join(f"{call.name} {call.arguments}" for call in calls)
    state = state_text(message.state) if isinstance(message, AssistantMessage) else ""
    return message.content + written + state


@dataclass
class Talk:
    """A thread whose runs are executed in this process, without any store."""

    vendor: CountedProvider
    tools: dict[str, Tool] = field(default_factory=dict)
    persona: Persona = field(
        default_factory=lambda: Persona(key="talk", version="1", system_prompt=_PROMPT)
    )
    context_tokens: int | None = None  # what the route says; None: nobody knows
    entries: list[Entry] = field(default_factory=list)
    contexts: dict[int, ContextCompacted] = field(default_factory=dict)
    counted: Counted | None = None
    truncations: int = 0

    def ask(self, question: str) -> str:
        """Add a question, and let a run answer it."""
        position = self.entries[-1].position + 1 if self.entries else 1
        self.entries.append(Entry(position, 1, [UserMessage(question)]))
        route = Route(id="vendor", provider="openai", model="m", context_tokens=self.context_tokens)

        def learned(_route: Route, tokens: int) -> None:
            self.context_tokens = tokens

        agent = Agent(
            identity=RUN,
            persona=self.persona,
            chain=RouteChain([route], lambda _route: self.vendor, learned=learned),
            tools=self.tools,
            history=History(list(self.entries), dict(self.contexts), counted=self.counted),
            position=position + 1,
            draining=threading.Event(),
        )
        turns: list[Turn] = []
        run = RecordedRun()
        answer = loop.run(agent, run, run.stop, turns)
        self.contexts |= run.contexts
        self.truncations += sum(isinstance(event, ContextCompacted) for event in run.events)
        turns.append(Turn(answer.message_id, answer.content, seq=len(run.events) + 1))
        turns[-1].input_tokens = self.vendor.usages[-1].input_tokens
        self.entries += entries_of(position + 1, turns)
        self.counted = counted_of(position + 1, turns, ("vendor", "m"))
        return answer.content


def cost(usages: Sequence[Usage], prices: Prices) -> Decimal:
    """Compute the USD of all these calls."""
    return sum((prices.cost(usage) for usage in usages), Decimal(0))
