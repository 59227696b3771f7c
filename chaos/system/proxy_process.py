"""The process behind a `FaultProxy`: one greenlet for each direction of each connection."""

import argparse
import json
import resource
import socket as sockets
import struct
from contextlib import suppress
from typing import Any

import gevent
from gevent import socket
from gevent.event import Event

CHUNK_BYTES = 65536
UPSTREAM_SECONDS = 5
#: Seconds of silence after a swallowed request that end a server's response.
SETTLE_SECONDS = 5.0

_RESET = struct.pack("ii", 1, 0)


class Faults:
    """The faults of connections at this moment, and the counts of their effects."""

    def __init__(self, upstream: str) -> None:
        self.upstream = upstream
        self.mode = "pass"
        self.seconds = 0.0
        self.moving = Event()
        self.moving.set()
        self.cut: Cut | None = None
        self.pattern = b""
        self.times = 0
        self.open: set[Connection] = set()
        self.counts = dict.fromkeys(
            ("accepted", "reset", "answers_cut", "to_client", "to_server"), 0
        )

    def change(self, mode: str, seconds: float) -> None:
        """Change to a mode, without what was added to the last one."""
        lossy = [connection for connection in self.open if connection.has_lost]
        self.mode, self.seconds = mode, seconds
        self.cut, self.times = None, 0
        if mode == "stall":
            self.moving.clear()
        else:
            self.moving.set()
        # An answer to a later request would be taken for the one that was lost.
        for connection in list(self.open) if mode == "refuse" else lossy:
            connection.reset()

    def connect(self) -> Any:
        """Open a new connection to the server."""
        if self.upstream.startswith("/"):
            made = socket.socket(sockets.AF_UNIX)
            try:
                made.settimeout(UPSTREAM_SECONDS)
                made.connect(self.upstream)
            except OSError:
                made.close()
                raise
        else:
            host, _, port = self.upstream.rpartition(":")
            made = socket.create_connection((host, int(port)), UPSTREAM_SECONDS)
            made.setsockopt(sockets.IPPROTO_TCP, sockets.TCP_NODELAY, 1)
        made.settimeout(None)
        return made

    def takes_answer_to(self, data: bytes) -> bool:
        """Return whether `cut_answer_to` waits for these bytes of a client; counts them."""
        if not self.times or self.pattern not in data:
            return False
        self.times -= 1
        return True


class Cut:
    """A cut after some bytes in one direction, for some connections."""

    def __init__(self, after: int, direction: str, connections: int | None) -> None:
        self.after = after
        self.direction = direction
        self.connections = connections


class Connection:
    """A client and its way to the server."""

    def __init__(self, faults: Faults, client: Any) -> None:
        self.faults = faults
        self.client = client
        self.server: Any = None
        self.has_lost = False
        self._cut: Cut | None = None
        self._bytes_left = 0
        self._swallows = False
        self._is_abandoned = False
        self._is_ending = False
        self._tail = b""  # a pattern may come in two chunks

    def serve(self) -> None:
        """Serve both directions, until each has ended or one is broken."""
        self.faults.open.add(self)
        try:
            self.faults.moving.wait()
            self.server = self.faults.connect()
            if self not in self.faults.open:  # it was reset meanwhile
                return
            back = gevent.spawn(self._pump, self.server, self.client, "to_client")
            self._pump(self.client, self.server, "to_server")
            back.join()
        except OSError:
            self.reset()
        finally:
            self._close()

    def abandon(self) -> None:
        """Move nothing any more, and do not tell either end."""
        self._is_abandoned = True

    def reset(self) -> None:
        """End it without a farewell, on both sides."""
        if self in self.faults.open:
            self.faults.counts["reset"] += 1
            for end in (self.client, self.server):
                # A unix socket has no reset; its other end sees a broken pipe.
                with suppress(OSError, AttributeError):
                    end.setsockopt(sockets.SOL_SOCKET, sockets.SO_LINGER, _RESET)
            self._close()

    def _close(self) -> None:
        self.faults.open.discard(self)
        self.client.close()
        if self.server is not None:
            self.server.close()

    def _pump(self, source: Any, sink: Any, direction: str) -> None:
        try:
            while data := source.recv(CHUNK_BYTES):
                self._pass(data, sink, direction)
            self._hold()
            if self._is_abandoned:
                Event().wait()  # until one end is reset
            if self.faults.mode == "half_open" and direction == "to_client":
                self.has_lost = True
            else:
                sink.shutdown(sockets.SHUT_WR)
        except OSError:
            if not self._is_ending:
                self.reset()

    def _pass(self, data: bytes, sink: Any, direction: str) -> None:
        """Pass data on. Raises OSError when the connection is to end."""
        if direction == "to_client" and self._swallows:
            self._end_without_answer()
        self._hold()
        if self._is_abandoned:
            return
        if self.faults.mode == "half_open" and direction == "to_client":
            self.has_lost = True
            return
        cut = self.faults.cut
        if cut is not None and cut.direction == direction:
            if self._cut is not cut:
                self._cut, self._bytes_left = cut, cut.after
            if len(data) >= self._bytes_left:
                sink.sendall(data[: self._bytes_left])
                if cut.connections is not None:
                    cut.connections -= 1
                    if cut.connections == 0:
                        self.faults.cut = None
                raise ConnectionResetError
            self._bytes_left -= len(data)
        if direction == "to_server" and self.faults.times:
            if self.faults.takes_answer_to(self._tail + data):
                self._swallows = True
            self._tail = data[-len(self.faults.pattern) :]
        self.faults.counts[direction] += len(data)
        sink.sendall(data)

    def _hold(self) -> None:
        """Wait as long as the mode requires."""
        if self.faults.mode == "delay":
            gevent.sleep(self.faults.seconds)
        while not self.faults.moving.is_set():
            self.faults.moving.wait()

    def _end_without_answer(self) -> None:
        """Reset the client, as the server has begun to respond, and let the server finish."""
        self._is_ending = True
        self.faults.counts["answers_cut"] += 1
        self.client.setsockopt(sockets.SOL_SOCKET, sockets.SO_LINGER, _RESET)
        self.client.close()
        # A reset would take from the server what it has not read yet, such as the rest of a
        # pipeline; an orderly end does not.
        with suppress(OSError):
            self.server.shutdown(sockets.SHUT_WR)
            self.server.settimeout(SETTLE_SECONDS)
            while self.server.recv(CHUNK_BYTES):
                pass
        raise ConnectionResetError


