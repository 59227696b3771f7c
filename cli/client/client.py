"""HTTP client of the command line: requests with a clear word for everything that can go wrong.

click.ClickException
├── Unreachable    no answer from the server
└── Refused        an answer that is an error: `status`, `code` and the server's own words
"""

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast
from uuid import uuid4

import click
import httpx2

from arkloop.cli.client.http_client import http_client
from arkloop.cli.client.server_address import ServerAddress

CONNECT_SECONDS = 5.0
#: Longest silence of a stream; the server fills it with a ping every 10 s.
READ_SECONDS = 30.0
#: Seconds to retry a server that has responded before: it may be restarting.
PATIENCE_SECONDS = 15.0
PAUSE_SECONDS = 0.5
#: What proxies and the service itself say while something behind them is away, or a request was
#: too slow on its way; those from 520 are Cloudflare's.
AWAY = frozenset({408, 502, 503, 504, 520, 521, 522, 523, 524, 530})
MAX_PAGE = 200
#: Code of a repetition that arrives while the attempt before it is being carried out.
IN_PROGRESS = "idempotency.in_progress"
#: Statuses of refusals that the service makes before it looks for an attempt before.
_BEFORE_LOOKUP = frozenset({401, 403, 429})
#: Errors before anything of a request is sent.
_UNSENT = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.ProxyError)
#: Codes of an address that the service does not have.
_NO_ENDPOINT = frozenset({"http.not_found", "http.method_not_allowed"})


class Unreachable(click.ClickException):
    """The server does not answer."""

    #: True if there was no connection: else an attempt of the request may be carried out.
    is_final = False


