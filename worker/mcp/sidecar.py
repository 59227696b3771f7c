"""The process that speaks MCP for one org, over a socket to the worker.

One JSON object a line, both ways. `{"id", "do": "tools", "server", "access", "seconds"}` and
`{"id", "do": "call", "server", "access", "seconds", "max_seconds", "tool", "arguments", "pinned",
"meta"}` are answered in any order, by `{"id", "tools" | "text", "images" | "required"}` or
`{"id", "failed", "kind", "tools"? | "made"?}`. Before that a call may have `{"id", "progress"}`,
and both `{"id", "grant"}`, which takes the place of the grant in `access`.
After `required` a call is made again, with `replies`; if `required` has `held` it is in progress,
and `{"id", "do": "continue", "held", "reply"}` continues it, in place of a call.
`{"do": "release", "held"}`, which ends such a call, is not answered. `{"id", "do": "cancel"}` ends
any request, which is then answered as `failed`, after a grant that was on its way. The first line
is `{"id": 0, "pid"}`. The process ends when the socket does, or when its event loop hangs.
"""

import asyncio
import contextlib
import faulthandler
import json
import logging
import os
import resource
import select
import signal
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import asdict
from functools import partial
from typing import Any, Never

import mcp_types as types

from arkloop.worker.mcp import (
    AuthorizationRequired,
    McpFailed,
    SessionLost,
    ToolChanged,
    elicitations,
)
from arkloop.worker.mcp.elicitations import PagesRequired
from arkloop.worker.mcp.grants import tokens_of
from arkloop.worker.mcp.open_calls import LOST, OpenCall, Send
from arkloop.worker.mcp.results import images_of, text_of
from arkloop.worker.mcp.server import Server
from arkloop.worker.mcp.sessions import Rules, Session

MAX_LINE_BYTES = 16 * 1024 * 1024
MAX_SESSIONS = 32
#: Of end users, each with access of their own; an idle one has about 65 KB.
MAX_OWNED_SESSIONS = 256
#: While as many are in use, a call waits for one to become idle, at most this long: one that failed
#: at once would be made again at once.
ROOM_SECONDS = 1.0
_ROOM_LOOK_SECONDS = 0.05
IDLE_SECONDS = 300.0
_LOOK_SECONDS = 10.0
#: Of private memory, for the org's sessions together; the process begins with about 50 MiB.
MAX_DATA_BYTES = 512 * 1024 * 1024
#: Of each thread that resolves names; counted as data, and 8 MiB by default.
_STACK_BYTES = 1024 * 1024
#: An event loop that stands still for this long has hung.
HANG_SECONDS = 15.0
#: Time to write its traceback, before the kernel ends it.
_TRACEBACK_SECONDS = 2.0
#: A process that computes for more than this part of some seconds gives way to all others from
#: then on: the worker's, and those of orgs whose servers send little.
BUSY_PART, BUSY_SECONDS = 0.3, 1.0
BUSY_NICENESS = 10

#: Takes a grant that the worker is to store.
Keep = Callable[[Mapping[str, Any]], None]


