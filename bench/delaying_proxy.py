"""A TCP proxy that stands for a network: whatever passes arrives later, in either direction.

    python -m bench.delaying_proxy SECONDS ADDRESS:PORT UPSTREAM [ADDRESS:PORT UPSTREAM …]

UPSTREAM is the path of a socket, or a port of this machine. Its own cost is the same without a
delay, so what is compared is SECONDS of 0 with others. Linux could do it with `tc netem`, which not
every kernel has, and only as root.
"""

import contextlib
import select
import socket
import sys
import time
from collections import deque

_READ_BYTES = 1 << 18


class Proxy:
    """All connections, in one loop. What is under way leaves in the order in which it came."""

    def __init__(self, seconds: float) -> None:
        """Begin without ports; `seconds` is the time of one way."""
        self._seconds = seconds
        self._epoll = select.epoll()
        self._listeners: dict[int, tuple[socket.socket, str]] = {}
        self._peers: dict[int, tuple[socket.socket, socket.socket]] = {}  # the source, the target
        self._under_way: deque[tuple[float, socket.socket, bytes]] = deque()

    def listen(self, address: str, port: int, upstream: str) -> None:
        listener = socket.create_server((address, port), backlog=1024)
        self._listeners[listener.fileno()] = (listener, upstream)
        self._epoll.register(listener, select.EPOLLIN)

    def serve(self) -> None:
        """Serve until the process is killed."""
        while True:
            timeout = None
            if self._under_way:
                timeout = max(0.0, self._under_way[0][0] - time.perf_counter())
            # By `select`, since the time-outs of `epoll` are whole milliseconds.
            select.select([self._epoll], [], [], timeout)
            for number, _ in self._epoll.poll(0):
                if number in self._listeners:
                    self._accept(*self._listeners[number])
                elif number in self._peers:
                    self._read(*self._peers[number])
            self._deliver()

    def _accept(self, listener: socket.socket, upstream: str) -> None:
        client, _ = listener.accept()
        if upstream.isdigit():
            server = socket.create_connection(("127.0.0.1", int(upstream)))
        else:
            server = socket.socket(socket.AF_UNIX)
            server.connect(upstream)
        for source, target in ((client, server), (server, client)):
            if source.family != socket.AF_UNIX:
                source.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._peers[source.fileno()] = (source, target)
            self._epoll.register(source, select.EPOLLIN)

    def _read(self, source: socket.socket, target: socket.socket) -> None:
        data = b""
        with contextlib.suppress(ConnectionError):
            data = source.recv(_READ_BYTES)
        if not data:
            self._epoll.unregister(source)
            del self._peers[source.fileno()]
        self._under_way.append((time.perf_counter() + self._seconds, target, data))

    def _deliver(self) -> None:
        while self._under_way and self._under_way[0][0] <= time.perf_counter():
            _, target, data = self._under_way.popleft()
            with contextlib.suppress(OSError):  # it is gone
                if data:
                    target.sendall(data)
                else:
                    target.shutdown(socket.SHUT_WR)


def main() -> None:
    seconds, *places = sys.argv[1:]
    proxy = Proxy(float(seconds))
    for place, upstream in zip(places[::2], places[1::2], strict=True):
        address, _, port = place.rpartition(":")
        proxy.listen(address, int(port), upstream)
    proxy.serve()


if __name__ == "__main__":
    main()