class Refused(click.ClickException):
    """The server's answer is an error, with `details`."""

    def __init__(
        self, status: int, code: str, message: str, details: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.details = details or {}
        self.is_of_repetition = False

    @property
    def is_final(self) -> bool:
        """True if the service has refused the request: else an attempt of it may be carried out."""
        if not self.code or self.status in AWAY or self.code == IN_PROGRESS:
            return False
        if self.is_of_repetition and self.status in _BEFORE_LOOKUP:
            return False
        return 400 <= self.status < 500


class Client:
    """A client of one server with one key; threads may share it."""

    def __init__(self, server: ServerAddress) -> None:
        self.server = server
        self._answered = False
        timeout = httpx2.Timeout(READ_SECONDS, connect=CONNECT_SECONDS)
        self.http = http_client(server, timeout=timeout)

    def get(self, path: str, **params: Any) -> Any:
        """Return the response's JSON."""
        return self._call("GET", path, params=params).json()

    def post(
        self, path: str, body: Mapping[str, Any] | Sequence[Any] | None = None
    ) -> dict[str, Any]:
        """Return the response's JSON. A repeated attempt creates nothing twice."""
        content = None if body is None else _encode(body)
        headers = {"Idempotency-Key": str(uuid4()), "Content-Type": "application/json"}
        answer: dict[str, Any] = self._call("POST", path, content=content, headers=headers).json()
        return answer

    def upload(self, path: Path) -> dict[str, Any]:
        """Store a file, which is read piece by piece; returns what the server found out about it.

        Data appended during the upload is not sent. In a name that is not UTF-8, other bytes are
        replaced.

        Raises:
            click.ClickException: the file cannot be read.
        """
        key = {"Idempotency-Key": str(uuid4())}
        name = os.fsencode(path.name).decode(errors="replace")
        try:
            with path.open("rb") as file:
                form = {"file": (name, cast(BinaryIO, _FileAsOpened(file, path)))}
                answer: dict[str, Any] = self._call(
                    "POST", "/files", is_upload=True, files=form, headers=key
                ).json()
        except OSError as error:
            raise click.ClickException(f"{path}: {error.strerror}") from None
        return answer

    def delete(self, path: str) -> None:
        self._call("DELETE", path)

    def rows(self, path: str, *, limit: int, **params: Any) -> Iterator[dict[str, Any]]:
        """Yield a list, newest first, over as many pages as needed; their sizes fit the `limit`."""
        query = {name: value for name, value in params.items() if value is not None}
        query["limit"] = min(limit, MAX_PAGE)
        while True:
            response = self._call("GET", path, params=query)
            yield from response.json()
            if "X-Next-Cursor" not in response.headers:
                return
            query["before"] = response.headers["X-Next-Cursor"]

    def _call(
        self, method: str, path: str, *, is_upload: bool = False, **kwargs: Any
    ) -> httpx2.Response:
        """Return a successful response that is JSON, or has no content.

        Raises:
            Unreachable: at the first request at once, later after some tries.
            Refused: any other answer; of an upload while there are too many, and of a repetition
                while an attempt before is carried out, after some tries.
        """
        until = time.monotonic() + PATIENCE_SECONDS
        is_repetition = False  # of an attempt that may have arrived
        while True:
            try:
                response = self.http.request(method, path, **kwargs)
            except httpx2.HTTPError as error:
                is_repetition |= not isinstance(error, _UNSENT)
                if not self._answered or time.monotonic() > until:
                    unreachable = self.unreachable(error)
                    unreachable.is_final = not is_repetition
                    raise unreachable from error
            else:
                is_away = self._answered and response.status_code in AWAY
                is_crowded = is_upload and _is_crowded(response)
                is_passing = is_away or is_crowded or _is_in_progress(response)
                if not is_passing or time.monotonic() > until:
                    self._answered = True
                    return _successful(response, is_repetition=is_repetition)
                is_repetition = True
            time.sleep(PAUSE_SECONDS)

    def unreachable(self, error: Exception) -> Unreachable:
        """Build the error for a request that got no response, with advice for the user."""
        advice = (
            "Start it with `arkloop dev`, or set ARKLOOP_URL."
            if self.server.is_loopback
            else "Check ARKLOOP_URL and the network."
        )
        reason = str(error) or type(error).__name__
        return Unreachable(f"{self.server.url} is unreachable ({reason}). {advice}")


class _FileAsOpened:
    """A file up to the length that it had when it was opened: a log grows while it is sent."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file, self._path = file, path
        self._size = os.fstat(file.fileno()).st_size

    def tell(self) -> int:
        return self._file.tell()

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._file.seek(offset if whence == os.SEEK_SET else self._size + offset)

    def read(self, size: int) -> bytes:
        """Return the next bytes. Raises: click.ClickException: the file has become shorter."""
        left = self._size - self._file.tell()
        piece = self._file.read(min(size, left))
        if left and not piece:
            raise click.ClickException(f"{self._path} became shorter while it was sent.")
        return piece


def _is_crowded(response: httpx2.Response) -> bool:
    """Return whether the service takes no upload at the moment, and says when to come back.

    The limit on requests in a minute is another one: each try would count for it.
    """
    is_busy = response.status_code in (429, 503) and "Retry-After" in response.headers
    return is_busy and "per_minute" not in refusal(response).details


def _is_in_progress(response: httpx2.Response) -> bool:
    """Return whether an attempt before this one is still being carried out."""
    return response.status_code == 409 and refusal(response).code == IN_PROGRESS


def refusal(response: httpx2.Response) -> Refused:
    """Convert an error response, already read, to an exception with the server's own words."""
    status = response.status_code
    try:
        body = response.json()
    except ValueError:
        body = None
    # Gateways have errors with these fields, too, of other types: gRPC's code is a number.
    match body:
        case {"code": str(code), "message": str(message), "details": dict(details)}:
            pass
        case _:
            return _foreign(response)
    if status == 401 and code != "org.suspended":
        message += " Check ARKLOOP_API_KEY."
    if details:
        message += f" {json.dumps(details, ensure_ascii=False)}"
    if code in _NO_ENDPOINT:
        message += f" {response.request.method} {response.request.url}"
    message += f" ({status} {code})"
    if code in _NO_ENDPOINT and "/v1/v1/" in response.request.url.path:
        message += " ARKLOOP_URL is the address without /v1."
    if (seconds := response.headers.get("Retry-After", "")).isdecimal():  # a proxy's may be a date
        message += f" Try again in {seconds} s."
    return Refused(status, code, message, details)


def _foreign(response: httpx2.Response) -> Refused:
    """Build the error for a response of something else than the service."""
    status, where = response.status_code, response.headers.get("Location")
    what = f"and a redirect to {where}" if where else "without an error of this service"
    if response.is_success:
        what = "and content that is not this service's"
    message = f"{response.request.url} responded with {status} {what}: check ARKLOOP_URL."
    return Refused(status, "", message)


def _successful(response: httpx2.Response, *, is_repetition: bool) -> httpx2.Response:
    is_json = response.headers.get("Content-Type", "").startswith("application/json")
    if response.is_success and (is_json or response.status_code == 204):
        return response
    refused = refusal(response)
    refused.is_of_repetition = is_repetition
    raise refused


def _encode(body: Mapping[str, Any] | Sequence[Any]) -> bytes:
    try:
        return json.dumps(body, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise click.ClickException("The text is not valid UTF-8.") from None
