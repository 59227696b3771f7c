"""The worker's end: starts the sidecar when it is needed, and asks it from any thread."""

import contextlib
import itertools
import json
import logging
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from worker.context import RunContext
from worker.mcp import Cancelled, McpFailed, ToolChanged
from worker.mcp.descriptions import Description
from worker.mcp.launcher import environment
from worker.mcp.server import Server

CALL_SECONDS = 60.0
TOOLS_SECONDS = 20.0
#: The sidecar keeps the time; if it does not answer so much later, it hangs, and is ended.
GRACE_SECONDS = 8.0
MAX_REQUEST_BYTES = 2 * 1024 * 1024
#: A sidecar that did not live for so long is started again only after a pause, which doubles.
SHORT_LIFE_SECONDS = 10.0
MAX_PAUSE_SECONDS = 30.0
_SOCKET_SECONDS = 5.0


class ChangedTools(ToolChanged):
    """`tools` is what the server has now."""

    def __init__(self, message: str, tools: Sequence[Description]) -> None:
        super().__init__(message)
        self.tools = tools


@dataclass(slots=True, eq=False)
class _Pending:
    done: threading.Event = field(default_factory=threading.Event)
    answer: Mapping[str, Any] | None = None  # None: the sidecar is gone

    def resolve(self, answer: Mapping[str, Any] | None) -> None:
        self.answer = answer
        self.done.set()


class McpClient:
    """One for each worker process; every method may be called from many threads at once."""

    def __init__(self, *, allowed_networks: Sequence[str] = (), stdio: bool = False) -> None:
        self._rules = json.dumps({"allowed_networks": list(allowed_networks), "stdio": stdio})
        self._lock = threading.Lock()
        self._sidecar: _Sidecar | None = None
        self._pause = 0.0
        self._not_before = 0.0
        self._is_closed = False

    def tools(
        self, server: Server, *, context: RunContext | None = None, seconds: float = TOOLS_SECONDS
    ) -> list[Description]:
        """What tools the server has now.

        Raises:
            McpFailed: the server did not tell.
        """
        answer = self._ask(server, {"do": "tools"}, context, seconds)
        return [Description.from_json(fields) for fields in answer["tools"]]

    def call(
        self,
        server: Server,
        tool: str,
        arguments: Mapping[str, Any],
        *,
        pinned: str,
        context: RunContext | None = None,
        seconds: float = CALL_SECONDS,
    ) -> str:
        """Call a tool that was described, when it was approved, as the hash `pinned` says.

        As soon as the run has to stop the call is cancelled, at the server too.

        Raises:
            McpFailed: the tool or the server failed; nobody knows what the tool has done.
            ChangedTools: it was not called, its description is another one now.
        """
        request = {"do": "call", "tool": tool, "arguments": arguments, "pinned": pinned}
        text: str = self._ask(server, request, context, seconds)["text"]
        return text

    def close(self) -> None:
        """End the sidecar; what is being asked fails, and so does all that is asked later."""
        with self._lock:
            self._is_closed = True
            sidecar, self._sidecar = self._sidecar, None
        if sidecar is not None:
            sidecar.close()

    @property
    def sidecar_pid(self) -> int | None:
        """The id of the sidecar's process, None while there is none."""
        sidecar = self._sidecar
        return None if sidecar is None or sidecar.is_gone else sidecar.process.pid

    def _ask(
        self,
        server: Server,
        request: Mapping[str, Any],
        context: RunContext | None,
        seconds: float,
    ) -> Mapping[str, Any]:
        pending = _Pending()
        with contextlib.ExitStack() as stack:
            if context is not None:
                cancelled = {"failed": "The call was cancelled.", "kind": "cancelled"}
                stack.enter_context(context.aborting(lambda: pending.resolve(cancelled)))
            sidecar = self._running()
            fields = {**request, "server": server.to_json(), "seconds": seconds}
            with sidecar.asking(fields, pending):
                if not pending.done.wait(seconds + GRACE_SECONDS):
                    sidecar.kill()
            return _checked(pending.answer)

    def _running(self) -> "_Sidecar":
        with self._lock:
            if self._is_closed:
                raise Cancelled("The worker is shutting down.")
            if self._sidecar is not None:
                if not self._sidecar.is_gone:
                    return self._sidecar
                self._sidecar.close()
                self._schedule(self._sidecar)
                self._sidecar = None
            if time.monotonic() < self._not_before:
                raise McpFailed("The MCP client has failed; it is started again in a moment.")
            try:
                self._sidecar = _Sidecar(self._rules)
            except OSError as error:
                logging.getLogger(__name__).error("the MCP sidecar cannot be started: %s", error)
                raise McpFailed("The MCP client cannot be started.") from None
            return self._sidecar

    def _schedule(self, dead: "_Sidecar") -> None:
        if dead.lived_seconds > SHORT_LIFE_SECONDS:
            self._pause = 0.0
        self._not_before = time.monotonic() + self._pause
        self._pause = min(MAX_PAUSE_SECONDS, max(0.5, self._pause * 2))


