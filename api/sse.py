"""Events to Server-Sent Events (WHATWG HTML, 9.2): frames, keep-alives, and their end.

A frame is one `data:` line, then `id:`, then an empty line. The id comes last:
clients that move their cursor when they read it would lose the event if the
connection broke inside a frame that has it first.
"""

from collections.abc import Iterator, Sequence

from api.stream_hub import Watch
from shared import eventlog
from shared.connections import Connections
from shared.errors import Unavailable
from shared.events import StoredEvent

RETRY_MS = 1000
#: No frame and no empty line: some clients would take those for an empty event.
HELLO = b": ok\n"
PING = b": ping\n"
#: Written at once at most, so that a slow client is seen to make progress.
CHUNK_BYTES = 32_768
UNAVAILABLE_SECONDS = 1.0
#: A read from Redis is bound by count alone; from here on it follows the events' size.
FIRST_LIMIT = 16


def frame(event: StoredEvent, *, named: bool, first: bool) -> str:
    """The event as one frame; the first of a stream says when to reconnect."""
    retry = f"retry: {RETRY_MS}\n" if first else ""
    name = f"event: {event.type}\n" if named else ""
    return f"{retry}{name}data: {event.payload}\nid: {event.seq}\n\n"


def replay(connections: Connections, watch: Watch, *, named: bool) -> Iterator[bytes]:
    """What is there after the watch's cursor, and no more."""
    yield HELLO
    first = True
    limit = FIRST_LIMIT
    while events := eventlog.read(connections, watch.run_id, watch.cursor, limit):
        limit = _next_limit(events)
        yield from _chunks(events, named=named, first=first)
        first = False
        watch.cursor = events[-1].seq
        if events[-1].is_terminal or watch.ended:
            return


def follow(connections: Connections, watch: Watch, *, named: bool) -> Iterator[bytes]:
    """Everything after the watch's cursor, as it comes, up to the terminal event.

    Silence is filled with pings. Nothing is held while there is no news.
    """
    yield HELLO
    first = True
    limit = FIRST_LIMIT
    ping_seconds = connections.settings.sse_ping_seconds
    while not watch.ended:
        watch.news.clear()
        try:
            events = eventlog.read(connections, watch.run_id, watch.cursor, limit)
        except Unavailable:
            yield PING
            watch.news.wait(UNAVAILABLE_SECONDS)
            continue
        if events:
            # Before the yield: news that come while a slow client takes these are compared to it.
            watch.cursor = events[-1].seq
            yield from _chunks(events, named=named, first=first)
            first = False
            if events[-1].is_terminal:
                return
            there_is_more = eventlog.is_full(events, limit)
            limit = _next_limit(events)
            if there_is_more or watch.announced > watch.cursor:
                continue
        while not watch.news.wait(ping_seconds):
            yield PING


def _next_limit(events: Sequence[StoredEvent]) -> int:
    """How many events to read next, if they are as long as these."""
    size = sum(event.size for event in events)
    return max(1, min(eventlog.READ_LIMIT, eventlog.READ_BYTES * len(events) // size))


def _chunks(events: Sequence[StoredEvent], *, named: bool, first: bool) -> Iterator[bytes]:
    gathered: list[str] = []
    size = 0
    for event in events:
        text = frame(event, named=named, first=first)
        first = False
        gathered.append(text)
        size += len(text)
        if size >= CHUNK_BYTES:
            yield "".join(gathered).encode()
            gathered.clear()
            size = 0
    if gathered:
        yield "".join(gathered).encode()
