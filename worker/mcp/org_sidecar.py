"""The worker's end of the process that forks sidecars, and of each sidecar."""

import contextlib
import itertools
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from arkloop.worker.mcp import McpFailed
from arkloop.worker.mcp.grants import SETTLE_SECONDS
from arkloop.worker.mcp.launcher import environment

MAX_REQUEST_BYTES = 2 * 1024 * 1024
#: A process that was asked to end and has not done so by then is killed.
END_SECONDS = 12.0
_SOCKET_SECONDS = 5.0
#: For the answer to a request that was cancelled.
CANCEL_SECONDS = SETTLE_SECONDS + 1.0
#: What is large goes back to the system as soon as it is free; by default glibc keeps more with
#: each large block that it has seen.
_MALLOC = {"MALLOC_ARENA_MAX": "2", "MALLOC_MMAP_THRESHOLD_": str(128 * 1024)}


@dataclass(slots=True, eq=False)
class Pending:
    """A request; `answer` is None where the sidecar was lost.

    `grant` is the newest access that it has led to, which has to be stored.
    `on_progress` is called with each report of its progress, by the thread that reads answers.
    """

    on_progress: Callable[[Mapping[str, Any]], None] | None = None
    done: threading.Event = field(default_factory=threading.Event)
    #: Set as soon as nothing more comes of the sidecar.
    over: threading.Event = field(default_factory=threading.Event)
    #: Set with each grant, and at the end.
    news: threading.Event = field(default_factory=threading.Event)
    answer: Mapping[str, Any] | None = None
    grant: Mapping[str, Any] | None = None
    heard_at: float = field(default_factory=time.monotonic)

    def resolve(self, answer: Mapping[str, Any] | None) -> None:
        self.answer = answer
        self.done.set()
        self.news.set()

    def end(self, answer: Mapping[str, Any] | None) -> None:
        """Take the sidecar's answer, None where it was lost: a request may be cancelled by then."""
        if answer is not None or not self.done.is_set():
            self.resolve(answer)
        self.over.set()

    def hand_over(self, grant: Mapping[str, Any]) -> None:
        self.grant = grant
        self.news.set()

    def report(self, progress: Mapping[str, Any]) -> None:
        self.heard_at = time.monotonic()
        if self.on_progress is not None:
            self.on_progress(progress)

    def wait(self, silent_seconds: float, on_grant: Callable[[], None]) -> bool:
        """Wait for the answer, and call `on_grant` for each grant that comes before it.

        False if nothing was heard for this time.
        """
        while not self.done.is_set():
            left = self.heard_at + silent_seconds - time.monotonic()
            if left <= 0:
                return False
            if self.news.wait(left):
                self.news.clear()
                on_grant()
        return True


class Forker:
    """A process of `worker.mcp.forker`. The sidecars that it has forked can outlive it."""

    def __init__(self, rules: str) -> None:
        self._socket, theirs = socket.socketpair()
        # Python code in the environment of this worker is found by that of the sidecars.
        root = str(Path(__file__).parents[3])
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603 - our own program
                [sys.executable, "-m", "arkloop.worker.mcp.forker", rules],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                env={**environment(), **_MALLOC, "PYTHONPATH": root},
                cwd="/",
                start_new_session=True,
            )
        self._socket.settimeout(_SOCKET_SECONDS)
        self._began = time.monotonic()

    @property
    def is_gone(self) -> bool:
        return self._process.poll() is not None

    @property
    def lived_seconds(self) -> float:
        return time.monotonic() - self._began

    def fork(self) -> "OrgSidecar":
        """Start a sidecar, which is lost at once if it cannot be forked. Raises: OSError."""
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                socket.send_fds(self._socket, [b"."], [theirs.fileno()])
            except OSError:
                ours.close()
                self._process.kill()
                raise
        return OrgSidecar(ours)

    def close(self) -> None:
        """Wait until the forker has ended, after the sidecars that it had to end."""
        self._socket.close()
        try:
            self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class OrgSidecar:
    """The sidecar of one org; its answers are read by a thread of its own."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        # So that a sidecar which does not read cannot hold a sender for ever.
        self._socket.settimeout(_SOCKET_SECONDS)
        self._sending = threading.Lock()
        self._lock = threading.Lock()
        self._pending: dict[int, Pending] = {}
        self._numbers = itertools.count(1)
        self._began = time.monotonic()
        self.pid: int | None = None  # as soon as it has said so
        self.users = 0
        self.used_at = self._began
        self.lived_seconds = 0.0
        self.is_gone = False
        threading.Thread(target=self._read, name="mcp", daemon=True).start()

    @contextlib.contextmanager
    def asking(self, request: Mapping[str, Any], pending: Pending) -> Iterator[None]:
        """Send a request whose answer goes to `pending`; cancelled if that was not the sidecar's.

        One with access then waits for a grant that is on its way: the one before it may be spent.

        Raises:
            McpFailed: the request is too large.
        """
        number = next(self._numbers)
        line = json.dumps({"id": number, **request}).encode() + b"\n"
        if len(line) > MAX_REQUEST_BYTES:
            raise McpFailed("The arguments are too large.")
        with self._lock:
            if self.is_gone:
                pending.end(None)
            else:
                self._pending[number] = pending
        is_sent = not pending.done.is_set()
        try:
            if is_sent:
                self._send(line)
            yield
        finally:
            if is_sent and not pending.over.is_set():
                self._send(json.dumps({"id": number, "do": "cancel"}).encode() + b"\n")
                if request.get("access") is not None:
                    pending.over.wait(CANCEL_SECONDS)
            with self._lock:
                self._pending.pop(number, None)

    def release(self, held: str) -> None:
        """End a call that is held for a person's reply."""
        self._send(json.dumps({"do": "release", "held": held}).encode() + b"\n")

    def end(self) -> None:
        """End the sidecar's servers, then itself; all requests to it fail at once.

        One that hangs is ended by its own watchdog.
        """
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def _send(self, line: bytes) -> None:
        try:
            with self._sending:
                self._socket.sendall(line)
        except OSError:
            # Half a line may have been sent: nothing that follows would be understood.
            self.end()

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
                pending.end(None)

    def _take(self, answer: Mapping[str, Any]) -> None:
        if answer["id"] == 0:
            self.pid = answer["pid"]
        is_over = "progress" not in answer and "grant" not in answer
        with self._lock:
            pending = self._pending.get(answer["id"])
            if is_over:
                self._pending.pop(answer["id"], None)
        if pending is not None and is_over:
            pending.end(answer)
        elif pending is not None and "grant" in answer:
            pending.hand_over(answer["grant"])
        elif pending is not None:
            pending.report(answer["progress"])
