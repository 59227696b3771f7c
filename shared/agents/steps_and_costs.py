"""The methods of `AgentRun` that are the same wherever its agent runs."""

import _thread
import contextvars
import inspect
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from greenlet import GreenletExit

from arkloop.shared.agents.agent_run import DelegatedTask, RunStopped, SubRunResult, ToolFailed
from arkloop.shared.events.usage import Usage
from arkloop.shared.usd import parse, rounded

log = logging.getLogger(__name__)

#: How often a step that has a time limit looks whether its run has to stop.
CHECK_SECONDS = 0.25


#: The ids of the calls within whose steps this code runs.
_ENCLOSING: contextvars.ContextVar[tuple[str, ...]] = contextvars.ContextVar(
    "enclosing_steps", default=()
)


def enclosing_steps() -> tuple[str, ...]:
    """Return the ids of the calls whose functions have not returned, of which this code is part."""
    return _ENCLOSING.get()


def _text_of(returned: Any) -> str:
    if inspect.isawaitable(returned):
        if inspect.iscoroutine(returned):
            returned.close()  # else Python warns that nothing has awaited it
        kind = type(returned).__name__
        raise ToolFailed(f"The tool failed: it returned a {kind}, which a step does not await.")
    return str(returned)


def _holds(error: BaseException, kinds: tuple[type[BaseException], ...]) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return error.subgroup(kinds) is not None
    return isinstance(error, kinds)


class _NotInTime(Exception):
    """The end of the time of a step."""


class StepsAndCosts(ABC):
    """Steps, sub-runs and model calls of a run, for a class that records them."""

    #: Of native threads, also where the process has greenlets in their place.
    _start_thread: ClassVar[Any] = staticmethod(_thread.start_new_thread)
    _new_lock: ClassVar[Any] = staticmethod(_thread.allocate_lock)

    #: What ends more than the call in whose step it is raised, also within a group.
    _passing: ClassVar[tuple[type[BaseException], ...]] = (
        RunStopped,
        KeyboardInterrupt,
        GeneratorExit,
        GreenletExit,
    )

    @abstractmethod
    def check(self) -> None:
        """Raise if the run has to stop."""

    @abstractmethod
    def _begin_step(
        self, name: str, arguments: Any, tool_call_id: str, *, is_idempotent: bool
    ) -> str | None:
        """Record that the tool is called; return its output if it must not be."""

    @abstractmethod
    def tool_result(self, tool_call_id: str, output: str, *, is_error: bool = False) -> None:
        """Record the result of a call."""

    @abstractmethod
    def _add_cost(self, usd: float | None, model: str | None, usage: Usage) -> None:
        """Count a model call; without `usd` its tokens are priced."""

    @abstractmethod
    def delegate_all(self, tasks: Sequence[DelegatedTask]) -> list[SubRunResult]:
        """Give out tasks; return the results in their order."""

    def delegate(self, persona: str, task: str, *, tool_call_id: str) -> SubRunResult:
        """Give a task to a run of another persona, and return its result."""
        given = DelegatedTask(persona=persona, task=task, tool_call_id=tool_call_id)
        [result] = self.delegate_all([given])
        return result

    def step(
        self,
        name: str,
        arguments: Any,
        function: Callable[[], Any],
        *,
        tool_call_id: str,
        idempotent: bool = False,
        timeout_seconds: float | None = None,
    ) -> str:
        """Call the function as the tool call of this id, at most once."""
        if inspect.iscoroutinefunction(function):
            raise ValueError(
                "A step calls a function and awaits nothing, and this is a coroutine function: pass"
                " `lambda: asyncio.run(function())`. An agent that is a coroutine calls `run.step`"
                " by `asyncio.to_thread`, and passes `lambda:"
                " asyncio.run_coroutine_threadsafe(function(), loop).result()` with its own loop."
            )
        known = self._begin_step(name, arguments, tool_call_id, is_idempotent=idempotent)
        if known is not None:
            return known
        is_error = False
        entered = _ENCLOSING.set((*_ENCLOSING.get(), tool_call_id))
        try:
            output = _text_of(
                function() if timeout_seconds is None else self._within(timeout_seconds, function)
            )
        except _NotInTime:
            log.warning("abandoning step %s of tool %s: not in time", tool_call_id, name)
            output = (
                f"The tool did not return within {timeout_seconds:g} s; the call may still take"
                " effect."
            )
            is_error = True
        except ToolFailed as error:
            output, is_error = str(error), True
        except BaseException as error:  # SystemExit, too: libraries for command lines raise it
            if _holds(error, self._passing):
                raise
            # Its text may hold secrets, such as the URL of a database: it goes to the log alone.
            log.exception("tool %s raised in call %s", name, tool_call_id)
            output, is_error = self._failure_text(error), True
        finally:
            _ENCLOSING.reset(entered)
        self.tool_result(tool_call_id, output, is_error=is_error)
        return output

    def _failure_text(self, error: BaseException) -> str:
        """Return what the model reads of an exception in a step."""
        return f"The tool failed: {type(error).__name__}."

    def _within(self, seconds: float, function: Callable[[], Any]) -> Any:
        """Call the function in a thread of its own, which is abandoned when its time is over.

        Raises:
            _NotInTime
            RunStopped: the run has to stop; the thread is abandoned, too.
        """
        done, outcome = self._new_lock(), list[tuple[Any, BaseException | None]]()
        context = contextvars.copy_context()

        def call() -> None:
            try:
                outcome.append((context.run(function), None))
            except BaseException as error:
                outcome.append((None, error))
            finally:
                done.release()

        done.acquire()
        ends_at = time.monotonic() + seconds
        self._start_thread(call, ())
        while not done.acquire(timeout=max(0.0, min(CHECK_SECONDS, ends_at - time.monotonic()))):
            self.check()
            if time.monotonic() >= ends_at:
                raise _NotInTime
        [(value, error)] = outcome
        if error is not None:
            raise error
        return value

    def cost(
        self,
        usd: float | None = None,
        *,
        model: str | None = None,
        input_tokens: int = 0,
        output_tokens: int = 0,
        cache_read_tokens: int = 0,
        cache_write_tokens: int = 0,
        reasoning_tokens: int = 0,
    ) -> None:
        """Count a model call."""
        usage = Usage(
            input_tokens=input_tokens,
            output_tokens=output_tokens,
            cache_read_tokens=cache_read_tokens,
            cache_write_tokens=cache_write_tokens,
            reasoning_tokens=reasoning_tokens,
        )
        amount = None if usd is None else rounded(usd)
        if amount is not None:
            parse(amount)
        self._add_cost(amount, model or None, usage)  # an empty name is none
