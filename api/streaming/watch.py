"""A client of a run's stream, as the hub sees it."""

import contextlib
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, field
from uuid import UUID

from arkloop.api.http.parking import MOST_PARKED, ParkedConnection
from arkloop.api.streaming.stream_pages import FIRST_PAGE_EVENTS, PING, Page
from arkloop.shared.actors import Actor

#: Seconds of silence after which a stream is parked: much more than between two words of a model.
IDLE_SECONDS = 5.0


@dataclass(slots=True, eq=False)
class Watch:
    """The position of a client and its next page. Changed under the hub's lock.

    `cursor` is the last event that it was given, `announced` the last that is known to be there;
    `named` says how its frames look. `until` is where its stream ends even if the run has not.
    `last_seq` is the run's last event when its request has looked; None if it has not.

    One that `awaits_run` follows a thread until a run starts in it: `run_id` is the thread, and
    numbers are positions in it instead of events.
    """

    run_id: UUID
    reader: Actor
    _: KW_ONLY
    cursor: int = 0
    named: bool = False
    until: int | None = None
    awaits_run: bool = False
    last_seq: int | None = None
    connection: socket.socket | None = None
    #: Its stream can be parked; it should be, since it is idle; and the connection if it is.
    can_park: bool = False
    is_idle: bool = False
    parked: ParkedConnection | None = None
    may_read: Callable[[Actor], bool] = lambda _: True
    announced: int = field(init=False)
    limit: int = FIRST_PAGE_EVENTS
    #: The run has ended, and the client was given all of it; or a run has started.
    has_all: bool = False
    is_broken_off: bool = False
    #: The client has closed its connection.
    has_left: bool = False
    waits: bool = False
    #: A page is being read for it, or is there and not taken yet.
    is_read_for: bool = False
    #: Its stream has ended: it takes no more pages.
    is_gone: bool = False
    #: Its last page came from Postgres and left more.
    from_table: bool = False
    descriptor: int | None = None
    wrote_at: float = field(default_factory=time.monotonic)
    _page: Page | None = None
    # A lock and not an Event, of which thousands of idle clients would each hold 1 KiB.
    _wake: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.announced = self._known
        self._wake.acquire()

    def begin(
        self,
        run_id: UUID,
        cursor: int = 0,
        *,
        until: int | None = None,
        awaits_run: bool = False,
    ) -> None:
        """Turn to another run, or to a thread: the client was given everything."""
        self.run_id, self.cursor, self.until, self.awaits_run = run_id, cursor, until, awaits_run
        self.last_seq = None
        self.announced = self._known
        self.limit = FIRST_PAGE_EVENTS
        self.has_all = self.from_table = self.is_read_for = False
        self._page = None
        self._wake.acquire(blocking=False)  # woken for what is over

    @property
    def _known(self) -> int:
        return self.cursor if self.awaits_run else self.until or self.last_seq or 0

    @property
    def ended(self) -> bool:
        return self.has_all or self.is_broken_off

    @property
    def is_over(self) -> bool:
        return self.ended or self.is_complete

    @property
    def is_complete(self) -> bool:
        """True if the client was given everything that its stream was opened for."""
        return self.has_all or (self.until is not None and self.cursor >= self.until)

    @property
    def wants(self) -> bool:
        """True if the next page should be read for it."""
        return self.waits and not self.is_read_for and self.announced > self.cursor

    def wake(self) -> None:
        with contextlib.suppress(RuntimeError):  # it is awake already
            self._wake.release()
        if self.parked is not None:
            parked, self.parked = self.parked, None
            parked.resume()

    def park(self, parked: ParkedConnection) -> bool:
        """Let `wake` resume the stream; False if there is something for it already."""
        # Looked at alone: to try to take it lets other greenlets run, and one of them may wake it.
        if not self._wake.locked():
            return False
        self.parked = parked
        return True

    def rest(self, ping_seconds: float) -> None:
        """Let the stream be parked, or send a ping, if nothing was sent for long enough."""
        if not self.waits:
            return
        silent = time.monotonic() - self.wrote_at
        can_park = self.can_park and self.parked is None and ParkedConnection.count < MOST_PARKED
        if can_park and silent >= min(IDLE_SECONDS, ping_seconds):
            self.is_idle = True
            self.wake()
        elif silent >= ping_seconds:
            if self.parked is not None and self.parked.send(PING):
                self.wrote_at = time.monotonic()
            else:
                self.wake()

    def give(self, page: Page) -> None:
        """Give the client its next page."""
        self._page = page
        self.wake()

    def end(self) -> None:
        """End the stream at the next frame: the client has everything."""
        self.has_all = True
        self.wake()

    def interrupt(self) -> None:
        """Break the stream off at the next frame: its client sees an error and reconnects."""
        self.is_broken_off = True
        self.wake()

    def leave(self) -> None:
        """End the stream of a client that has closed its connection.

        Where the stream was broken off before, the end of the connection is the server's doing.
        """
        self.has_left = self.has_left or not self.is_broken_off
        self.interrupt()

    def cut(self) -> None:
        """Break the stream off now, even if the client blocks a write."""
        self.interrupt()
        if self.connection is not None:
            with contextlib.suppress(OSError):  # it is closed already
                self.connection.shutdown(socket.SHUT_RDWR)

    def wait(self, seconds: float = -1) -> Page | None:
        """Wait for the next page; None if woken to end or to send a ping, or when the time is over.

        Without `seconds` there is no limit.
        """
        if not self._wake.acquire(timeout=seconds) and not self._wake.locked():
            self._wake.acquire()  # woken just as the time ran out
        self.waits = False
        page, self._page = self._page, None
        if page is not None:
            self.is_read_for = False
            # Before it is sent: news that come while a slow client takes it are compared to it.
            self.cursor = page.last_seq
            self.limit = page.next_limit
            self.has_all = self.has_all or page.ended
        return page
