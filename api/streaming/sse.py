"""The body of an event stream: the pages of a watch, pings in silence, and its end."""

import socket
import struct
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from typing import Any

from arkloop.api.http.parking import BLOCKED_WRITE_SECONDS, IDLE
from arkloop.api.streaming.disconnects import is_closed
from arkloop.api.streaming.stream_hub import StreamHub
from arkloop.api.streaming.stream_pages import PING, Page
from arkloop.api.streaming.watch import Watch

HEADERS = {
    "Content-Type": "text/event-stream",
    "Cache-Control": "no-cache, no-transform",
    "X-Accel-Buffering": "no",
}
#: In front of a stream's first frame. Not a frame of its own, which some clients take for an event.
RETRY = b"retry: 1000\n"
#: Like `PING`, no frame.
HELLO = b": ok\n"
#: Seconds of silence before each extra ping to WebKit, after a piece. Until August 2026 its `fetch`
#: withholds what arrives while the page is busy, until more arrives (bugs.webkit.org/322545). Each
#: pause is longer than the one before, as a page may still be busy when the first ping arrives.
WEBKIT_PING_SECONDS = (0.2, 0.4, 0.8, 1.6)


def reopening(cursor: int | str) -> bytes:
    """Return the opening of a stream that a browser's EventSource reads after `cursor`.

    WebKit keeps what it has read of a frame when a connection breaks, and reads on where the next
    one begins. The comment ends a line that was cut; then an event of a type that nobody listens
    to takes the data before it, and sets the id, which may have been cut, too. Without data before
    it, this is no event at all (WHATWG HTML, 9.2.6). A browser that lost the connection within the
    first frame has no id to say so: hence every stream to one begins like this.
    """
    return HELLO + b"id: %b\nevent: resumed\n\n" % str(cursor).encode()


def stream(
    hub: StreamHub,
    watch: Watch,
    environ: dict[str, Any],
    opening: bytes = HELLO,
    on_leave: Callable[[], None] = lambda: None,
    pieces: Callable[[Page], Iterator[bytes]] = Page.pieces,
    follow_on: Callable[[], bytes | None] | None = None,
) -> Generator[bytes]:
    """Yield everything after the watch's cursor, up to the terminal event or the watch's `until`.

    A stream that ends before that breaks the connection off, since many clients take an orderly
    end for the run's. Nothing is held while there is no news: `environ`, with all that hangs on it,
    is emptied. `on_leave` is called if the client closes the connection before the end; a server
    that stops, or cuts a slow client, does not count. `pieces` makes what is sent of a page.

    `follow_on` is called when the watch is complete: it moves the watch and returns what to send,
    or None if the stream is complete. Such a stream is broken off wherever it is interrupted.
    """
    is_chunked = environ.get("SERVER_PROTOCOL") != "HTTP/1.0"
    pauses = WEBKIT_PING_SECONDS if _is_webkit(environ.get("HTTP_USER_AGENT", "")) else ()
    environ.clear()
    del environ
    if (client := watch.connection) is not None:
        before = client.gettimeout()
        client.settimeout(BLOCKED_WRITE_SECONDS)
        watch.can_park = True
    del client  # that of a parked stream is another one afterwards
    hub.add(watch)
    try:
        yield opening
        opening = b""  # a protocol's may have kilobytes
        first = RETRY
        until_ping = iter(pauses)
        is_whole = False
        while not is_whole:
            while not watch.is_over:
                page = hub.next_page(watch, next(until_ping, -1.0))
                while page is None and watch.is_idle and not watch.is_over:
                    watch.is_idle = False
                    hub.expect_page(watch)
                    yield IDLE
                    page = watch.wait()
                watch.is_idle = False
                if page is not None:
                    for piece in pieces(page):
                        yield first + piece if first else piece
                        first = b""
                    until_ping = iter(pauses)
                    # They would be kept for as long as nothing new comes.
                    page, piece = None, b""
                elif not watch.is_over:
                    yield PING
            if follow_on is None:
                is_whole = watch.is_complete
                break
            if watch.is_broken_off:
                break
            sent = follow_on()
            is_whole = sent is None
            if sent:
                yield first + sent
                first = b""
                until_ping = iter(pauses)
        if not is_whole and watch.connection is not None:
            _break_off(watch.connection, is_chunked=is_chunked)
    except GeneratorExit:  # a write has failed, also that to a client that has taken nothing
        if watch.connection is None or is_closed(watch.connection):
            watch.has_left = watch.has_left or not watch.ended
        raise
    finally:
        hub.remove(watch)
        if watch.connection is not None:
            watch.connection.settimeout(before)
        if watch.has_left and not watch.is_complete:
            on_leave()


def _is_webkit(user_agent: str) -> bool:
    """Return whether the client is WebKit; Chromium's `User-Agent` contains `AppleWebKit/`, too."""
    return "AppleWebKit/" in user_agent and "Chrome/" not in user_agent


def _break_off(client: socket.socket, *, is_chunked: bool) -> None:
    """Close the connection so that the client, or a proxy before it, sees an error."""
    with suppress(OSError):  # the client is gone
        if is_chunked:
            client.shutdown(socket.SHUT_RDWR)  # before the last chunk, which is then never sent
        else:
            # Where the end of the connection ends the body, only a reset tells the difference.
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
