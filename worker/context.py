"""What the loop and the tools may ask of a run; they know nothing of SQL, Redis or Celery."""

from decimal import Decimal
from typing import Protocol

from shared.events import Event, ToolResult, Usage


class RunContext(Protocol):
    """One attempt of a run, as its own thread sees it.

    Every method may raise a `StopRun` or `LeaseLost`.
    """

    attempt: int

    def check(self) -> None:
        """Raise if the run has to stop."""

    def wait(self, seconds: float) -> None:
        """Sleep; raises as soon as the run has to stop."""

    def stream_text(self, text: str) -> None:
        """Pass on a piece of the model's answer; pieces are gathered into deltas."""

    def stream_thinking(self, text: str) -> None:
        """The same for its reasoning."""

    def void_text(self, reason: str) -> None:
        """What was streamed in this turn does not count: the call is made again."""

    def emit(self, *events: Event) -> None:
        """Write events, all of them or none, after everything streamed so far."""

    def checkpoint(self) -> None:
        """Return once everything emitted so far is stored: a crash will not repeat it."""

    def begin_tool_call(self, tool_call_id: str) -> bool:
        """Record that the call begins now; False if an earlier attempt began it already."""

    def end_tool_call(self, result: ToolResult) -> None:
        """Record what came of a call whose event has to wait for other calls of the turn."""

    def add_usage(self, usage: Usage, cost_usd: Decimal) -> Event:
        """Count a model call; returns the `run.cost` event with the sums so far."""
