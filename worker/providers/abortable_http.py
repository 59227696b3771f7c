"""An HTTP client whose connections another thread can cut, before the first byte too.

Closing a response from another thread neither wakes its reader nor closes the
socket; shutting the socket down does both within a millisecond.
"""

import contextlib
import socket
import ssl
from functools import cache
from typing import Any

import httpcore2
import httpx2

#: No byte from the provider for so long is a time-out.
IDLE_SECONDS = 30.0
CONNECT_SECONDS = 5.0


@cache
def _ssl_context() -> ssl.SSLContext:
    # Shared: reading the certificates costs more than everything else of a client.
    return httpx2.create_ssl_context()


class _RecordingBackend(httpcore2.SyncBackend):
    def __init__(self) -> None:
        super().__init__()
        self.sockets: set[socket.socket] = set()

    def connect_tcp(self, *args: Any, **kwargs: Any) -> httpcore2.NetworkStream:
        stream = super().connect_tcp(*args, **kwargs)
        self.sockets.add(stream.get_extra_info("socket"))
        return stream


class AbortableClient(httpx2.Client):
    """For one run; no proxy and no other setting of the environment is used."""

    def __init__(self) -> None:
        self._backend = _RecordingBackend()
        transport = httpx2.HTTPTransport(verify=_ssl_context(), trust_env=False)
        # A private attribute: the version is pinned, and a test aborts a silent server.
        transport._pool._network_backend = self._backend
        super().__init__(
            transport=transport,
            trust_env=False,
            timeout=httpx2.Timeout(IDLE_SECONDS, connect=CONNECT_SECONDS),
        )

    def abort(self) -> None:
        """Cut all connections; reads and writes in other threads fail at once."""
        for connection in list(self._backend.sockets):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
