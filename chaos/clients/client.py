"""A careful HTTP client of the service: several servers, retries, and a journal of each response.

It speaks HTTP/1.1 itself, over asyncio and one connection a request: the clients
of a chaos run share two cores with the system, so they must cost little, and a
kept connection that the server closes meanwhile would look like a fault.
"""

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import urlsplit

from chaos.clients.event_stream import BrokenAnswer, Chunks
from chaos.journal import Journal

Urls = Sequence[str] | Callable[[], Sequence[str]]

FIRST_BACKOFF_SECONDS = 0.1
MAX_BACKOFF_SECONDS = 1.0
READ_BYTES = 65_536
LONGEST_KEPT = 5

#: What a broken connection is seen as; a time-out is an OSError.
FAILURES = (OSError, EOFError, BrokenAnswer, asyncio.LimitOverrunError)


class NoAnswer(Exception):
    """The connection was refused, reset, or silent for too long."""


class GaveUp(Exception):
    """The deadline passed, and the service had given no answer that counts."""


@dataclass(frozen=True)
class Answer:
    """A whole HTTP answer; the names of `headers` are in lower case."""

    status: int
    headers: Mapping[str, str]
    content: bytes = b""

    @property
    def body(self) -> Any:
        """The JSON, or None where there is none."""
        try:
            return json.loads(self.content)
        except ValueError:
            return None

    @property
    def is_passing(self) -> bool:
        """True if it says nothing about the request itself, which is to be sent again."""
        return self.status >= 500 or self.code == "idempotency.in_progress"

    @property
    def code(self) -> str:
        """The code of an error, else an empty text."""
        body = self.body if self.status >= 400 else None
        return str(body.get("code", "")) if isinstance(body, dict) else ""


@dataclass
class Tally:
    """The counts of what all clients of a load have seen."""

    statuses: Counter[str] = field(default_factory=Counter)
    answers: Counter[str] = field(default_factory=Counter)
    no_answers: int = 0
    events: int = 0
    streams: int = 0
    reconnects: int = 0
    open_streams: int = 0
    most_open_streams: int = 0
    surprises: list[str] = field(default_factory=list)
    longest: list[tuple[float, str]] = field(default_factory=list)

    def answered(self, method: str, path: str, status: int, seconds: float) -> None:
        """Count an answer, and keep it if it was one of the slowest."""
        self.answers[str(status)] += 1
        self.longest.append((round(seconds, 3), f"{method} {path} {status}"))
        self.longest.sort(reverse=True)
        del self.longest[LONGEST_KEPT:]

    def stream_opened(self) -> None:
        """Count one more open stream; its end lowers `open_streams`."""
        self.streams += 1
        self.open_streams += 1
        self.most_open_streams = max(self.most_open_streams, self.open_streams)


@dataclass(frozen=True)
class Access:
    """The common parts of all clients of one load. Times are in seconds."""

    urls: Urls
    journal: Journal
    tally: Tally
    timeout: float = 10.0
    #: Seconds after which a stream that brings nothing, not even a ping, is reopened.
    silence: float = 5.0
    #: How long a request is repeated before its client gives up.
    patience: float = 180.0

    def servers(self) -> Sequence[str]:
        """Return the base URLs as they are now."""
        return self.urls() if callable(self.urls) else self.urls

    def surprise(self, text: str) -> None:
        """Record what no client of a correct service meets."""
        self.tally.surprises.append(text)
        self.journal.write("surprise", what=text)


@dataclass(frozen=True)
class Request:
    """A request; `template` has `{id}` where `object_id` belongs."""

    method: str
    template: str
    object_id: str = ""
    body: Any = None
    #: The Idempotency-Key: the same at each repetition.
    key: str = ""
    query: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)

    def encoded(self, host: str, token: str) -> bytes:
        """Encode the request."""
        address = self.template.replace("{id}", self.object_id) + self.query
        content = b"" if self.body is None else json.dumps(self.body).encode()
        headers = {
            "Host": host,
            "Authorization": f"Bearer {token}",
            "Connection": "close",
            **self.headers,
        }
        if self.key:
            headers["Idempotency-Key"] = self.key
        if self.body is not None:
            headers["Content-Type"] = "application/json"
        if self.method == "POST":
            headers["Content-Length"] = str(len(content))
        lines = [f"{self.method} {address} HTTP/1.1", *(f"{n}: {v}" for n, v in headers.items())]
        return "\r\n".join([*lines, "", ""]).encode() + content


