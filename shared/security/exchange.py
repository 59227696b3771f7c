"""A request to an address that an org has chosen, and its response.

Each request has a connection of its own: whether the server may have got it is then certain, and a
cancel closes nothing but this request. Only what may arrive twice is sent over kept connections.
"""

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import httpcore2

from arkloop.shared import machine, time_limits
from arkloop.shared.security import egress
from arkloop.shared.security.checked_http import CheckedBackend, tls_failure
from arkloop.shared.security.egress import CheckedUrl, Policy
from arkloop.shared.security.kept_connections import Connection, Lender

CONNECT_SECONDS = 5.0

#: The responses of a server that took the rest of an earlier request for the beginning of this one,
#: or has waited for too long on a connection that it is about to close.
_CONFUSED = (400, 405, 408, 501)

LATE = "The server did not respond in time."
BROKEN = "The server closed the connection without a valid response."


class NotSent(Exception):
    """A request that no server can have got; the message says why.

    `may_pass`: another attempt may reach the server.
    """

    def __init__(self, message: str, *, may_pass: bool = False) -> None:
        super().__init__(message)
        self.may_pass = may_pass


class Lost(Exception):
    """A request that the server may have got and acted on; the message says what happened.

    `status` is that of a response whose body was lost, None without a response.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class Response:
    """The response of a server; one with a `problem`, a sentence, has no usable body."""

    status: int
    content_type: str = ""
    body: bytes = b""
    retry_after: str | None = None
    problem: str | None = None

    @property
    def is_success(self) -> bool:
        return 200 <= self.status < 300


#: Calls its argument as soon as somebody gives the block up.
Aborting = Callable[[Callable[[], None]], AbstractContextManager[None]]


def post(
    aborting: Aborting,
    url: str,
    policy: Policy,
    headers: dict[str, str],
    body: bytes,
    seconds: float,
    *,
    most_bytes: int,
    kept: Lender | None = None,
) -> Response:
    """Send a POST to a checked address, without following redirects; read `most_bytes` at most.

    With `kept` connections the server may get it twice: if one breaks off before its response, or
    brings one that a confused server sends, the request is sent again over a new connection.

    Raises:
        NotSent: the address is forbidden, or connecting failed.
        Lost: no valid response arrived within `seconds`.
        MemoryError, Unavailable: this process lacks what a connection takes; it is not made.
        StopRun, LeaseLost: as `aborting` says; the connection is closed.
    """
    sent = {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}
    return _exchange(aborting, "POST", url, policy, sent, body, seconds, most_bytes, kept)


def get(
    url: str, policy: Policy, headers: dict[str, str], seconds: float, *, most_bytes: int
) -> Response:
    """Send a GET as `post` does, which nobody gives up before its time.

    Raises:
        NotSent, Lost, MemoryError, Unavailable
    """
    return _exchange(unaborted, "GET", url, policy, headers, b"", seconds, most_bytes)


def unaborted(_cut: Callable[[], None]) -> AbstractContextManager[None]:
    """Return the `aborting` of a request that only its time gives up."""
    return nullcontext()


def _exchange(
    aborting: Aborting,
    method: str,
    url: str,
    policy: Policy,
    headers: dict[str, str],
    body: bytes,
    seconds: float,
    most_bytes: int,
    kept: Lender | None = None,
) -> Response:
    try:
        target = egress.check_url(url, policy)
    except egress.Refused as refused:
        raise NotSent(str(refused)) from None
    connection = kept.take(target.origin) if kept else Connection(CheckedBackend(policy))
    #: Taken by what comes first: the end of the exchange, or that of its time.
    ending = threading.Lock()
    late = threading.Event()
    status: int | None = None
    is_repeated = False

    def began(of_response: int) -> None:
        nonlocal status
        status = of_response

    def cut() -> None:
        connection.backend.cut()

    def give_up() -> None:
        if ending.acquire(blocking=False):
            late.set()
            cut()

    def respond() -> Response:
        is_kept = kept is not None
        return _response(
            method, target, connection, headers, body, seconds, most_bytes, began, is_kept=is_kept
        )

    def not_sent(message: str, *, may_pass: bool = False) -> NotSent | Lost:
        if not is_repeated:
            return NotSent(message, may_pass=may_pass)
        return Lost(LATE if late.is_set() else BROKEN, status)

    response: Response | None = None
    is_whole = False
    # A server can stay busy below every time-out of a single read; the limit ends all of them.
    with aborting(cut), time_limits.limited(seconds, give_up):
        try:
            attempts = connection.backend.attempts
            try:
                response = respond()
            except (httpcore2.ProtocolError, httpcore2.NetworkError):
                is_new = connection.backend.attempts > attempts
                if is_new or late.is_set() or (status is not None and status not in _CONFUSED):
                    raise
            is_reused = connection.backend.attempts == attempts
            if kept and is_reused and (response is None or response.status in _CONFUSED):
                connection.close()
                connection, is_repeated = kept.new(), True
                if late.is_set():
                    cut()
                response = respond()
            assert response is not None
            is_whole = ending.acquire(blocking=False)
            if not is_whole:  # a body of no stated length that was cut is just over
                raise Lost(LATE, status)
            return response
        except egress.Refused as refused:
            raise not_sent(str(refused)) from None
        except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
            machine.raise_shortage(error)
            raise not_sent(_unreachable(error), may_pass=True) from None
        except httpcore2.TimeoutException:
            raise Lost(LATE, status) from None
        except (httpcore2.ProtocolError, httpcore2.NetworkError):
            raise Lost(LATE if late.is_set() else BROKEN, status) from None
        finally:
            is_good = is_whole and response is not None and response.is_success
            if kept and is_good and connection.can_be_kept:
                kept.give_back(target.origin, connection)
            else:
                connection.close()


def _response(
    method: str,
    target: CheckedUrl,
    connection: Connection,
    headers: dict[str, str],
    body: bytes,
    seconds: float,
    most_bytes: int,
    began: Callable[[int], None],
    *,
    is_kept: bool,
) -> Response:
    path = target.path + (f"?{target.query}" if target.query else "")
    timeout = {"connect": min(CONNECT_SECONDS, seconds), "read": seconds, "write": seconds}
    sent: dict[bytes | str, bytes | str] = {
        "Host": target.origin.partition("://")[2],
        "User-Agent": "arkloop-runs",
        "Accept": "application/json, text/*",
        # What is not packed cannot burst when it is unpacked.
        "Accept-Encoding": "identity",
        "Connection": "keep-alive" if is_kept else "close",
    }
    sent.update(headers.items())
    url = httpcore2.URL(
        scheme=target.scheme.encode(),
        host=target.host.encode(),
        port=target.port,
        target=path.encode(),
    )
    with connection.http(url.origin).stream(
        method,
        url,
        headers=sent,
        content=body or None,
        extensions={"timeout": timeout},
    ) as response:
        began(response.status)
        found = {name.lower(): value.decode("latin-1") for name, value in response.headers}
        if found.get(b"content-encoding", "identity").lower() != "identity":
            problem = "The response is compressed although `identity` was requested."
            return Response(response.status, problem=problem)
        content = bytearray()
        for chunk in response.iter_stream():
            content += chunk
            if len(content) > most_bytes:
                problem = f"The response is longer than {most_bytes} bytes."
                return Response(response.status, problem=problem)
        content_type = found.get(b"content-type", "")
        return Response(response.status, content_type, bytes(content), found.get(b"retry-after"))


def _unreachable(error: Exception) -> str:
    """Describe why no connection was made, without the addresses behind the name."""
    if tls := tls_failure(error):
        return f"TLS error at the server: {tls}."
    return "The server is unreachable."
