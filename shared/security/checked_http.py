"""Connections that lead nowhere forbidden, and that another thread can cut at any moment.

Closing a response from another thread neither wakes its reader nor closes the
socket; shutting the socket down does both within a millisecond, while it is
still connecting too.
"""

import contextlib
import errno
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, InvalidStateError
from functools import cache, partial
from typing import Any

import httpcore2
import httpx2
from httpcore2._backends.sync import SyncStream  # its own module alone has it; the version is fixed

from arkloop.shared.security import egress, name_lookups
from arkloop.shared.security.egress import Policy

#: A connection ends when what was sent is not acknowledged within this time: the other side may
#: have gone while it was idle, and a read would wait for as long as a model may think.
UNHEARD_SECONDS = 30
#: Writes before the next read are sent together, up to the size of a record of TLS.
TOGETHER_BYTES = 16_384
_USER_TIMEOUT: int | None = getattr(socket, "TCP_USER_TIMEOUT", None)  # Linux: tcp(7)

#: What is wrong with a certificate, by OpenSSL's number for it (its x509_vfy.h). Its own words can
#: quote the name that was asked for.
_REJECTED = {
    9: "certificate is not valid yet",
    10: "certificate has expired",
    62: "certificate is for another host",
    64: "certificate is for another host",  # asked for by its address
}


@cache
def ssl_context() -> ssl.SSLContext:
    """Load the trusted certificates; shared, since reading them costs more than a whole client."""
    return httpx2.create_ssl_context()


def tls_failure(error: BaseException) -> str | None:
    """Describe the TLS failure behind an HTTP client's error; None if there is none."""
    cause: BaseException | None = error
    while cause is not None:
        # httpcore2 has the socket's error as its argument, and not always as its cause.
        for found in (cause, *cause.args):
            if isinstance(found, ssl.SSLCertVerificationError):
                return _REJECTED.get(found.verify_code, "certificate is not trusted")
            if isinstance(found, ssl.SSLError):
                return "handshake failed"
        cause = cause.__cause__ or cause.__context__
    return None


def root_cause(error: BaseException) -> str:
    """Describe the root cause of an error; only system errors are free of what was sent."""
    while (cause := _cause(error)) is not None:
        error = cause
    response = getattr(error, "response", None)
    if status := getattr(response, "status_code", None):
        return f"{type(error).__name__}: {status}"
    if isinstance(error, OSError) and not isinstance(error, ssl.SSLError):
        words = error.strerror or str(error)
        return f"{type(error).__name__}: {words}" if words else type(error).__name__
    if isinstance(error, ssl.SSLError):
        return f"{type(error).__name__}: {error.reason or error.strerror}"
    return type(error).__name__


def _cause(error: BaseException) -> BaseException | None:
    """Return what the error was raised from, also where httpcore2's pool has erased that.

    Not the context of any error: a timeout says less in the system's words, and a vendor's refusal
    is named by its SDK. asyncio raises a timeout from the cancellation that it was made by.
    """
    if isinstance(error, TimeoutError):
        return None
    if error.__cause__ is None and isinstance(error, httpcore2.NetworkError):
        return error.__context__
    return error.__cause__


class CheckedBackend(httpcore2.NetworkBackend):
    """Opens the connections of one pool; `policy` None leads anywhere, for what operators set up.

    Raises, besides what httpcore2 raises:
        egress.Refused: from `connect_tcp`, for an address that the policy forbids.
    """

    def __init__(self, policy: Policy | None, *, unheard_seconds: int = UNHEARD_SECONDS) -> None:
        self._policy, self._unheard_seconds = policy, unheard_seconds
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []
        self._resolving: Future[list[str]] | None = None
        self.is_cut = False  # True once no connection may be used
        self.attempts = 0  # to connect
        #: Seconds that a read may wait, in place of the client's own timeout, which it cannot
        #: change within a response.
        self.read_seconds: float | None = None

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.NetworkStream:
        """Connect to one of the checked addresses, the first that answers within its share."""
        self.attempts += 1
        deadline = None if timeout is None else time.monotonic() + timeout
        failure: OSError = OSError("the host name has no address")
        addresses = self._addresses(host, port, timeout)
        for number, address in enumerate(addresses):
            try:
                return self._connected(address, port, _share(deadline, len(addresses) - number))
            except OSError as error:
                failure = error
        # Within its handler: httpcore2's pool erases the cause, and leaves the context.
        try:
            raise failure
        except TimeoutError as error:
            raise httpcore2.ConnectTimeout("Connecting timed out.") from error
        except OSError as error:
            raise httpcore2.ConnectError("Connecting failed.") from error

    def cut(self) -> None:
        """Shut down every connection, those still to come included."""
        with self._lock:
            self.is_cut = True
            sockets, resolving = list(self._sockets), self._resolving
        if resolving is not None:
            with contextlib.suppress(InvalidStateError):
                resolving.set_exception(OSError("cut"))
        for connection in sockets:
            with contextlib.suppress(OSError, ValueError):
                # That of TLS sockets takes their state away from a handshake in progress.
                socket.socket.shutdown(connection, socket.SHUT_RDWR)

    def _addresses(self, host: str, port: int, timeout: float | None) -> list[str]:
        # In a thread of its own: nothing can interrupt a resolver that waits for its servers.
        answer: Future[list[str]] = Future()
        with self._lock:
            if self.is_cut:
                raise httpcore2.ConnectError("The connection was closed.")
            self._resolving = answer
        threading.Thread(
            target=_settle, args=(answer, host, port, self._policy), daemon=True
        ).start()
        try:
            return answer.result(timeout)
        except TimeoutError as error:
            raise httpcore2.ConnectTimeout("Resolving the host name timed out.") from error
        except OSError as error:
            raise httpcore2.ConnectError("Resolving the host name failed.") from error
        finally:
            self._resolving = None
            answer.cancel()  # unless it is there

    def _connected(self, address: str, port: int, timeout: float | None) -> "_RecordedStream":
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        connection = socket.socket(family, socket.SOCK_STREAM)
        try:
            connection.settimeout(timeout)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if _USER_TIMEOUT is not None:
                connection.setsockopt(
                    socket.IPPROTO_TCP, _USER_TIMEOUT, self._unheard_seconds * 1000
                )
            # Known before it connects: a server that does not answer can be given up at once.
            self.record(connection)
            connection.connect((address, port))
            self._check_not_cut()
        except BaseException:
            connection.close()
            raise
        return _RecordedStream(connection, self)

    def record(self, connection: socket.socket) -> None:
        with self._lock:
            self._sockets = [known for known in self._sockets if known.fileno() >= 0]
            self._sockets.append(connection)
        self._check_not_cut()

    def _check_not_cut(self) -> None:
        if self.is_cut:
            raise OSError("The connection was closed.")


