"""The sidecar's requests in progress, and what servers ask people in the middle of a call.

By the protocols before 2026-07-28 a server asks while it executes a call: what it knows of the call
is in its memory, behind an open connection. So the call stays in progress here while its run waits,
and the reply of the person comes with another request of the worker, which continues it.
"""

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any

import mcp_types as types

from arkloop.worker.mcp import McpFailed, elicitations
from arkloop.worker.mcp.progress import CallProgress

#: Calls of a session that wait for people; over HTTP each keeps a connection.
MAX_ASKING = 16
#: Seconds that a call stays in progress after its question. A run asks the questions of a turn one
#: after another: five have ten minutes each, or four and a page for access.
MAX_OPEN_SECONDS = 3600.0
LOST = (
    "The server had asked a person during this call, but the connection of the call is lost: it"
    " ends with the worker process or the server. The call may have taken effect."
)
WAITED_TOO_LONG = (
    "The call had waited for people for too long and was cancelled. It may have taken effect."
)

#: Sends fields of a response to the worker.
Send = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True, slots=True)
class _Question:
    """A question of the server; its reply is cancelled where the server withdraws it."""

    asked: Mapping[str, Any]
    reply: asyncio.Future[Mapping[str, Any]]


class OpenCall:
    """A request to a server; each question of the server ends a request of the worker's."""

    def __init__(self, seconds: float, max_seconds: float, send: Send) -> None:
        """Send progress and grants by `send` until `continue_with` names another one."""
        self.token = secrets.token_hex(16)
        self.send = send
        #: Gives the session of the call the access of a request that continues it.
        self.take_access: Callable[[Mapping[str, Any]], None] = lambda request: None
        #: Called before a request ends with a question: keeps the tokens that it has led to.
        self.hold: Callable[[], Awaitable[None]] = lambda: asyncio.sleep(0)
        self.progress = CallProgress(
            seconds, max_seconds, lambda progress: self.send({"progress": progress})
        )
        #: True while no request of the worker waits, as the call does for a person's reply.
        self.is_held = False
        #: Not set while a person's reply is on its way to the server, over HTTP.
        self.has_delivered = asyncio.Event()
        self.has_delivered.set()
        self._work: asyncio.Task[dict[str, Any]] | None = None
        self._asking = asyncio.Lock()
        self._questions: asyncio.Queue[_Question] = asyncio.Queue()
        #: The question that a person has got.
        self._shown: _Question | None = None
        self._given_up: asyncio.TimerHandle | None = None
        self._is_cancelled = False

    @property
    def is_asking(self) -> bool:
        return self._asking.locked()

    def begin(self, work: Coroutine[Any, Any, dict[str, Any]]) -> None:
        """Start the work, which returns the fields of the response; if cancelled, send them."""
        self._work = asyncio.create_task(work)
        self._work.add_done_callback(self._send_cancelled)

    async def outcome(self) -> dict[str, Any]:
        """Return the fields of the response: what the work returns, or what a person is asked.

        The work is cancelled with the task that waits for it here.
        """
        assert self._work is not None
        try:
            while (question := await self._next_question(self._work)) is not None:
                if not question.reply.done():
                    self._shown = question
                    loop = asyncio.get_running_loop()
                    self._given_up = loop.call_later(MAX_OPEN_SECONDS, self._work.cancel)
                    await self.hold()
                    asked = {"asked": [question.asked], "state": None, "held": self.token}
                    return {"required": asked}
        except asyncio.CancelledError:
            self.cancel()
            raise
        if self._work.cancelled():
            return {"failed": WAITED_TOO_LONG, "kind": "failed"}
        return self._work.result()

    async def _next_question(self, work: asyncio.Task[dict[str, Any]]) -> _Question | None:
        """Return the next question, which may be withdrawn by now; None if the work is done."""
        question = asyncio.create_task(self._questions.get())
        try:
            await asyncio.wait({work, question}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            question.cancel()
        return None if work.done() else question.result()

    def continue_with(self, reply: Mapping[str, Any], send: Send) -> None:
        """Pass on the person's `{action, content?}`; a further question ends another request.

        The reply is to the question that the person has got. If the server has withdrawn it, the
        reply is dropped: another question of the server is asked next.
        """
        self.send, self.is_held = send, False
        if self._given_up is not None:
            self._given_up.cancel()
        if self._shown is not None and not self._shown.reply.done():
            self._shown.reply.set_result(reply)

    def cancel(self) -> None:
        """End the call, at the server too."""
        self._is_cancelled = True
        if self._given_up is not None:
            self._given_up.cancel()
        if self._work is not None:
            self._work.cancel()

    def _send_cancelled(self, work: asyncio.Task[dict[str, Any]]) -> None:
        if self._is_cancelled:  # it may have had its result
            self.send({"failed": "The call was cancelled.", "kind": "cancelled"})

    async def ask(self, params: types.ElicitRequestParams) -> types.ElicitResult | types.ErrorData:
        """Ask a person on behalf of the server, one question at a time."""
        try:
            asked = elicitations.asked(self.token, params)
        except McpFailed as error:
            return types.ErrorData(code=types.INVALID_PARAMS, message=str(error))
        async with self._asking:
            question = _Question(asked, asyncio.get_running_loop().create_future())
            self.progress.pause()
            try:
                self._questions.put_nowait(question)
                reply = types.ElicitResult(**await question.reply)
                self.has_delivered.clear()
                return reply
            finally:
                self.progress.resume()
