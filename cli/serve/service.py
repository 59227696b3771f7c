"""The requests of a worker of the customer: outbound HTTP, with its key in one header alone."""

import json
import socket
import threading
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from typing import Any

import httpx2

from arkloop.cli.client.client import Refused, refusal
from arkloop.cli.client.http_client import http_client
from arkloop.cli.client.server_address import ServerAddress

CONNECT_SECONDS = 5.0
#: A response that waits for work takes this much longer than it was asked to wait, at most.
SLACK_SECONDS = 10.0
#: What a heartbeat is given at least, however short its lease is.
MIN_TIMEOUT_SECONDS = 0.5
#: A gateway refuses a long body each time that it is sent.
TOO_LONG = 413


class Unreachable(Exception):
    """A service that does not respond, or is away for a moment.

    `refusal` is the response of something else: of a gateway, or of what is at a wrong URL.
    """

    def __init__(self, message: str, refusal: Refused | None = None) -> None:
        super().__init__(message)
        self.refusal = refusal


class Service:
    """Requests to the service on one connection, by one thread; any thread may end them.

    Any thread may also `read`, on a connection beside it.
    """

    def __init__(self, server: ServerAddress, path: str) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._end: int | None = None  # how connections are shut down
        self._http = http_client(
            server,
            timeout=httpx2.Timeout(SLACK_SECONDS, connect=CONNECT_SECONDS),
            headers={"Content-Type": "application/json"},
        )

    def post(
        self,
        verb: str,
        body: Mapping[str, Any],
        *,
        fields: Collection[str] = (),
        wait_seconds: float = 0,
        lease_seconds: float | None = None,
    ) -> dict[str, Any]:
        """Return the response's JSON, an object with at least these fields.

        A heartbeat gives up early enough to renew the lease of `lease_seconds` again.

        Raises:
            Unreachable: try again a little later.
            Refused: the service responded with another error.
        """
        content = encoded(body)
        timeout = _timeout(wait_seconds, lease_seconds)
        try:
            response = self._http.post(
                f"{self._path}:{verb}",
                content=content,
                timeout=timeout,
                extensions={"trace": self._trace},
            )
        except (httpx2.HTTPError, OSError) as error:
            raise Unreachable(str(error) or type(error).__name__) from error
        _check(response)
        try:
            value = response.json()
        except (ValueError, RecursionError) as error:
            raise Unreachable("the response is not JSON") from error
        if not isinstance(value, dict) or not all(name in value for name in fields):
            raise Unreachable("the response is not that of the service")  # but of a gateway
        return value

    def read(
        self, path: str, query: Mapping[str, Any], size: int, check: Callable[[], None]
    ) -> bytes:
        """Return the content of this size, in bytes, below the worker's path.

        `check` is called before each piece, and may raise.

        Raises:
            Unreachable, Refused: as `post`.
        """
        content = bytearray()
        try:
            with self._http.stream("GET", f"{self._path}/{path}", params=query) as response:
                if not response.is_success:
                    response.read()
                _check(response)
                for piece in response.iter_bytes():
                    check()
                    content += piece
                    if len(content) > size:
                        break
        except (httpx2.HTTPError, OSError) as error:
            raise Unreachable(str(error) or type(error).__name__) from error
        if len(content) != size:
            raise Unreachable("the response is not that of the service")
        return bytes(content)

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    def finish(self) -> None:
        """Send nothing more: the service gives no more work to a request that waits. A response
        that is on its way still arrives, unless a proxy breaks it off.
        """
        self._shut_down(socket.SHUT_WR)

    def abort(self) -> None:
        """Break the connection off: the service gives no more work to a request that waits."""
        self._shut_down(socket.SHUT_RDWR)

    @property
    def is_aborted(self) -> bool:
        """True once `abort` has been called: what fails since then fails by that."""
        return self._end == socket.SHUT_RDWR

    def _trace(self, event: str, info: Mapping[str, Any]) -> None:
        # TLS continues on the connection with a socket of its own.
        if event.endswith((".connect_tcp.complete", ".start_tls.complete")):
            with self._lock:
                self._socket = info["return_value"].get_extra_info("socket")
                self._shut_socket_down()

    def _shut_down(self, how: int) -> None:
        with self._lock:
            self._end = how
            self._shut_socket_down()

    def _shut_socket_down(self) -> None:
        if self._socket is not None and self._end is not None:
            with suppress(OSError):
                # The method of a socket with TLS would let its reader take ciphertext for text.
                socket.socket.shutdown(self._socket, self._end)


def encoded(body: Mapping[str, Any]) -> bytes:
    """Return the body as it is sent: as short as JSON can be, since its length is limited."""
    text = json.dumps(body, ensure_ascii=False, separators=(",", ":"))
    return text.encode("utf-8", "surrogatepass")  # the service refuses a lone surrogate either way


def _check(response: httpx2.Response) -> None:
    """Check that a response, which was read, is a success. Raises: Unreachable, Refused."""
    if response.status_code >= 500 or response.status_code in (408, 429):
        raise Unreachable(f"the service responded with {response.status_code}")
    if response.is_success:
        return
    error = refusal(response)
    if not error.code and error.status != TOO_LONG:
        raise Unreachable(error.message, error)
    raise error


def _timeout(wait_seconds: float, lease_seconds: float | None) -> httpx2.Timeout:
    slack, connect = SLACK_SECONDS, CONNECT_SECONDS
    if lease_seconds is not None:
        # The last heartbeat that had a response waited for a third of the lease, and so does the
        # one that a silent web server holds. What is left is for a connection to another server,
        # with a second attempt.
        slack = min(slack, max(MIN_TIMEOUT_SECONDS, lease_seconds / 6))
        connect = min(connect, max(MIN_TIMEOUT_SECONDS, lease_seconds / 10))
    return httpx2.Timeout(slack + wait_seconds, connect=connect)


def is_final(error: Refused) -> bool:
    """Return whether the same request would be refused again: a wrong key, wrong definitions."""
    return error.status in (401, 403, 404, 405, 413, 415, 422) and not is_suspended(error)


def is_suspended(error: Exception) -> bool:
    """Return whether the org is suspended: the same key is good again once it is resumed."""
    return isinstance(error, Refused) and error.code == "org.suspended"
