"""TLS handshakes of connections to checked addresses, which end when they are cut."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.processes


@pytest.mark.parametrize("patch", ["", "from gevent import monkey; monkey.patch_all()"])
def test_a_cut_ends_a_handshake_that_never_ends(patch: str) -> None:
    """A server may send a byte in less than any time limit, again and again."""
    program = f"""
{patch}
import contextlib, httpcore2, socket, ssl, threading, time
from arkloop.shared.security.checked_http import CheckedBackend

listening = socket.create_server(("127.0.0.1", 0))
def drip():
    connection, _ = listening.accept()
    connection.sendall(bytes([22, 3, 3, 64, 0]))  # the head of a record of 16 KiB
    with contextlib.suppress(OSError):  # once the client has closed it
        while True:
            time.sleep(0.05)
            connection.sendall(b"x")
threading.Thread(target=drip, daemon=True).start()
backend = CheckedBackend(None)
stream = backend.connect_tcp(*listening.getsockname(), timeout=5)
threading.Timer(0.5, backend.cut).start()
began = time.monotonic()
try:
    stream.start_tls(ssl.create_default_context(), "example.com", timeout=5)
except httpcore2.ConnectError:
    print(time.monotonic() - began < 30)
"""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=True)

    assert ("True\n", "") == (done.stdout, done.stderr)