class Client:
    """A client with a token: it stays with a server until that one fails it."""

    def __init__(self, access: Access, token: str, rng: random.Random) -> None:
        self.access = access
        self._token = token
        self._rng = rng
        self._server = rng.randrange(1000)

    def go_elsewhere(self) -> None:
        """Ask the next server from now on."""
        self._server += 1

    async def until(
        self,
        request: Request,
        *,
        patience: float | None = None,
        wanted: Collection[int] | None = None,
        url: str = "",
    ) -> Answer:
        """Repeat the request up to an answer that counts: one of the `wanted` statuses, else any
        that the service means.

        Raises GaveUp when `patience` is over.
        """
        deadline = time.monotonic() + (self.access.patience if patience is None else patience)
        pauses = Pauses(self._rng)
        while True:
            try:
                answer = await self.once(request, url=url)
                if answer.status in wanted if wanted is not None else not answer.is_passing:
                    return answer
                problem = f"{answer.status} {answer.code}"
            except NoAnswer as error:
                problem = str(error)
            if time.monotonic() > deadline:
                raise GaveUp(f"{request.method} {request.template}: {problem}")
            await pauses.next()
            self.go_elsewhere()

    async def once(self, request: Request, *, url: str = "") -> Answer:
        """Send one request and return its response. Raises NoAnswer."""
        started = time.monotonic()
        try:
            async with asyncio.timeout(self.access.timeout):
                reader, writer, head = await self._send(request, url)
                try:
                    answer = replace(head, content=await _content(reader, head))
                finally:
                    writer.transport.abort()
        except FAILURES as error:
            raise self._no_answer(request, error, started) from None
        self._answered(request, answer, started)
        return answer

    async def stream(self, request: Request) -> "OpenStream | Answer":
        """Open a stream, or return the response that is none. Raises NoAnswer."""
        started, url = time.monotonic(), self._url()
        try:
            async with asyncio.timeout(self.access.timeout):
                reader, writer, head = await self._send(request, url)
                if head.status != 200:
                    try:
                        head = replace(head, content=await _content(reader, head))
                    finally:
                        writer.transport.abort()
        except FAILURES as error:
            raise self._no_answer(request, error, started) from None
        self._answered(request, head, started)
        return head if head.status != 200 else OpenStream(reader, writer, url)

    def _url(self) -> str:
        servers = self.access.servers()
        return servers[self._server % len(servers)]

    async def _send(
        self, request: Request, url: str = ""
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, Answer]:
        """Send it on a connection of its own, and read the answer's head."""
        place = urlsplit(url or self._url())
        reader, writer = await asyncio.open_connection(place.hostname, place.port)
        try:
            writer.write(request.encoded(place.netloc, self._token))
            return reader, writer, _head(await reader.readuntil(b"\r\n\r\n"))
        except BaseException:
            writer.transport.abort()
            raise

    def _answered(self, request: Request, answer: Answer, started: float) -> None:
        seconds = time.monotonic() - started
        self.access.tally.answered(request.method, request.template, answer.status, seconds)
        self.access.journal.write(
            "answer",
            method=request.method,
            path=request.template,
            status=answer.status,
            code=answer.code,
            seconds=round(seconds, 4),
            retry_after=answer.headers.get("retry-after"),
        )

    def _no_answer(self, request: Request, error: Exception, started: float) -> "NoAnswer":
        text = f"{type(error).__name__}: {error}".rstrip(": ")
        self.access.tally.no_answers += 1
        self.access.journal.write(
            "no_answer",
            method=request.method,
            path=request.template,
            error=text,
            seconds=round(time.monotonic() - started, 4),
        )
        return NoAnswer(text)


class OpenStream:
    """The body of a stream, as it comes."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, url: str
    ) -> None:
        self.url = url
        self._reader = reader
        self._writer = writer
        self._chunks = Chunks()

    async def read(self) -> bytes | None:
        """Read some bytes of the body, None after its proper end. Raises one of FAILURES."""
        while not self._chunks.ended:
            data = await self._reader.read(READ_BYTES)
            if not data:
                raise EOFError("the connection was closed inside the body")
            if body := self._chunks.feed(data):
                return body
        return None

    def close(self, *, rudely: bool) -> None:
        """Leave, with a reset or with a farewell."""
        if rudely:
            self._writer.transport.abort()
        else:
            self._writer.close()


class Pauses:
    """Pauses between tries: longer after each, never twice the same."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._seconds = FIRST_BACKOFF_SECONDS

    async def next(self) -> None:
        """Wait."""
        await asyncio.sleep(self._seconds * self._rng.uniform(0.75, 1.0))
        self._seconds = min(self._seconds * 2, MAX_BACKOFF_SECONDS)


def _head(block: bytes) -> Answer:
    first, *lines = block.decode("latin-1").split("\r\n")
    parts = first.split(" ", 2)
    if len(parts) < 2 or not parts[1].isdigit():
        raise BrokenAnswer(f"status line {first!r}")
    pairs = (line.partition(":") for line in lines if line)
    return Answer(int(parts[1]), {name.lower(): value.strip() for name, _, value in pairs})


async def _content(reader: asyncio.StreamReader, head: Answer) -> bytes:
    if head.status == 204:
        return b""
    if "content-length" in head.headers:
        return await reader.readexactly(int(head.headers["content-length"]))
    if head.headers.get("transfer-encoding") != "chunked":
        raise BrokenAnswer("a body of unknown length")
    chunks, body = Chunks(), bytearray()
    while not chunks.ended:
        data = await reader.read(READ_BYTES)
        if not data:
            raise EOFError("the connection was closed inside the body")
        body += chunks.feed(data)
    return bytes(body)
