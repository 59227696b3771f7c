"""A call in a worker of the customer: the tool's function, and how it is asked to stop."""

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import Future
from contextlib import AbstractContextManager
from typing import Any

from arkloop.worker.contract.attachments import ToolOutput
from arkloop.worker.contract.outcomes import CancelRequested, StopRun
from arkloop.worker.contract.stop_signal import StopSignal
from arkloop.worker.tools import CallInfo, Tool, ToolFailed, as_output

log = logging.getLogger(__name__)

_IDENTITY = (
    *("run_id", "thread_id", "org_id", "end_user_id", "metadata"),
    *("tool_call_id", "idempotency_key", "traceparent"),
)


class CallContext:
    """The `ToolContext` of a tool that runs here."""

    def __init__(self) -> None:
        self.stop = StopSignal()

    def check(self) -> None:
        self.stop.check()

    def wait(self, seconds: float) -> None:
        self.stop.wait(seconds)

    def aborting(self, abort: Callable[[], None]) -> AbstractContextManager[None]:
        return self.stop.aborting(abort, may_block=True)

    def stored_result(self, result_id: str) -> str | None:
        """Return None: results are stored at the service."""
        return None


class ToolCall:
    """A call that was fetched; its function runs in a thread, or as a task of `loop`."""

    def __init__(
        self, tool: Tool, call: Mapping[str, Any], loop: asyncio.AbstractEventLoop
    ) -> None:
        self.id, self.fence = str(call["call_id"]), int(call["fence"])
        self.tool = tool
        #: The service no longer waits for the result.
        self.is_unwanted = False
        #: The worker ends: nothing is reported, so that the service decides what becomes of it.
        self.is_abandoned = False
        self._arguments = call["arguments"]
        self._info = CallInfo(**{name: call[name] for name in _IDENTITY})
        self._context = CallContext()
        self._loop = loop

    @property
    def name(self) -> Mapping[str, Any]:
        """Return how requests name the call."""
        return {"call_id": self.id, "fence": self.fence}

    def start(self, ended: Callable[["ToolCall", str, Mapping[str, Any]], None]) -> None:
        """Execute the tool; then call `ended` with `complete` or `fail`, and that request's fields.

        The thread is a daemon: a function that blocks does not keep the process from ending.
        """
        threading.Thread(
            target=lambda: ended(self, *self._outcome()),
            name=f"tool-{self.tool.spec.name}",
            daemon=True,
        ).start()

    def cancel(self) -> None:
        """Ask the function to stop; what it returns is not wanted any more."""
        self.is_unwanted = True
        self._context.stop.set(CancelRequested(None))

    def _outcome(self) -> tuple[str, Mapping[str, Any]]:
        try:
            output = self._made()
        except ToolFailed as error:
            return "fail", {"error": str(error) or "The tool failed."}
        except (StopRun, asyncio.CancelledError):
            return "fail", {"error": "The call was cancelled."}
        except BaseException as error:  # SystemExit, too: libraries for command lines raise it
            # Its text may hold secrets, such as the URL of a database: it stays here.
            log.exception("tool %s raised in call %s", self.tool.spec.name, self.id)
            return "fail", {"error": f"The tool failed: {type(error).__name__}."}
        if isinstance(output, ToolOutput):
            return "complete", {"output": output.text, "images": list(output.images)}
        return "complete", {"output": output}

    def _made(self) -> str | ToolOutput:
        self.tool.check(self._arguments)
        self._context.check()
        returned: Any = self.tool(self._context, self._info, self._arguments)
        if self.tool.is_async:
            task = asyncio.run_coroutine_threadsafe(self._awaited(returned), self._loop)
            try:
                with self._context.aborting(lambda: _cancel(task)):
                    returned = task.result()
            finally:
                task.cancel()  # it may have begun before an abort could reach it
        return as_output(returned)

    async def _awaited(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Await the coroutine, unless the call was cancelled while another one held up the loop."""
        try:
            self._context.check()
        except BaseException:
            coroutine.close()
            raise
        return await coroutine


def _cancel(task: Future[Any]) -> None:
    task.cancel()