class _RecordedStream(SyncStream):
    """A connection that sends the head and the body of a small request together, by one write."""

    def __init__(self, connection: socket.socket, backend: CheckedBackend) -> None:
        super().__init__(connection)
        self._backend = backend
        self._unsent = b""
        self._write_seconds: float | None = None

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        if self._unsent:
            # As httpcore2 does after a write: a server that has closed may have responded before.
            with contextlib.suppress(httpcore2.WriteError):
                self._send(b"")
        seconds = self._backend.read_seconds or timeout
        try:
            return super().read(max_bytes, seconds)
        except httpcore2.ReadTimeout as error:
            if _is_unheard(error):
                raise httpcore2.ReadError("what was sent is not acknowledged") from error
            raise httpcore2.ReadTimeout(f"no data for {seconds:g} s") from error

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._write_seconds = timeout
        if len(self._unsent) + len(buffer) <= TOGETHER_BYTES:
            self._unsent += buffer
        else:
            self._send(buffer)

    def _send(self, more: bytes) -> None:
        unsent, self._unsent = self._unsent, b""
        try:
            for buffer in (unsent, more):
                super().write(buffer, self._write_seconds)
        except httpcore2.WriteTimeout as error:
            if _is_unheard(error):
                raise httpcore2.WriteError("what was sent is not acknowledged") from error
            raise

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore2.NetworkStream:
        # TLS takes the descriptor over into a socket of its own, which has to be known before the
        # handshake: gevent waits for each piece of it as long as for all.
        secured = _RecordedStream(self._sock, self._backend)
        try:
            self._sock.settimeout(timeout)
            connection = ssl_context.wrap_socket(
                self._sock, server_hostname=server_hostname, do_handshake_on_connect=False
            )
            secured = _RecordedStream(connection, self._backend)
            self._backend.record(connection)
            connection.do_handshake()
        except Exception as error:
            secured.close()
            if isinstance(error, TimeoutError):
                raise httpcore2.ConnectTimeout(str(error)) from error
            if isinstance(error, OSError):
                raise httpcore2.ConnectError(str(error)) from error
            raise
        return secured


def _share(deadline: float | None, addresses: int) -> float | None:
    """Return the seconds for the next of these addresses; None: no limit.

    A dead one leaves time for the others. Raises: TimeoutError: the deadline has passed.
    """
    if deadline is None:
        return None
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left / addresses


def _resolve(
    host: str, port: int, policy: Policy | None, is_given_up: Callable[[], bool]
) -> list[str]:
    if policy is not None:
        look_up = partial(name_lookups.look_up, is_given_up=is_given_up)
        return egress.resolve(host, port, policy, look_up)
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    return list(dict.fromkeys(str(sockaddr[0]) for *_, sockaddr in found))


def _settle(answer: Future[list[str]], host: str, port: int, policy: Policy | None) -> None:
    try:
        found = _resolve(host, port, policy, answer.done)
    except Exception as error:
        with contextlib.suppress(InvalidStateError):
            answer.set_exception(error)
    else:
        with contextlib.suppress(InvalidStateError):
            answer.set_result(found)


def _is_unheard(error: Exception) -> bool:
    """Return whether the kernel gave the connection up, rather than the client its patience."""
    return isinstance(error.__cause__, OSError) and error.__cause__.errno == errno.ETIMEDOUT
