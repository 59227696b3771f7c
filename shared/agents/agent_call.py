"""The call of a custom agent: a function, or one that returns something to await."""

import asyncio
import contextlib
import inspect
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from arkloop.shared.agents.agent_run import AgentRun

log = logging.getLogger(__name__)

#: It returns the answer, or None if it has streamed it, or what returns that when it is awaited.
AgentFunction = Callable[[AgentRun], Any]


class AgentCall:
    """A call of an agent in this thread; what it returns is awaited in an event loop of its own.

    Whether there is something to await, the result alone shows: a coroutine function may have a
    decorator that is an ordinary function.
    """

    def __init__(self, function: AgentFunction) -> None:
        self._function = function
        self._main: asyncio.Task[Any] | None = None
        self._task: asyncio.Task[Any] | None = None  # until it is cancelled
        self._is_cancelled = False

    def __call__(self, agent_run: AgentRun) -> Any:
        returned = self._function(agent_run)
        return self._result_of(returned) if inspect.isawaitable(returned) else returned

    def _result_of(self, returned: Awaitable[Any]) -> Any:
        """Run the event loop, also after another of its tasks has exited, as one of a step may."""
        _check_no_loop_runs(returned)
        with asyncio.Runner() as runner:
            try:
                return runner.run(self._await(returned))
            except SystemExit:  # asyncio raises it here, too
                task = self._main
                assert task is not None
                while not task.done():
                    log.warning("a task of the agent has exited: the event loop continues")
                    with contextlib.suppress(SystemExit):
                        runner.get_loop().run_until_complete(task)
                return task.result()

    async def _await(self, returned: Awaitable[Any]) -> Any:
        self._task = self._main = asyncio.current_task()
        if self._is_cancelled:
            self._cancel_task()
        return await returned

    def cancel(self) -> None:
        """Cancel what the agent awaits, or will await; may be called in any thread."""
        self._is_cancelled = True
        if (task := self._task) is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                task.get_loop().call_soon_threadsafe(self._cancel_task)

    def _cancel_task(self) -> None:
        """Cancel the task once; called in its thread."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()


def _check_no_loop_runs(returned: Awaitable[Any]) -> None:
    """Check that an event loop can run in this thread.

    A runner that cannot run hides why, and takes the loop that is running from its thread.

    Raises:
        RuntimeError: one is running; nothing will await what the agent has returned.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    if inspect.iscoroutine(returned):
        returned.close()  # else Python warns that nothing has awaited it
    raise RuntimeError(
        "The agent has returned something to await, and this thread runs an event loop already:"
        " call the agent in another thread, as by `await asyncio.to_thread(play_agent, …)`."
    )
