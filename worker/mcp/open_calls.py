"""The sidecar's requests in progress, and what servers ask people in the middle of a call.

By the protocols before 2026-07-28 a server asks while it executes a call: what it knows of the call
is in its memory, behind an open connection. So the call stays in progress here while its run waits,
and the reply of the person comes with another request of the worker, which continues it.
"""

import asyncio
import secrets
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

import mcp_types as types

from arkloop.worker.mcp import McpFailed, elicitations
from arkloop.worker.mcp.progress import CallProgress

#: For which a call stays in progress after it has asked a person; its run gives up long before.
MAX_OPEN_SECONDS = 1800.0
#: Calls of a session that wait for people; over HTTP each keeps a connection.
MAX_ASKING = 16
LOST = (
    "The server had asked a person during this call, but the connection of the call is lost: it"
    " ends with the worker process or the server. The call may have taken effect."
)

#: Sends fields of a response to the worker.
Send = Callable[[Mapping[str, Any]], None]


class OpenCall:
    """A request to a server; each question of the server ends a request of the worker's."""

    def __init__(self, seconds: float, max_seconds: float, send: Send) -> None:
        """Send progress and grants by `send` until `continue_with` names another one."""
        self.token = secrets.token_hex(16)
        self.send = send
        self.progress = CallProgress(
            seconds, max_seconds, lambda progress: self.send({"progress": progress})
        )
        self._work: asyncio.Task[dict[str, Any]] | None = None
        self._asking = asyncio.Lock()
        self._questions: asyncio.Queue[Mapping[str, Any]] = asyncio.Queue()
        self._reply: asyncio.Future[Mapping[str, Any]] | None = None
        self._given_up: asyncio.TimerHandle | None = None

    @property
    def is_asking(self) -> bool:
        return self._reply is not None

    def begin(self, work: Coroutine[Any, Any, dict[str, Any]]) -> None:
        """Start the work, which returns the fields of the response."""
        self._work = asyncio.create_task(work)

    async def outcome(self) -> dict[str, Any]:
        """Return the fields of the response: what the work returns, or what a person is asked.

        The work is cancelled with the task that waits for it here.
        """
        assert self._work is not None
        question = asyncio.create_task(self._questions.get())
        try:
            await asyncio.wait({self._work, question}, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            self.cancel()
            raise
        finally:
            question.cancel()
        if self._work.done():
            return self._work.result()
        self._given_up = asyncio.get_running_loop().call_later(MAX_OPEN_SECONDS, self.cancel)
        return {"required": {"asked": [question.result()], "state": None, "held": self.token}}

    def continue_with(self, reply: Mapping[str, Any], send: Send) -> None:
        """Pass on the person's `{action, content?}`; a further question ends another request."""
        self.send = send
        if self._given_up is not None:
            self._given_up.cancel()
        if self._reply is not None and not self._reply.done():
            self._reply.set_result(reply)

    def cancel(self) -> None:
        """End the call, at the server too."""
        if self._given_up is not None:
            self._given_up.cancel()
        if self._work is not None:
            self._work.cancel()

    async def ask(self, params: types.ElicitRequestParams) -> types.ElicitResult | types.ErrorData:
        """Ask a person on behalf of the server, one question at a time."""
        try:
            asked = elicitations.asked(self.token, params)
        except McpFailed as error:
            return types.ErrorData(code=types.INVALID_PARAMS, message=str(error))
        async with self._asking:
            self._reply = asyncio.get_running_loop().create_future()
            self.progress.pause()
            try:
                self._questions.put_nowait(asked)
                return types.ElicitResult(**await self._reply)
            finally:
                self._reply = None
                self.progress.resume()
