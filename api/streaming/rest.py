"""Requests that wait until a run is at rest: it has ended, or waits for input."""

import time

from arkloop.api.streaming.stream_hub import StreamHub
from arkloop.api.streaming.watch import Watch
from arkloop.shared.events.types import RunWaitingForInput


def wait_for_rest(hub: StreamHub, watch: Watch, seconds: float) -> None:
    """Wait until the run is at rest, for at most these seconds.

    Returns early if the client leaves, loses its right to read, or the server stops.
    """
    deadline = time.monotonic() + seconds
    hub.add(watch)
    try:
        while not watch.is_over and (left := deadline - time.monotonic()) > 0:
            page = hub.next_page(watch, left)
            # An answer would be an event after it.
            if page is not None and page.last_type == RunWaitingForInput.type:
                return
    finally:
        hub.remove(watch)
