"""The pages that clients have been given and have not taken yet: a bound for the whole process.

A client that takes nothing holds a page, of 128 KiB or of one event, which may have 16 MB. All
that is held is bounded: beyond that nothing more is read, and who has held something for long is
cut off. It resumes from its last whole event.
"""

import time
from typing import NamedTuple

from arkloop.api.streaming.stream_pages import Page
from arkloop.api.streaming.watch import Watch

MAX_HELD_BYTES = 32 * 1024 * 1024
#: While more than that is held, clients that have held a page for longer are cut off.
STALLED_SECONDS = 5.0


class _Held(NamedTuple):
    page: Page
    since: float


class HeldPages:
    """The pages that clients hold. Changed under the hub's lock."""

    def __init__(self) -> None:
        #: In the order in which they were given: the oldest first.
        self._of_watches: dict[Watch, _Held] = {}
        #: By the page's identity: those who read at one place hold the same page.
        self._holders: dict[int, int] = {}
        self._bytes = 0

    @property
    def are_too_many(self) -> bool:
        return self._bytes >= MAX_HELD_BYTES

    def add(self, watch: Watch, page: Page) -> None:
        """Record that the client is given the page, after it has taken the one before."""
        self._of_watches[watch] = _Held(page, time.monotonic())
        holders = self._holders.get(id(page), 0)
        if not holders:
            self._bytes += len(page.data)
        self._holders[id(page)] = holders + 1

    def remove(self, watch: Watch) -> None:
        """Forget what the client holds, if anything: it has taken the page, or is gone."""
        held = self._of_watches.pop(watch, None)
        if held is None:
            return
        page = held.page
        self._holders[id(page)] -= 1
        if not self._holders[id(page)]:
            del self._holders[id(page)]
            self._bytes -= len(page.data)

    def cut_stalled(self) -> None:
        """Cut off the clients that have held a page longest, while too much is held."""
        before = time.monotonic() - STALLED_SECONDS
        for watch, held in list(self._of_watches.items()):
            if not self.are_too_many or held.since > before:
                return
            self.remove(watch)
            watch.cut()
