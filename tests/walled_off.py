"""A network without any route: its processes reach one server, through a Unix socket, and nobody.

`unshare --net python -m tests.walled_off SOCKET PORT COMMAND…` executes the command where the
loopback interface is the only one. Port PORT of it leads to SOCKET. Outside, `Recorder` serves that
socket, forwards to the server and keeps every byte that passes.
"""

import fcntl
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

_SIOCSIFFLAGS = 0x8914
_IFF_UP_AND_RUNNING = 0x41


class Recorder:
    """A forwarder from a Unix socket to a port of this machine; `captured` is what has passed."""

    def __init__(self, path: Path, port: int) -> None:
        self.captured = bytearray()
        self._port = port
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(64)
        self._acceptor = threading.Thread(target=self._accept, daemon=True)
        self._acceptor.start()

    def close(self) -> None:
        """End every connection and the listener."""
        for one in (self._listener, *self._sockets):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        self._acceptor.join(60)
        for one in (self._listener, *self._sockets):
            one.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                inside, _ = self._listener.accept()
                outside = socket.create_connection(("127.0.0.1", self._port))
                self._sockets += [inside, outside]
                _join(inside, outside, self._keep)

    def _keep(self, data: bytes) -> None:
        with self._lock:
            self.captured += data


def _ignore(_data: bytes) -> None:
    pass


def _join(
    one: socket.socket, other: socket.socket, keep: Callable[[bytes], None] = _ignore
) -> None:
    for source, target in ((one, other), (other, one)):
        threading.Thread(target=_copy, args=(source, target, keep), daemon=True).start()


def _copy(source: socket.socket, target: socket.socket, keep: Callable[[bytes], None]) -> None:
    with suppress(OSError):
        while data := source.recv(65_536):
            keep(data)
            target.sendall(data)
    with suppress(OSError):
        target.shutdown(socket.SHUT_WR)


def _raise_loopback() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = struct.pack("16sh14x", b"lo", _IFF_UP_AND_RUNNING)
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, request)


def _relay(listener: socket.socket, path: str) -> None:
    while True:
        inside, _ = listener.accept()
        outside = socket.socket(socket.AF_UNIX)
        outside.connect(path)
        _join(inside, outside)


def main(path: str, port: int, command: list[str]) -> int:
    """Execute the command in this network; SIGTERM is passed on to it."""
    _raise_loopback()
    listener = socket.create_server(("127.0.0.1", port))
    threading.Thread(target=_relay, args=(listener, path), daemon=True).start()
    child = subprocess.Popen(command)
    signal.signal(signal.SIGTERM, lambda number, _frame: child.send_signal(number))
    return child.wait()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), sys.argv[3:]))
