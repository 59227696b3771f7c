"""The run of a custom agent in this process, as its code sees it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from arkloop.shared.agents import message_files
from arkloop.shared.agents.agent_run import (
    Call,
    DelegatedTask,
    Message,
    RunStopped,
    StopReason,
    SubRunResult,
)
from arkloop.shared.agents.approvals import ApprovalReply
from arkloop.shared.agents.steps_and_costs import StepsAndCosts, enclosing_steps
from arkloop.shared.errors import LeaseLost
from arkloop.shared.events.usage import Usage
from arkloop.shared.native_threads import ForeignCode, new_lock, start_thread
from arkloop.worker.attempt import native_limits
from arkloop.worker.attempt.agent_recording import AgentRecording
from arkloop.worker.contract.identity import idempotency_key
from arkloop.worker.contract.outcomes import (
    CancelRequested,
    DeadlineExceeded,
    RunFailure,
    ShuttingDown,
    StopRun,
    WaitForInput,
)

T = TypeVar("T")


_REASONS: Sequence[tuple[type[BaseException], StopReason]] = (
    (CancelRequested, "cancelled"),
    (DeadlineExceeded, "timeout"),
    (ShuttingDown, "shutdown"),
    (WaitForInput, "waiting"),
    (RunFailure, "limit"),
)


@dataclass(eq=False, kw_only=True)
class InProcessRun(StepsAndCosts):
    """The `AgentRun` of an agent in a native thread; the attempt's own thread records.

    `stopped` is what a call of the agent has run into: the end of this execution.
    """

    run_id: str
    thread_id: str
    org_id: str
    end_user_id: str | None
    metadata: Mapping[str, str]
    traceparent: str
    instructions: str
    model: str
    model_settings: Mapping[str, Any]
    output_schema: Mapping[str, Any] | None
    messages: Sequence[Message]
    attempt: int
    checkpoint_data: Any
    recording: AgentRecording = field(repr=False)
    code: ForeignCode[Any] = field(init=False, repr=False)
    stopped: BaseException | None = None

    _start_thread = staticmethod(start_thread)
    _new_lock = staticmethod(new_lock)

    def idempotency_key(self, tool_call_id: str) -> str:
        """Return the key of a call, the same whenever it is repeated."""
        return idempotency_key(self.run_id, tool_call_id)

    def _call(self, function: Callable[..., T], *args: Any, **named: Any) -> T:
        within = enclosing_steps()
        return self.code.call_back(lambda: self._guarded(function, args, named, within))

    def _guarded(
        self,
        function: Callable[..., T],
        args: tuple[Any, ...],
        named: Mapping[str, Any],
        within: Sequence[str] = (),
    ) -> T:
        try:
            return function(*args, **named)
        except (StopRun, LeaseLost, RunFailure) as reason:
            if isinstance(reason, WaitForInput):
                self.recording.transcript.interrupt(within)
            self.stopped = self.stopped or reason
            self.code.wake()
            raise RunStopped(stop_reason_of(reason)) from None

    def file(self, file_id: str) -> bytes:
        """Return the content of a file that the messages name."""
        return self._call(self.recording.file, message_files.find(self.messages, file_id))

    @property
    def pending_calls(self) -> Sequence[Call]:
        return self.recording.transcript.pending

    def text(self, text: str) -> None:
        """Stream a piece of the answer."""
        self._call(self.recording.text, text)

    def thinking(self, text: str) -> None:
        """Stream a piece of the model's reasoning."""
        self._call(self.recording.thinking, text)

    def tool_call(self, name: str, arguments: Any, *, tool_call_id: str | None = None) -> str:
        """Record that a tool is called."""
        return self._call(self.recording.tool_call, name, arguments, tool_call_id)

    def tool_result(self, tool_call_id: str, output: str, *, is_error: bool = False) -> None:
        """Record the result of a call."""
        self._call(self.recording.tool_result, tool_call_id, output, is_error=is_error)

    def _begin_step(
        self, name: str, arguments: Any, tool_call_id: str, *, is_idempotent: bool
    ) -> str | None:
        def begin() -> str | None:
            if self.stopped is not None:  # another thread has asked, just now
                raise RunStopped(stop_reason_of(self.stopped))
            return self.recording.begin_step(
                name, arguments, tool_call_id, is_idempotent=is_idempotent
            )

        return self._call(begin)

    def _failure_text(self, error: BaseException) -> str:
        return native_limits.explained(super()._failure_text(error), error)

    def _add_cost(self, usd: float | None, model: str | None, usage: Usage) -> None:
        # Of a call that was in progress when the run had to stop, too: its vendor bills it.
        self.code.call_back(
            lambda: self._guarded(self.recording.cost, (usd, model, usage), {}), when_closed=True
        )

    def reserve(self, usd: float) -> None:
        """Reserve what the next model call may cost at most."""
        self._call(self.recording.reserve, usd)

    def checkpoint(self, data: Any) -> None:
        """Store where the agent is."""
        self._call(self.recording.checkpoint, data)

    def ask(self, question: str, options: Sequence[str] = (), *, key: str | None = None) -> str:
        """Return a person's answer, in this execution or the next."""
        return self._call(self.recording.ask, question, options, key)

    def approve(self, name: str, arguments: Any, *, tool_call_id: str) -> ApprovalReply:
        """Return a person's reply to whether the call may be made."""
        return self._call(self.recording.approve, name, arguments, tool_call_id)

    def delegate_all(self, tasks: Sequence[DelegatedTask]) -> list[SubRunResult]:
        """Return the results of sub-runs, in this execution or the next."""
        return self._call(self.recording.delegate_all, tasks)

    def check(self) -> None:
        """Raise if the run has to stop."""
        self._call(self.recording.check)

    def wait(self, seconds: float) -> None:
        """Sleep; raises as soon as the run has to stop."""
        self.code.sleep(seconds)


def stop_reason_of(reason: BaseException) -> StopReason:
    """Return the reason as the agent's code reads it."""
    return next((name for kind, name in _REASONS if isinstance(reason, kind)), "lost")
