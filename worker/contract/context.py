"""The parts of a run that the loop, tools and model calls may use, without SQL, Redis or Celery.

Every method may raise a `StopRun` or `LeaseLost`.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from arkloop.shared.catalog.model_routes import Route
from arkloop.shared.events.types import ContextCompacted, Event, RunSteered, ToolResult
from arkloop.shared.events.usage import Usage
from arkloop.shared.runs.states import ResultSource
from arkloop.worker.contract.attachments import Attachment
from arkloop.worker.contract.input_requests import InputRequest
from arkloop.worker.contract.messages import ModelRequest, Steered
from arkloop.worker.contract.retry_deadline import RetryDeadline


class ToolContext(Protocol):
    """The part of a run that a tool may use."""

    def check(self) -> None:
        """Raise if the run has to stop."""

    def wait(self, seconds: float) -> None:
        """Sleep; raises as soon as the run has to stop."""

    def aborting(self, abort: Callable[[], None]) -> AbstractContextManager[None]:
        """Call `abort` as soon as the run has to stop while the block is executed.

        What it makes fail inside turns into the reason of the stop.
        """

    def stored_result(self, result_id: str) -> str | None:
        """Return the whole output of a tool call of the run's thread; None if there is none."""


class Transcript(Protocol):
    """The text and the events of one attempt, in order."""

    attempt: int

    def stream_text(self, text: str) -> None:
        """Add a piece of the model's response; pieces are gathered into deltas."""

    def stream_thinking(self, text: str) -> None:
        """Add a piece of the model's reasoning; pieces are gathered into deltas."""

    def stream_arguments(self, tool_call_id: str, name: str, text: str) -> None:
        """Add a piece of a call's arguments; pieces are gathered into deltas."""

    @property
    def open_text(self) -> str:
        """The text of the turn that is being streamed."""

    def keep_prompt(self, route: Route, request: ModelRequest, body: bytes) -> None:
        """Keep the body that the vendor of the route is about to receive for the request."""

    def void_text(self, reason: str, *then: Event) -> None:
        """Declare void what was streamed in this turn: the call is made again.

        The events `then` are stored together with that.
        """

    def emit(self, *events: Event) -> int:
        """Write events, all of them or none, after everything streamed so far.

        Returns the `seq` of the first.
        """

    def note(self, *events: Event) -> int:
        """Write events as `emit` does, within the turn that is being streamed: it stays open."""

    def checkpoint(self) -> None:
        """Return once everything emitted so far is stored: a crash will not repeat it."""


class ToolLedger(Protocol):
    """The record of the tool calls that have begun, in this attempt or an earlier one."""

    @property
    def is_resumed(self) -> bool:
        """True if an earlier attempt may have begun tool calls."""

    def begin_tool_call(self, tool_call_id: str, result_from: ResultSource | None = None) -> bool:
        """Record that the call begins now; False if an earlier attempt began it already.

        `result_from` may send its result from now on.
        """

    def expect_result(self, tool_call_id: str) -> None:
        """Record that the call was accepted elsewhere: its result comes from outside."""

    def require_input(self, tool_call_id: str, request: InputRequest) -> None:
        """Record that the call has ended so far, and is made again with the replies of people."""

    def continue_tool_call(self, tool_call_id: str) -> bool:
        """Record that the call is made again, with replies; False if an attempt did so before."""

    def end_tool_call(self, result: ToolResult, whole_output: str | None = None) -> ToolResult:
        """Record the result of a call whose event has to wait for other calls of the turn.

        Returns the result that counts: one that came from outside first, else this one.
        `whole_output` is what the event has no room for.
        """


class ThreadStore(Protocol):
    """The part of the run's thread that the loop changes."""

    def compact(self, to: ContextCompacted, *events: Event) -> None:
        """Move the thread's truncation point, for this run and all later ones.

        The events are written together with that of the new point.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The expected usage of a model call, and of a last call after it.

    `shortest` is what that takes at least, `whole` with all of the conversation.
    """

    call: Usage
    shortest: Usage
    whole: Usage


class Admission(Protocol):
    """The limits that a model call has to pass, and what the run's calls have used."""

    @property
    def is_limited(self) -> bool:
        """True if a budget or prepaid credits limit the run's cost."""

    @property
    def last_usage(self) -> Usage:
        """The usage of the last model call, or of its part that was made."""

    def cost(self) -> Event:
        """Return the `run.cost` event with the sums so far."""

    def admit(self, route: Route, tokens: int, deadline: RetryDeadline) -> None:
        """Wait, visibly, until the limits of the route admit a call of about this many tokens.

        Raises:
            ProviderError: `provider.rate_limited`; its provider takes no calls until `deadline`.
        """

    def reserve(self, route: Route, worst_case: Usage, plan: Plan | None = None) -> None:
        """Reserve what the next model call may cost at most; with a plan, also for the last call.

        Waits, visibly, while only the reservations of other runs stand in the way.

        Raises:
            LimitExceeded: `budget.exhausted`, with what the call could cost at most.
            RunFailure: the route has no prices.
        """

    def note_exhausted(self) -> None:
        """Note that no call is made instead of the one that `reserve` has just refused: what is
        left of its budget does not suffice.
        """

    def add_usage(self, route: Route, usage: Usage) -> Event:
        """Count a model call; returns the `run.cost` event with the sums so far."""

    def settle(self) -> None:
        """Give back what the last model call has not used."""

    def pause_route(self, route: Route, seconds: float, *, is_shared: bool) -> None:
        """Stop calls on the route for this time: the org's, or with `is_shared` all calls."""

    def back_off(self, route: Route, seconds: float, *, is_shared: bool) -> None:
        """Pause the route, and wait for that time, visibly."""


class Files(Protocol):
    """The stored files of the run's org."""

    def loaded(
        self, attachments: Sequence[Attachment]
    ) -> AbstractContextManager[Mapping[str, bytes]]:
        """Load the content of attachments, by file id, for the length of the block.

        Waits, visibly, until their memory is free. Files that are gone are left out.

        Raises:
            RunFailure: `files.storage_unavailable`.
        """

    def keep(self, images: Sequence[str]) -> list[dict[str, Any]]:
        """Store the images of a tool's result, given in base64, each as a file of the org.

        Returns `{file_id, name, media_type, size}` of each; what is no image, or cannot be stored
        now, is left out.
        """


class Inbox(Protocol):
    """The messages that people send to the run while it is active."""

    def take_messages(self, steered: list[Steered], among: Collection[str] | None = None) -> None:
        """Add the messages that have arrived since to those that the run was steered with, or those
        of these ids alone.

        They are part of it from now on, also if this raises: the run may have to stop.
        """

    def offered_messages(self, steered: Sequence[Steered]) -> Sequence[RunSteered]:
        """Return the messages that have arrived since. They are no part of the run yet."""


class RunContext(Inbox, ToolContext, Transcript, ToolLedger, ThreadStore, Protocol):
    """An attempt of a run, as the loop sees it."""

    @property
    def admission(self) -> Admission:
        """The admission that each model call passes."""

    @property
    def files(self) -> Files:
        """The files that messages refer to."""
