"""An HTTP client whose connections another thread can cut, before the first byte too.

Closing a response from another thread neither wakes its reader nor closes the
socket; shutting the socket down does both within a millisecond.

For what an org has entered it also keeps to the addresses that it may reach:
a name is resolved once, and the connection goes to the address that was checked.
"""

import contextlib
import socket
import ssl
from functools import cache
from typing import Any, cast

import httpcore2
import httpx2

from shared import egress
from worker.providers.bounded_response import BoundedTransport

#: No byte from the provider for so long is a time-out.
IDLE_SECONDS = 30.0
CONNECT_SECONDS = 5.0

#: What goes to a server that an org has named. The SDKs take more from the worker's environment:
#: the operator's organisation, and headers with who knows what in them.
_SENT_HEADERS = frozenset(
    {
        "accept",
        "accept-encoding",
        "anthropic-version",
        "authorization",
        "connection",
        "content-length",
        "content-type",
        "host",
        "transfer-encoding",
        "user-agent",
        "x-api-key",
    }
)


@cache
def _ssl_context() -> ssl.SSLContext:
    # Shared: reading the certificates costs more than everything else of a client.
    return httpx2.create_ssl_context()


class _RecordingBackend(httpcore2.SyncBackend):
    def __init__(self, policy: egress.Policy | None) -> None:
        super().__init__()
        self._policy = policy
        self._sockets: list[socket.socket] = []
        self._is_cut = False

    def connect_tcp(
        self, host: str, port: int, *args: Any, **kwargs: Any
    ) -> httpcore2.NetworkStream:
        stream: Any = self._connect(host, port, *args, **kwargs)
        self._record(stream)
        start_tls = stream.start_tls

        def start_recorded_tls(*args: Any, **kwargs: Any) -> httpcore2.NetworkStream:
            # TLS takes the descriptor over into a socket of its own.
            secured: httpcore2.NetworkStream = start_tls(*args, **kwargs)
            self._record(secured)
            return secured

        stream.start_tls = start_recorded_tls
        return cast(httpcore2.NetworkStream, stream)

    def _connect(self, host: str, port: int, *args: Any, **kwargs: Any) -> httpcore2.NetworkStream:
        """To the name; under a policy to the first address of it that answers.

        TLS and the Host header have the name in either case: they come from the URL.
        """
        if self._policy is None:
            return super().connect_tcp(host, port, *args, **kwargs)
        try:
            addresses = egress.resolve(host, port, self._policy)
        except OSError as error:
            raise httpcore2.ConnectError(str(error)) from error
        for address in addresses[:-1]:
            with contextlib.suppress(httpcore2.ConnectError, httpcore2.ConnectTimeout):
                return super().connect_tcp(address, port, *args, **kwargs)
        return super().connect_tcp(addresses[-1], port, *args, **kwargs)

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
    """For one run; no proxy and no other setting of the environment is used, no redirect followed.

    With a `policy` it connects to the addresses that this allows, else `egress.Refused` is raised.
    """

    def __init__(self, policy: egress.Policy | None = None) -> None:
        self._backend = _RecordingBackend(policy)
        transport = BoundedTransport(verify=_ssl_context(), trust_env=False)
        # A private attribute: the version is pinned, and a test aborts a silent server.
        transport._pool._network_backend = self._backend
        super().__init__(
            transport=transport,
            trust_env=False,
            timeout=httpx2.Timeout(IDLE_SECONDS, connect=CONNECT_SECONDS),
            event_hooks={"request": [_keep_to_sent_headers] if policy is not None else []},
        )

    def abort(self) -> None:
        """Cut all connections for good; reads and writes in other threads fail at once."""
        self._backend.cut()


def _keep_to_sent_headers(request: httpx2.Request) -> None:
    for name in set(request.headers) - _SENT_HEADERS:
        del request.headers[name]
