"""The receiver of webhooks outlives the connections of its clients."""

import socket
import struct
import subprocess
import sys
from pathlib import Path

from arkloop.cli.dev.embedded_server import free_port
from tests.waiting import eventually

ROOT = Path(__file__).parents[2]
REQUEST = b"POST / HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}"


def test_a_reset_connection_ends_no_other_one() -> None:
    """A sender that is killed resets its connections; requests of others are still confirmed."""
    port = free_port()
    command = [sys.executable, "-m", "bench.baselines.receiver", str(port)]
    with subprocess.Popen(command, cwd=ROOT) as receiver:
        try:
            eventually(lambda: _listens(port))
            with _connected(port) as reset, _connected(port) as other:
                _confirm(reset)
                reset.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                reset.close()
                _confirm(other)
                _confirm(other)
        finally:
            receiver.kill()


def _listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def _connected(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=10)


def _confirm(client: socket.socket) -> None:
    client.sendall(REQUEST)
    assert client.recv(100).startswith(b"HTTP/1.1 204 ")
