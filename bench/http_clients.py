"""Many clients in one process, as cheap as Python lets them be: they share the service's machine.

One epoll loop, requests encoded beforehand, answers cut by their length, streams looked through for
the numbers of their events and no more.
"""

import json
import re
import select
import socket
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import urlsplit

_READ_BYTES = 1 << 18
_LENGTH = re.compile(rb"\r\ncontent-length: (\d+)\r\n", re.IGNORECASE)
#: An event's number: the last line of its frame.
_ID = re.compile(rb"\nid: (\d+)\n\n")
#: The type of an event, as the payload has it.
_LAST_TYPE = re.compile(rb'"type":"(run\.(?:completed|failed|cancelled))"')


class Loop:
    """Sockets and what is to be done when one can be read."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._on_input: dict[int, Callable[[], None]] = {}

    def add(self, sock: socket.socket, on_input: Callable[[], None]) -> None:
        self._on_input[sock.fileno()] = on_input
        self._epoll.register(sock, select.EPOLLIN)

    def remove(self, sock: socket.socket) -> None:
        if self._on_input.pop(sock.fileno(), None) is not None:
            self._epoll.unregister(sock)

    def turn(self, timeout: float = 0.05) -> None:
        """Serve what is there, once."""
        for number, _ in self._epoll.poll(timeout):
            if (on_input := self._on_input.get(number)) is not None:
                on_input()

    def until(self, done: Callable[[], object], seconds: float, what: str) -> None:
        """Serve until `done`. Raises: TimeoutError."""
        deadline = time.perf_counter() + seconds
        while not done():
            self.turn()
            if time.perf_counter() > deadline:
                raise TimeoutError(f"{what}: not within {seconds:g} s")

    def pause(self, seconds: float) -> None:
        """Serve for this number of seconds."""
        end = time.perf_counter() + seconds
        while (left := end - time.perf_counter()) > 0:
            self.turn(min(left, 0.05))


class Target:
    """The server and the user of requests, and the trace that they are part of, if any."""

    def __init__(self, url: str, token: str, *, traceparent: str | None = None) -> None:
        parts = urlsplit(url)
        self.address = (str(parts.hostname), int(parts.port or 80))
        self._head = f"Host: {parts.netloc}\r\nAuthorization: Bearer {token}\r\n"
        if traceparent is not None:
            self._head += f"traceparent: {traceparent}\r\n"
        self._url = url

    def with_token(self, token: str) -> "Target":
        """Return the same server for another user."""
        return Target(self._url, token)

    def request(self, method: str, path: str, body: Any = None, *, accept: str = "") -> bytes:
        """Encode a request."""
        data = b"" if body is None else json.dumps(body).encode()
        kind = "Content-Type: application/json\r\n" if data else ""
        kind += f"Accept: {accept}\r\n" if accept else ""
        length = f"Content-Length: {len(data)}\r\n" if data or method == "POST" else ""
        return f"{method} {path} HTTP/1.1\r\n{self._head}{kind}{length}\r\n".encode() + data

    def connect(self) -> socket.socket:
        sock = socket.create_connection(self.address)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setblocking(False)
        return sock


Request = tuple[str, str, Any]  # method, path, body
Answer = Callable[[int, bytes, float, float], None]


class Caller:
    """A keep-alive connection: a request, its response, the next request.

    One that the server has closed between two requests, after five idle seconds, is opened again.

    `on_answer(status, body, sent, answered)`; the times are of `time.perf_counter`.
    """

    def __init__(self, loop: Loop, target: Target) -> None:
        self._loop = loop
        self._target = target
        self._buffer = b""
        self._on_answer: Answer | None = None
        self._sent = 0.0
        self._open()

    def _open(self) -> None:
        self._is_open = True
        self._sock = self._target.connect()
        self._loop.add(self._sock, self._read)

    def call(self, request: bytes, on_answer: Answer) -> None:
        if self._has_ended():
            self.close()
            self._open()
        self._on_answer = on_answer
        self._sent = time.perf_counter()
        self._sock.send(request)

    def _has_ended(self) -> bool:
        """Return whether the connection is closed, though the loop may not have looked yet."""
        try:
            return not self._is_open or not self._sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except ConnectionError:
            return True

    def close(self) -> None:
        if self._is_open:
            self._is_open = False
            self._loop.remove(self._sock)
            self._sock.close()

    def _read(self) -> None:
        try:
            data = self._sock.recv(_READ_BYTES)
        except ConnectionError:
            data = b""
        if not data:
            self.close()
            if self._on_answer is not None:
                raise ConnectionError("the server closed a connection")
            return
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        length = _LENGTH.search(self._buffer, 0, end + 4)
        total = end + 4 + (int(length[1]) if length else 0)
        if len(self._buffer) < total:
            return
        status, body = int(self._buffer[9:12]), self._buffer[end + 4 : total]
        self._buffer = self._buffer[total:]
        on_answer, self._on_answer = self._on_answer, None
        assert on_answer is not None
        on_answer(status, body, self._sent, time.perf_counter())


def call_all(
    loop: Loop,
    targets: list[Target],
    requests: Iterable[Request],
    *,
    connections: int = 32,
    on_answer: Answer | None = None,
    seconds: float = 120.0,
) -> list[tuple[int, bytes, float]]:
    """Make the requests over `connections` connections, spread over the targets.

    Each answer is (status, body, seconds), in the order of the answers.
    """
    pending = deque(requests)
    answers: list[tuple[int, bytes, float]] = []
    callers = [(Caller(loop, one), one) for one in (targets * connections)[:connections]]
    wanted = len(pending)

    def next_call(caller: Caller, target: Target) -> None:
        if pending:
            caller.call(target.request(*pending.popleft()), lambda *a: answered(caller, target, *a))

    def answered(
        caller: Caller, target: Target, status: int, body: bytes, sent: float, at: float
    ) -> None:
        answers.append((status, body, at - sent))
        if on_answer is not None:
            on_answer(status, body, sent, at)
        next_call(caller, target)

    for caller, target in callers:
        next_call(caller, target)
    try:
        loop.until(lambda: len(answers) >= wanted, seconds, f"{wanted} answers")
    finally:
        for caller, _ in callers:
            caller.close()
    return answers


class Follower:
    """A client of an event stream; it counts, and checks that no number is missing."""

    def __init__(
        self,
        loop: Loop,
        target: Target,
        run_id: str,
        *,
        after_seq: int = 0,
        on_data: Callable[["Follower", bytes, float], None] | None = None,
        on_refused: Callable[["Follower", bytes], None] | None = None,
        keep: bool = False,
        request: bytes | None = None,
    ) -> None:
        """Open the stream of a run, or the one that the response to `request` is."""
        self.run_id = run_id
        self.cursor = after_seq
        self.opened_at: float | None = None
        self.ended_at: float | None = None
        self.end: str | None = None  # the type of the terminal event
        self.holes = 0
        self.received = 0  # events
        self.text = bytearray()  # everything, if kept
        self._keep = keep
        self._loop = loop
        self._tail = b""
        self._on_data = on_data
        self._on_refused = on_refused
        self.is_open = True
        self._sock = target.connect()
        self.asked_at = time.perf_counter()
        path = f"/v1/runs/{run_id}/events?after_seq={after_seq}"
        self._sock.send(request or target.request("GET", path))
        loop.add(self._sock, self._read)

    def close(self) -> None:
        """Leave without a farewell."""
        if self.is_open:
            self.is_open = False
            self._loop.remove(self._sock)
            self._sock.close()

    def _read(self) -> None:
        try:
            data = self._sock.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except ConnectionError:
            data = b""
        if not data:
            self.close()
            return
        now = time.perf_counter()
        if self.opened_at is None:
            self.opened_at = now
            if not data.startswith((b"HTTP/1.1 200", b"HTTP/1.1 201")):
                self.close()
                if self._on_refused is not None:
                    self._on_refused(self, data)
                    return
                raise AssertionError(data[:300].decode(errors="replace"))
        if self._keep:
            self.text += data
        if self._tail:
            data = self._tail + data
        cut = data.rfind(b"\n\n") + 2
        if cut < 2:
            self._tail = data
            return
        self._tail = data[cut:]
        whole = data[:cut]
        numbers = _ID.findall(whole)
        if numbers:
            self.received += len(numbers)
            last = int(numbers[-1])
            if int(numbers[0]) != self.cursor + 1 or last != self.cursor + len(numbers):
                self.holes += 1
            self.cursor = last
            if (ended := _LAST_TYPE.search(whole, max(0, len(whole) - 2000))) is not None:
                self.end = ended[1].decode()
                self.ended_at = now
        if self._on_data is not None:
            self._on_data(self, whole, now)
