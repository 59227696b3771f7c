"""An HTTP client whose connections another thread can cut, before the first byte too.

Closing a response from another thread neither wakes its reader nor closes the
socket; shutting the socket down does both within a millisecond.
"""

import contextlib
import socket
import ssl
from functools import cache
from typing import Any, cast

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
        self._sockets: list[socket.socket] = []
        self._is_cut = False

    def connect_tcp(self, *args: Any, **kwargs: Any) -> httpcore2.NetworkStream:
        stream: Any = super().connect_tcp(*args, **kwargs)
        self._record(stream)
        start_tls = stream.start_tls

        def start_recorded_tls(*args: Any, **kwargs: Any) -> httpcore2.NetworkStream:
            # TLS takes the descriptor over into a socket of its own.
            secured: httpcore2.NetworkStream = start_tls(*args, **kwargs)
            self._record(secured)
            return secured

        stream.start_tls = start_recorded_tls
        return cast(httpcore2.NetworkStream, stream)

    def cut(self) -> None:
        """Shut down every connection, those still to come included."""
        self._is_cut = True
        for connection in self._sockets:
            with contextlib.suppress(OSError, ValueError):
                connection.shutdown(socket.SHUT_RDWR)

    def _record(self, stream: httpcore2.NetworkStream) -> None:
        self._sockets.append(stream.get_extra_info("socket"))
        if self._is_cut:
            self.cut()


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
        """Cut all connections for good; reads and writes in other threads fail at once."""
        self._backend.cut()