class Listener:
    """The proxy's door: open, or closed so that the kernel refuses."""

    def __init__(self, faults: Faults, listener: Any) -> None:
        self._faults = faults
        self._listener = listener
        self._accepting = gevent.spawn(self._accept)

    def open(self) -> None:
        if self._accepting is None:
            self._listener.listen(1024)
            self._accepting = gevent.spawn(self._accept)

    def close(self) -> None:
        """Close, but stay bound, so that no other process gets the port meanwhile."""
        if self._accepting is not None:
            self._accepting.kill()
            self._accepting = None
            self._listener.shutdown(sockets.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:  # too many open files, or gone before it was accepted
                gevent.sleep(0.01)
                continue
            client.setsockopt(sockets.IPPROTO_TCP, sockets.TCP_NODELAY, 1)
            self._faults.counts["accepted"] += 1
            gevent.spawn(Connection(self._faults, client).serve)


def obey(order: dict[str, Any], faults: Faults, listener: Listener) -> dict[str, Any]:
    """Carry out one order of the handle; its answer."""
    reset = 0
    if "mode" in order:
        if order["mode"] == "refuse":
            listener.close()
        faults.change(order["mode"], order.get("seconds", 0.0))
        if order["mode"] != "refuse":
            listener.open()
    elif "cut" in order:
        faults.cut = Cut(order["cut"], order["direction"], order["connections"])
    elif "cut_now" in order:
        reset = len(faults.open)
        for connection in list(faults.open):
            connection.reset()
    elif "abandon" in order:
        for connection in faults.open:
            connection.abandon()
    elif "pattern" in order:
        faults.pattern, faults.times = bytes.fromhex(order["pattern"]), order["times"]
    if reset:
        return {"reset": reset}
    state = {"mode": faults.mode, "connections": len(faults.open), **faults.counts}
    return {**state, "reset": 0} if "cut_now" in order else state


def main() -> None:
    """Serve until the handle's end of the pair is closed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--listener", type=int, required=True)
    parser.add_argument("--orders", type=int, required=True)
    parser.add_argument("--upstream", required=True)
    options = parser.parse_args()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    faults = Faults(options.upstream)
    listener = Listener(faults, socket.socket(fileno=options.listener))
    orders = socket.socket(fileno=options.orders)
    buffer = b""
    while data := orders.recv(CHUNK_BYTES):
        *lines, buffer = (buffer + data).split(b"\n")
        for line in lines:
            orders.sendall(json.dumps(obey(json.loads(line), faults, listener)).encode() + b"\n")


if __name__ == "__main__":
    main()
