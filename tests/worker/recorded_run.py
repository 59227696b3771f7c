"""One attempt of a run without any store: what the loop asks of it is kept in lists."""

from collections.abc import Iterable
from decimal import Decimal

from shared import events
from shared.events import Event, ToolResult, Usage
from worker.messages import Message, ModelRequest, UserMessage
from worker.stop_signal import StopSignal


class RecordedRun:
    """A `RunContext`; `begun` are tool calls that an earlier attempt began."""

    def __init__(self, attempt: int = 1, begun: Iterable[str] = ()) -> None:
        self.attempt = attempt
        self.stop = StopSignal()
        self.events: list[Event] = []
        self.streamed: list[str] = []
        self.thoughts: list[str] = []
        self.voided: list[str] = []
        self.paused: list[float] = []
        self.checkpoints = 0
        self.done: list[ToolResult] = []
        self.usage = Usage()
        self.cost_usd = Decimal(0)
        self._begun = set(begun)

    def check(self) -> None:
        self.stop.check()

    def wait(self, seconds: float) -> None:
        """Time does not pass here."""
        self.paused.append(seconds)
        self.stop.check()

    def stream_text(self, text: str) -> None:
        self.streamed.append(text)

    def stream_thinking(self, text: str) -> None:
        self.thoughts.append(text)

    def void_text(self, reason: str) -> None:
        self.voided.append(reason)

    def emit(self, *happened: Event) -> None:
        self.events.extend(happened)

    def checkpoint(self) -> None:
        self.checkpoints += 1

    def begin_tool_call(self, tool_call_id: str) -> bool:
        is_new = tool_call_id not in self._begun
        self._begun.add(tool_call_id)
        return is_new

    def end_tool_call(self, result: ToolResult) -> None:
        self.done.append(result)

    def add_usage(self, usage: Usage, cost_usd: Decimal) -> Event:
        self.usage += usage
        self.cost_usd += cost_usd
        return events.RunCost(self.usage, self.cost_usd)


def request(*messages: str | Message, **fields: object) -> ModelRequest:
    """A model call; plain text is the user's."""
    said = [UserMessage(m) if isinstance(m, str) else m for m in messages]
    values: dict[str, object] = {"model": "scripted-1", "system_prompt": "", **fields}
    return ModelRequest(messages=said, **values)  # type: ignore[arg-type]
