"""The body of an event stream: the pages of a watch, pings in silence, and its end."""

from collections.abc import Iterator
from typing import Any

from api.stream_hub import StreamHub
from api.watch import Watch

#: In front of a stream's first frame. Not a frame of its own, which some clients take for an event.
RETRY = b"retry: 1000\n"
#: No frame and no empty line: some clients would take those for an empty event.
HELLO = b": ok\n"
PING = b": ping\n"
#: A client that takes nothing for so long is closed.
BLOCKED_WRITE_SECONDS = 60


def stream(hub: StreamHub, watch: Watch, environ: dict[str, Any]) -> Iterator[bytes]:
    """Everything after the watch's cursor, as it comes, up to the terminal event or its `until`.

    Nothing is held while there is no news: `environ`, with all that hangs on it, is emptied.
    """
    environ.clear()
    del environ
    client = watch.connection
    before = client.gettimeout() if client is not None else None
    if client is not None:
        client.settimeout(BLOCKED_WRITE_SECONDS)
    hub.add(watch)
    try:
        yield HELLO
        first = RETRY
        while not watch.is_over:
            page = hub.next_page(watch)
            if page is not None:
                for piece in page.pieces():
                    yield first + piece if first else piece
                    first = b""
                # They would be kept for as long as nothing new comes.
                page, piece = None, b""
            elif not watch.is_over:
                yield PING
    finally:
        hub.remove(watch)
        if client is not None:
            client.settimeout(before)
