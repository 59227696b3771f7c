"""Answers that cannot fill the memory: a server that an org named may send what it likes.

The SDKs keep an event until it is whole, and read the page of an error to its end. They also take
a byte order mark for a part of the first event.
"""

import codecs
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import httpx2

MAX_BYTES = 128 * 1024 * 1024  # of an answer; some 400,000 tokens, each in an event of its own
MAX_ERROR_BYTES = 1024 * 1024  # of what is no success, a redirect too
MAX_EVENT_BYTES = 4 * 1024 * 1024  # of an event, or of a line where the answer has no events
MAX_EVENT_LINES = 2000  # an SDK copies what it has of the event with each line

_ENDS_OF_EVENTS = (b"\n\n", b"\r\r", b"\r\n\r\n")
_ENDS_OF_LINES = (b"\n",)


class BoundedTransport(httpx2.HTTPTransport):
    """Breaks off an answer that gets too long, and refuses one that would have to be unpacked.

    `events`: the reader takes an answer for server-sent events, whatever its type says; `frames`:
    for frames, whose lengths it checks itself.
    """

    def __init__(
        self, *, events: bool, on_data: Callable[[], None], frames: bool = False, **kwargs: Any
    ) -> None:
        """Bound responses; `on_data` is called whenever a part of a body arrives."""
        super().__init__(**kwargs)
        self._ends = () if frames else _ENDS_OF_EVENTS if events else _ENDS_OF_LINES
        self._on_data = on_data

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send a request. Raises: httpx2.TransportError: also while the response is read."""
        request.headers["Accept-Encoding"] = "identity"
        response = super().handle_request(request)
        if response.headers.get("content-encoding", "identity") != "identity":
            response.close()
            raise httpx2.RemoteProtocolError("unexpected Content-Encoding in the response")
        assert isinstance(response.stream, httpx2.SyncByteStream)
        most, ends = MAX_BYTES, self._ends
        if not response.is_success:
            most, ends = MAX_ERROR_BYTES, _ENDS_OF_LINES
        response.stream = _BoundedStream(response.stream, most, self._on_data, ends)
        return response


class _BoundedStream(httpx2.SyncByteStream):
    def __init__(
        self,
        stream: httpx2.SyncByteStream,
        most: int,
        on_data: Callable[[], None],
        ends: tuple[bytes, ...],
    ) -> None:
        self._stream = stream
        self._on_data = on_data
        self._most = most
        self._ends = ends

    def __iter__(self) -> Iterator[bytes]:
        total = since_end = lines = 0
        last = b""
        has_events = self._ends == _ENDS_OF_EVENTS
        for part in _without_mark(self._stream) if has_events else self._stream:
            self._on_data()
            total += len(part)
            seen = last + part  # an end may lie across two parts
            ends = [seen.rfind(end) + len(end) for end in self._ends if end in seen]
            if ends:
                since_end = lines = 0
                part_of_event = seen[max(ends) :]
            else:
                part_of_event = part
            since_end += len(part_of_event)
            lines += part_of_event.count(b"\n") + part_of_event.count(b"\r")
            last = seen[-3:]
            is_long = self._ends and (since_end > MAX_EVENT_BYTES or lines > MAX_EVENT_LINES)
            if total > self._most or is_long:
                raise httpx2.RemoteProtocolError("the response is too long")
            yield part

    def close(self) -> None:
        self._stream.close()


def _without_mark(parts: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the parts without the byte order mark that a stream of events may begin with."""
    begun: bytes | None = b""
    for part in parts:
        if begun is None:
            yield part
            continue
        begun += part
        if len(begun) >= len(codecs.BOM_UTF8) or not codecs.BOM_UTF8.startswith(begun):
            yield begun.removeprefix(codecs.BOM_UTF8)
            begun = None
    if begun:
        yield begun