class Sessions:
    """All sessions of the process, by the servers' fingerprints."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._sessions: dict[str, Session] = {}
        self._closing: set[asyncio.Task[None]] = set()

    async def answer(self, request: dict[str, Any], call: OpenCall, keep: Keep) -> dict[str, Any]:
        """Return the fields of the response to a request.

        `keep` gets the grant that it has led to, if any.

        A server that was restarted rejects the requests of its earlier sessions. It has not read
        them, so they are sent once more, in a new session.

        Raises:
            McpFailed, TimeoutError
        """
        deadline = time.monotonic() + request["seconds"]
        with contextlib.suppress(SessionLost):
            return await self._answer(request, deadline, call, keep)
        try:
            return await self._answer(request, deadline, call, keep)
        except SessionLost as lost:  # a new session is not the remedy
            raise lost.problem or lost from None

    async def _answer(
        self, request: dict[str, Any], deadline: float, call: OpenCall, keep: Keep
    ) -> dict[str, Any]:
        timeout = asyncio.timeout(deadline - time.monotonic())
        call.progress.extends(timeout)
        server = Server.from_json(request["server"])
        async with self._use(server, timeout) as session:
            return await _with_access(session, request, call, keep)

    @contextlib.asynccontextmanager
    async def _use(self, server: Server, timeout: asyncio.Timeout) -> AsyncIterator[Session]:
        session = await self._wait_for_session(server, timeout.when())
        session.users += 1
        try:
            async with timeout:
                yield session
        except TimeoutError:
            # It may be stuck as a whole: the next call gets a session of its own.
            session.retire("The server did not respond in time.")
            raise
        finally:
            session.users -= 1
            session.used_at = time.monotonic()
            if session.is_over:
                self._remove(server.fingerprint, session)

    async def _wait_for_session(self, server: Server, deadline: float | None) -> Session:
        """Return a session; while all of the org's are in use, wait for one, but not for long.

        Raises:
            McpFailed: none has become idle.
        """
        now = asyncio.get_running_loop().time()
        last = now + ROOM_SECONDS if deadline is None else min(now + ROOM_SECONDS, deadline)
        while True:
            try:
                return self._session(server)
            except McpFailed:
                if asyncio.get_running_loop().time() >= last:
                    raise
            await asyncio.sleep(_ROOM_LOOK_SECONDS)

    def _session(self, server: Server) -> Session:
        fingerprint = server.fingerprint
        session = self._sessions.get(fingerprint)
        if session is not None and not session.is_over:
            return session
        alike = [
            (key, session)
            for key, session in self._sessions.items()
            if (session.server.owner is None) == (server.owner is None)
        ]
        most = MAX_SESSIONS if server.owner is None else MAX_OWNED_SESSIONS
        if len(alike) >= most:
            idle = [(session.used_at, key) for key, session in alike if not session.users]
            if not idle:
                connected = "MCP servers" if server.owner is None else "MCP servers for end users"
                raise McpFailed(
                    f"The organization is already connected to {most} {connected}, the limit."
                )
            self._remove(min(idle)[1], self._sessions[min(idle)[1]])
        self._sessions[fingerprint] = session = Session(server, self._rules)
        return session

    def _remove(self, key: str, session: Session) -> None:
        if self._sessions.get(key) is session:
            del self._sessions[key]
        if not session.users:
            closing = asyncio.create_task(session.close())
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)

    async def close_idle(self) -> None:
        """Close sessions unused for `IDLE_SECONDS`, forever."""
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            late = time.monotonic() - IDLE_SECONDS
            for key, session in list(self._sessions.items()):
                if not session.users and (session.used_at < late or session.is_over):
                    self._remove(key, session)

    async def close(self) -> None:
        sessions = list(self._sessions.values())
        await asyncio.gather(*(session.close() for session in sessions), *self._closing)


async def _with_access(
    session: Session, request: dict[str, Any], call: OpenCall, keep: Keep
) -> dict[str, Any]:
    """Make a request with its access, and keep what becomes of that."""
    oauth = session.oauth
    if oauth is None:
        return await _respond(session, request, call)

    def keep_new() -> None:
        grant = oauth.grant
        if grant is not None and grant["id"] != (request["access"]["grant"] or {}).get("id"):
            # A code is for one use: if the request is sent again, it is with the grant.
            request["access"] = {"grant": grant, "client": None, "answered": None}
            keep(grant)

    def take_newest(newest: Mapping[str, Any]) -> None:
        """Take the access of a request that continues the call, unless the server has moved."""
        access, server = newest["access"], Server.from_json(newest["server"])
        is_bound = server.granted_for == session.server.granted_for
        if access is not None and access["grant"] is not None and is_bound:
            oauth.take(access)

    oauth.take(request["access"])
    call.take_access, call.hold = take_newest, partial(oauth.keepers.hold, call)
    return await oauth.keepers.during(call, keep_new, _respond(session, request, call))


async def _respond(session: Session, request: dict[str, Any], call: OpenCall) -> dict[str, Any]:
    if request["do"] == "tools":
        return {"tools": [asdict(tool) for tool in await session.tools(fresh=True)]}
    try:
        result = await session.call(
            request["tool"],
            request["arguments"],
            request["pinned"],
            request["meta"],
            call,
            request["replies"],
        )
        if isinstance(result, types.InputRequiredResult):
            return {"required": elicitations.asked_by(result)}
        return {"text": text_of(result), "images": images_of(result)}
    except PagesRequired as pages:
        return {"required": {"asked": pages.asked, "state": None}}
    except ToolChanged as changed:
        tools = [asdict(tool) for tool in await session.tools()]
        return {"failed": str(changed), "kind": "changed", "tools": tools}


async def serve(connection: socket.socket, rules: Rules) -> None:
    """Answer until the other side is gone."""
    watching = asyncio.create_task(_watch())
    yielding = asyncio.create_task(_give_way())
    asyncio.get_running_loop().set_exception_handler(_end_without_memory)
    reader, writer = await asyncio.open_connection(sock=connection, limit=MAX_LINE_BYTES)
    sessions = Sessions(rules)
    tasks: dict[int, asyncio.Task[None]] = {}
    held: dict[str, OpenCall] = {}
    idle = asyncio.create_task(sessions.close_idle())

    def send(request: Mapping[str, Any], fields: Mapping[str, Any]) -> None:
        writer.write(json.dumps({"id": request["id"], **fields}).encode() + b"\n")

    async def answer(request: dict[str, Any]) -> None:
        call = _call(sessions, request, held, partial(send, request))
        fields: dict[str, Any] = {"failed": LOST, "kind": "failed"}
        if call is not None:
            fields = await call.outcome()
            if "held" in fields.get("required", {}):
                held[call.token] = call
        send(request, fields)
        await writer.drain()

    writer.write(json.dumps({"id": 0, "pid": os.getpid()}).encode() + b"\n")
    with contextlib.suppress(ConnectionError):
        # A worker that ends while it sends leaves half a line.
        while (line := await reader.readline()).endswith(b"\n"):
            request = json.loads(line)
            if request["do"] == "release":
                if (left := held.pop(request["held"], None)) is not None:
                    left.cancel()
                continue
            number = request["id"]
            if request["do"] == "cancel":
                await asyncio.sleep(0)  # until the task has begun its call
                if number in tasks:
                    tasks[number].cancel()
                continue
            tasks[number] = task = asyncio.create_task(answer(request))
            task.add_done_callback(partial(_forget, tasks, number))
    watching.cancel()  # all that follows has to be done before the timer ends
    idle.cancel()
    yielding.cancel()
    for task in list(tasks.values()):
        task.cancel()
    for left in held.values():
        left.cancel()
    await asyncio.gather(*tasks.values(), return_exceptions=True)
    await sessions.close()
    writer.close()


def _forget(tasks: dict[int, asyncio.Task[None]], number: int, _: object) -> None:
    tasks.pop(number, None)


def _call(
    sessions: Sessions, request: dict[str, Any], held: dict[str, OpenCall], send: Send
) -> OpenCall | None:
    """Begin what is requested, or continue a call that is held; None if that is lost."""
    if request["do"] == "continue":
        call = held.pop(request["held"], None)
        if call is not None:
            call.take_access(request)  # another worker may have refreshed the token since
            call.continue_with(request["reply"], send)
        return call
    seconds = request["seconds"]
    call = OpenCall(seconds, request.get("max_seconds", seconds), send)
    call.begin(_answer(sessions, request, call))
    return call


async def _answer(sessions: Sessions, request: dict[str, Any], call: OpenCall) -> dict[str, Any]:
    try:
        return await sessions.answer(request, call, lambda grant: call.send({"grant": grant}))
    except AuthorizationRequired as required:
        return {"failed": str(required), "kind": "authorization", "made": required.made}
    except McpFailed as failed:
        server = Server.from_json(request["server"])
        told = server.without_secrets(str(failed), tokens_of(request["access"]))
        return {"failed": told, "kind": "failed", "cause": failed.cause}
    except TimeoutError:
        return {"failed": call.progress.timeout_message(), "kind": "failed"}
    except MemoryError:
        _end()
    except Exception:
        logging.exception("internal error while handling a request")
        return {
            "failed": "Internal error of the MCP client; see the worker logs.",
            "kind": "failed",
        }
    finally:
        call.progress.close()


def _end_without_memory(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    if _is_out_of_memory(context.get("exception")):
        _end()
    loop.default_exception_handler(context)


def _is_out_of_memory(error: BaseException | None) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return any(map(_is_out_of_memory, error.exceptions))
    # Rust code (pydantic) panics where Python cannot give it an object; the class has no address.
    return isinstance(error, MemoryError) or type(error).__name__ == "PanicException"


def _end() -> Never:
    """End the process: without memory a part of it may have stopped, and calls would hang."""
    try:
        if select.select([], [2], [], 0)[1]:  # else nobody reads it, and the write would not end
            os.write(2, b"an MCP sidecar has reached its limit of memory\n")
    finally:
        os._exit(1)


def run(connection: socket.socket, rules: Rules) -> None:
    """Serve the worker at the other end of the socket, within limits, until it is gone."""
    threading.stack_size(_STACK_BYTES)
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    soft = MAX_DATA_BYTES if hard == resource.RLIM_INFINITY else min(MAX_DATA_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
    asyncio.run(serve(connection, rules))


async def _give_way() -> None:
    """Lower the process' priority, for the rest of its life, once it is busy."""
    used = time.process_time()
    while True:
        await asyncio.sleep(BUSY_SECONDS)
        before, used = used, time.process_time()
        if used - before > BUSY_PART * BUSY_SECONDS:
            os.nice(BUSY_NICENESS)
            return


async def _watch() -> None:
    """End the process when this task has not run for `HANG_SECONDS`.

    The timer is a thread of C, which ends the process even where other C code holds the GIL. It
    writes a traceback first. Where nobody reads that, the signal of the second timer ends the
    process.
    """
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    while True:
        signal.setitimer(signal.ITIMER_REAL, HANG_SECONDS + _TRACEBACK_SECONDS)
        try:
            faulthandler.dump_traceback_later(HANG_SECONDS, exit=True)
        except RuntimeError:  # not even a thread can be started
            _end()
        await asyncio.sleep(HANG_SECONDS / 5)
