"""What the loop and the tools may ask of a run; they know nothing of SQL, Redis or Celery."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

from shared.catalog.model_routes import Route
from shared.events.types import Event, ToolResult, Usage
from worker.contract.patience import Patience


class RunContext(Protocol):
    """One attempt of a run, as its own thread sees it.

    Every method may raise a `StopRun` or `LeaseLost`.
    """

    attempt: int

    def check(self) -> None:
        """Raise if the run has to stop."""

    def wait(self, seconds: float) -> None:
        """Sleep; raises as soon as the run has to stop."""

    def aborting(self, abort: Callable[[], None]) -> AbstractContextManager[None]:
        """Within the block `abort` is called as soon as the run has to stop.

        What it makes fail inside turns into the reason of the stop.
        """

    def stream_text(self, text: str) -> None:
        """Pass on a piece of the model's answer; pieces are gathered into deltas."""

    def stream_thinking(self, text: str) -> None:
        """The same for its reasoning."""

    def void_text(self, reason: str, *then: Event) -> None:
        """What was streamed in this turn does not count: the call is made again.

        The events `then` are stored together with that.
        """

    def emit(self, *events: Event) -> None:
        """Write events, all of them or none, after everything streamed so far."""

    def checkpoint(self) -> None:
        """Return once everything emitted so far is stored: a crash will not repeat it."""

    def begin_tool_call(self, tool_call_id: str) -> bool:
        """Record that the call begins now; False if an earlier attempt began it already."""

    def end_tool_call(self, result: ToolResult) -> None:
        """Record what came of a call whose event has to wait for other calls of the turn."""

    def add_usage(self, route: Route, usage: Usage) -> Event:
        """Count a model call; returns the `run.cost` event with the sums so far."""

    @property
    def is_limited(self) -> bool:
        """Whether a budget or prepaid credits limit what the run may cost."""

    def reserve(self, route: Route, worst_case: Usage) -> None:
        """Hold what the next model call may cost at most.

        Waits, visibly, while only what other runs hold stands in the way.

        Raises:
            LimitExceeded: `budget.exhausted`.
        """

    def settle(self) -> None:
        """Give back what the last model call has not used."""

    def admit(self, route: Route, tokens: int, patience: Patience) -> None:
        """Wait, visibly, until the route's limits have room for a call of about so many tokens.

        Raises:
            ProviderError: `provider.rate_limited`; its provider takes no calls, and `patience` is
                at its end.
        """

    def pause_route(self, route: Route, seconds: float, *, is_shared: bool) -> None:
        """Stop calls on the route for this time: the org's own, or with `is_shared` everybody's."""

    def back_off(self, route: Route, seconds: float, *, is_shared: bool) -> None:
        """As `pause_route`, and wait for that time, visibly."""
