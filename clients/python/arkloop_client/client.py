"""Requests to the service, repeated where that is safe, and streams that resume."""

import json
import os
import random
import time
import uuid
from collections.abc import Generator, Iterator, Mapping, Sequence
from ipaddress import ip_address
from typing import Any, Literal, cast, overload
from urllib.parse import quote, urlsplit

import httpx

from arkloop_client.errors import ArkloopError, error_of, is_passing, not_the_services
from arkloop_client.types import CreatedRun, Event, Run, Thread, ToolResult

TERMINAL_TYPES = frozenset({"run.completed", "run.failed", "run.cancelled"})
#: Transport errors that no repetition mends: a wrong scheme, or a header with a newline.
_LOCAL = (httpx.UnsupportedProtocol, httpx.LocalProtocolError)
#: The service sends a ping every 10 s: a stream that is silent for this long is lost.
SILENCE_SECONDS = 30.0
LONGEST_PAUSE_SECONDS = 10.0


class Arkloop:
    """A caller of one service, with an API key or an access token.

    Requests that fail on the way are repeated for `patience` seconds in which nothing succeeds, and
    up to one pause (10 s) longer: with an idempotency key, so that nothing happens twice.
    """

    def __init__(
        self,
        url: str,
        token: str,
        *,
        patience: float = 120.0,
        first_pause: float = 0.2,
        http: httpx.Client | None = None,
    ) -> None:
        self._given = http
        self._url = url.rstrip("/")
        self._own = {} if http is not None else {os.getpid(): _http_client(self._url)}
        self._headers = {"Authorization": f"Bearer {_checked(token)}"}
        self._patience = patience
        self._first_pause = first_pause

    @property
    def _http(self) -> httpx.Client:
        """Return the caller's client, or that of this process.

        Two processes on one connection would read each other's responses. What a child inherits is
        neither used nor closed: a stream that is open at the fork stays open at the service until
        the child has ended, too. There is no lock: a thread that the child lacks could hold it.
        """
        if self._given is not None:
            return self._given
        process = os.getpid()
        return self._own.get(process) or self._own.setdefault(process, _http_client(self._url))

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> "Arkloop":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- requests ----

    def create(
        self,
        message: str | Mapping[str, Any] | None = None,
        *,
        thread_id: str | None = None,
        idempotency_key: str | None = None,
        **fields: Any,
    ) -> CreatedRun:
        """Create a run, in a thread or in a new one; `fields` are those of `POST /v1/runs`."""
        body = {"message": message, "thread_id": thread_id, **fields}
        sent = {name: value for name, value in body.items() if value is not None}
        return cast(CreatedRun, self._post("/v1/runs", sent, idempotency_key))

    def create_thread(self, *, idempotency_key: str | None = None, **fields: Any) -> Thread:
        """Create a thread; with an `external_id`, the one that has it."""
        return cast(Thread, self._post("/v1/threads", fields, idempotency_key))

    def get_run(self, run_id: str) -> Run:
        return cast(Run, self._call("GET", _path(run_id)))

    def answer(self, run_id: str, content: str, request_id: str | None = None) -> None:
        """Answer the question that a run waits for; without an id, the open one."""
        body = {"content": content}
        if request_id is not None:
            body["request_id"] = request_id
        self._post(_path(run_id, "/input"), body)

    def approve(
        self,
        run_id: str,
        request_id: str,
        decision: Literal["approve", "deny", "edit"] = "approve",
        *,
        reason: str | None = None,
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        """Decide on a tool call; `reason` goes with `deny`, `arguments` with `edit`."""
        made = {"decision": decision, "reason": reason, "arguments": arguments}
        given = {name: value for name, value in made.items() if value is not None}
        content = json.dumps(given, ensure_ascii=False)  # it may have 32 KiB
        self.answer(run_id, content, request_id)

    def send_tool_results(self, run_id: str, results: Sequence[ToolResult]) -> None:
        """Send results of client tools; the run resumes with the last one that is missing."""
        self._post(_path(run_id, "/tool-results"), list(results))

    def cancel(self, run_id: str) -> None:
        """Cancel a run; without effect if it has ended."""
        self._post(_path(run_id, ":cancel"), {})

    # ---- events ----

    @overload
    def follow(
        self, run_id: str, *, after_seq: int = 0, pings: Literal[False] = False
    ) -> Generator[Event, None, None]: ...

    @overload
    def follow(
        self, run_id: str, *, after_seq: int = 0, pings: bool
    ) -> "Generator[Event | None, None, None]": ...

    def follow(
        self, run_id: str, *, after_seq: int = 0, pings: bool = False
    ) -> "Generator[Event | None, None, None]":
        """Yield the events after a number up to the run's end, each once, in order.

        With `pings`, yield None too, where there is no event: for each ping of the service, which
        sends one every 10 s, and after each pause between attempts. A caller who relays the events
        notices then that nobody reads them any more.

        Raises:
            ArkloopError: the service refuses the request, with 410 if it has lost events.
            httpx.TransportError: it cannot be reached for as long as `patience`, or only headers of
                its responses arrive: the text says so if silence follows them.
        """
        retry = _Retry(self._patience, self._first_pause)
        while True:
            try:
                for event in self._events(run_id, after_seq, retry):
                    if event is None:
                        if pings:
                            yield None
                        continue
                    retry.succeeded()
                    after_seq = event["seq"]
                    yield event
                    if event["type"] in TERMINAL_TYPES:
                        return
            except _AtEnd:
                return
            except _LOCAL:
                raise
            except httpx.TransportError as error:
                retry.pause(error)
            except ArkloopError as error:
                if not is_passing(error):
                    raise
                retry.pause(error, error.retry_after or 0.0)
            else:
                retry.pause(httpx.RemoteProtocolError("The stream ended before the run."))
            if pings:
                yield None

    def _events(self, run_id: str, after_seq: int, retry: "_Retry") -> "Iterator[Event | None]":
        """Yield the events of one connection, and None for a ping; a frame that was cut is none."""
        headers = {**self._headers, "Accept": "text/event-stream"}
        if after_seq:
            headers["Last-Event-ID"] = str(after_seq)  # with it, 204 says that there is no more
        timeout = httpx.Timeout(SILENCE_SECONDS)
        url = self._url + _path(run_id, "/events")
        with self._http.stream(
            "GET", url, headers=headers, timeout=timeout, follow_redirects=False
        ) as response:
            if response.status_code == 204:
                raise _AtEnd()
            if response.status_code != 200:
                response.read()
                raise error_of(response)
            if not response.headers.get("Content-Type", "").startswith("text/event-stream"):
                raise not_the_services(response, "events")
            data, has_begun = "", False
            try:
                for line in _lines(response.iter_bytes()):
                    has_begun = True
                    if line.startswith("data:"):
                        data = line[5:]
                    elif line.startswith(":"):
                        yield None
                    elif not line and data:
                        yield cast(Event, json.loads(data))
                        data = ""
            except httpx.ReadTimeout as lost:
                if has_begun:
                    raise
                what = f"{url} sent headers, but no body for {SILENCE_SECONDS:g} s"
                hint = f"{what}: a proxy on the way may buffer it."
                raise httpx.ReadTimeout(hint, request=lost.request) from lost
            finally:
                # The service sends a comment at once: without it, a proxy holds the body back.
                if has_begun:
                    retry.had_contact()  # a run that waits for a person has no events

    # ---- one request ----

    def _post(self, path: str, body: Any, key: str | None = None) -> Any:
        key = str(uuid.uuid4()) if key is None else key
        return self._call("POST", path, body, {"Idempotency-Key": key})

    def _call(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> Any:
        """Make the request until there is a response that counts."""
        retry = _Retry(self._patience, self._first_pause)
        content = None if body is None else _encoded(body)
        sent = {**self._headers, **(headers or {})}
        if content is not None:
            sent["Content-Type"] = "application/json"
        while True:
            try:
                # A redirect would turn a POST into a GET, and lose the token on another host.
                response = self._http.request(
                    method,
                    self._url + path,
                    content=content,
                    headers=sent,
                    follow_redirects=False,
                )
            except _LOCAL:
                raise
            except httpx.TransportError as lost:
                retry.pause(lost)
                continue
            if response.is_success:
                try:
                    return response.json()
                except ValueError:
                    raise not_the_services(response, "JSON") from None
            error = error_of(response)
            if not is_passing(error):
                raise error
            retry.pause(error, error.retry_after or 0.0)


class StreamedText:
    """The text of a run's current turn as it is streamed: what a reset voids is removed."""

    def __init__(self) -> None:
        self._pieces: list[tuple[int, str]] = []
        self._is_turn_complete = self._has_calls = False

    def add(self, event: Event) -> None:
        if event["type"] == "message.delta":
            if self._is_turn_complete:  # not all turns are followed by results of tools
                self._pieces = []
            self._is_turn_complete = self._has_calls = False
            self._pieces.append((event["seq"], event["data"]["content"]))
        elif event["type"] == "message.reset":
            first = event["data"]["from_seq"]
            self._pieces = [piece for piece in self._pieces if piece[0] < first]
        elif event["type"] == "message.completed":
            self._pieces = [(event["seq"], event["data"]["content"])]
            self._is_turn_complete, self._has_calls = True, False
        elif event["type"] == "tool.call":
            self._has_calls = True
        elif event["type"] == "tool.result" and self._has_calls:
            self._pieces = []  # a call of an earlier turn may have its result later

    def __str__(self) -> str:
        return "".join(content for _, content in self._pieces)


class _AtEnd(Exception):
    """The cursor is the run's last event."""


class _Retry:
    """Pauses between attempts: each up to twice as long, for as long as the patience lasts."""

    def __init__(self, patience: float, first_pause: float) -> None:
        self._patience = patience
        self._first_pause = first_pause
        self.succeeded()

    def succeeded(self) -> None:
        self._failures = 0
        self.had_contact()

    def had_contact(self) -> None:
        """Be patient from now on; the pauses stay as long as they are."""
        self._since = time.monotonic()

    def pause(self, error: Exception, least: float = 0.0) -> None:
        """Wait before the next attempt, beyond the end of the patience, too.

        Raises `error` if nothing is left of it, or less than the service asks for.
        """
        longest = min(LONGEST_PAUSE_SECONDS, self._first_pause * 2.0 ** min(self._failures, 20))
        self._failures += 1
        seconds = max(least, random.uniform(longest / 2, longest))  # not all clients at once
        left = self._since + self._patience - time.monotonic()
        if left <= 0 or least > left:
            raise error
        time.sleep(seconds)


def _http_client(url: str) -> httpx.Client:
    # Every run that is followed holds a connection; httpx has 100, for all requests together.
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=20)
    # A proxy of the environment does not reach this machine, and would read the token.
    return httpx.Client(limits=limits, trust_env=not _is_plain_loopback(url))


def _is_plain_loopback(url: str) -> bool:
    """Return whether requests stay on this machine, without TLS and its certificates."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        is_loopback = host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
    return is_loopback and parts.scheme == "http"


def _path(run_id: str, rest: str = "") -> str:
    """Return the path of a run, whose id may come from a page: it never leads anywhere else.

    Raises:
        ValueError: the id is a step in the path, which no escape keeps proxies from taking.
    """
    if str(run_id) in (".", ".."):
        raise ValueError(f"{run_id!r} is not the id of a run.")
    return f"/v1/runs/{quote(str(run_id), safe='')}{rest}"


def _checked(token: str) -> str:
    """Return the token of a file or variable, without what surrounds it.

    Raises:
        ValueError: no header can hold it. That of an HTTP library would have the token in its text.
    """
    stripped = token.strip()
    if not all("!" <= character <= "~" for character in stripped):
        raise ValueError("The token has characters other than visible ASCII.")
    return stripped


def _encoded(body: Any) -> bytes:
    """Return the body as JSON; escapes would make text of most alphabets too long."""
    try:
        return json.dumps(body, ensure_ascii=False).encode()
    except UnicodeEncodeError:  # a lone surrogate, whose field the service names
        return json.dumps(body).encode()


def _lines(chunks: Iterator[bytes]) -> Iterator[str]:
    """Yield the lines of a stream, which only LF ends: text has other ends, such as U+2028."""
    begun: list[bytes] = []
    for chunk in chunks:
        first, *others = chunk.split(b"\n")
        begun.append(first)
        for line in others:
            yield b"".join(begun).decode()
            begun = [line]