class _Sidecar:
    """A running sidecar; its answers are read by a thread of its own."""

    def __init__(self, rules: str) -> None:
        self._socket, theirs = socket.socketpair()
        # Python code in the environment of this worker is found by that of the sidecar.
        root = str(Path(__file__).parents[2])
        with theirs:
            self.process = subprocess.Popen(  # noqa: S603 - of ours
                [sys.executable, "-m", "worker.mcp.sidecar", rules],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                env={**environment(), "PYTHONPATH": root},
                cwd="/",
                start_new_session=True,
            )
        # So that a sidecar which does not read cannot hold a sender for ever.
        self._socket.settimeout(_SOCKET_SECONDS)
        self._sending = threading.Lock()
        self._lock = threading.Lock()
        self._pending: dict[int, _Pending] = {}
        self._numbers = itertools.count(1)
        self._began = time.monotonic()
        self.lived_seconds = 0.0
        self.is_gone = False
        threading.Thread(target=self._read, name="mcp", daemon=True).start()

    @contextlib.contextmanager
    def asking(self, request: Mapping[str, Any], pending: _Pending) -> Iterator[None]:
        """Send a request whose answer goes to `pending`; cancelled if that was not the sidecar's.

        Raises:
            McpFailed: the request is too large.
        """
        number = next(self._numbers)
        line = json.dumps({"id": number, **request}).encode() + b"\n"
        if len(line) > MAX_REQUEST_BYTES:
            raise McpFailed("The arguments are too large.")
        with self._lock:
            if self.is_gone:
                pending.resolve(None)
            else:
                self._pending[number] = pending
        try:
            if not pending.done.is_set():
                self._send(line)
            yield
        finally:
            with self._lock:
                unanswered = self._pending.pop(number, None) is not None
            if unanswered:
                self._send(json.dumps({"id": number, "do": "cancel"}).encode() + b"\n")

    def kill(self) -> None:
        """End it at once; everything that it is asked fails."""
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()

    def close(self) -> None:
        """Let it end its servers, then itself."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        try:
            self.process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            self.process.wait()

    def _send(self, line: bytes) -> None:
        try:
            with self._sending:
                self._socket.sendall(line)
        except OSError:
            # Half a line may have been sent: nothing that follows would be understood.
            self.kill()

    def _read(self) -> None:
        chunks: list[bytes] = []
        try:
            while True:
                try:
                    data = self._socket.recv(65536)
                except TimeoutError:
                    continue
                if not data:
                    break
                *lines, rest = data.split(b"\n")
                for line in lines:
                    self._take(json.loads(b"".join([*chunks, line])))
                    chunks = []
                chunks.append(rest)
        except OSError:
            pass  # reset: it is gone all the same
        finally:
            with self._lock:
                self.is_gone = True
                self.lived_seconds = time.monotonic() - self._began
                left, self._pending = list(self._pending.values()), {}
            self._socket.close()
            for pending in left:
                pending.resolve(None)

    def _take(self, answer: Mapping[str, Any]) -> None:
        with self._lock:
            pending = self._pending.pop(answer["id"], None)
        if pending is not None:
            pending.resolve(answer)


def _checked(answer: Mapping[str, Any] | None) -> Mapping[str, Any]:
    if answer is None:
        raise McpFailed("The MCP client broke off; nobody knows whether the call was carried out.")
    match answer.get("kind"):
        case None:
            return answer
        case "changed":
            tools = [Description.from_json(fields) for fields in answer["tools"]]
            raise ChangedTools(answer["failed"], tools)
        case "cancelled":
            raise Cancelled(answer["failed"])
    raise McpFailed(answer["failed"])
