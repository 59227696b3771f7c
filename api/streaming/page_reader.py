"""Reads pages for all streams of the process: from Redis together, from Postgres what Redis lacks.

Clients that wait at the same cursor get the same page. A client is read for only while it waits:
a slow one costs nothing but its cursor.
"""

import logging
import queue
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple
from uuid import UUID

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from arkloop.api.streaming import stream_pages
from arkloop.api.streaming.held_pages import HeldPages
from arkloop.api.streaming.holes import Holes
from arkloop.api.streaming.stream_pages import News, Page
from arkloop.api.streaming.watch import Watch
from arkloop.shared.errors import EventsLost, Unavailable
from arkloop.shared.events import event_log
from arkloop.shared.storage.connections import REDIS_TIMEOUT_SECONDS, Connections

log = logging.getLogger(__name__)

#: Pages that are read from Redis in one round trip, and held at once for clients.
MOST_AT_ONCE = 64
#: Pages that are read from Postgres at the same time, so that requests find connections too.
TABLE_READERS = 3
UNAVAILABLE_SECONDS = 1.0


class _Place(NamedTuple):
    """The key of a page: clients with the same one share the page."""

    run_id: UUID
    cursor: int
    named: bool


class _Read(NamedTuple):
    place: _Place
    limit: int
    watches: Sequence[Watch]
    #: The last event that Postgres was known to have when the read began.
    announced: int


class PageReader:
    """`watches_of` tells who follows a run; `lock` is held while a watch is changed."""

    def __init__(
        self,
        connections: Connections,
        lock: threading.Lock,
        watches_of: Callable[[UUID], Iterable[Watch]],
    ) -> None:
        self._connections = connections
        self._lock = lock
        self._watches_of = watches_of
        self._redis = bytes_client(connections.settings.redis_url)
        self.held = HeldPages()
        self.holes = Holes(connections)
        self._has_room = threading.Event()
        self._has_room.set()
        #: Runs of which somebody waits for a page, in the order of their coming.
        self._behind: dict[UUID, None] = {}
        self._is_behind = threading.Event()
        self._of_table: queue.SimpleQueue[_Read] = queue.SimpleQueue()

    @property
    def threads(self) -> list[Callable[[], None]]:
        """The tasks to run forever, each in a thread of its own."""
        return [self._read_streams, *[self._read_table] * TABLE_READERS]

    def read_for(self, run_id: UUID) -> None:
        """Queue the run for reading: one of its clients is ready. Called under the lock."""
        self._behind[run_id] = None
        self._is_behind.set()

    def give_news(self, watches: Iterable[Watch], news: News) -> bool:
        """Give the events that came with a notification to those who have all before them.

        Returns whether there are others. Called under the lock.
        """
        are_others = False
        for watch in watches:
            page = None
            if watch.cursor == news.after_seq and self._has_room.is_set():
                page = news.page(named=watch.named)
            if page is None:
                are_others = True
                continue
            watch.is_read_for, watch.from_table = True, False
            self.held.add(watch, page)
            watch.give(page)
        self._measure()
        return are_others

    def release(self, watch: Watch) -> None:
        """Release the page of a client that has taken it, or is gone. Called under the lock."""
        self.held.remove(watch)
        self._measure()

    def cut_stalled(self) -> None:
        """Make room where clients that take nothing hold too much. Called under the lock."""
        self.held.cut_stalled()
        self._measure()

    def _measure(self) -> None:
        if self.held.are_too_many:
            self._has_room.clear()
        else:
            self._has_room.set()

    def close(self) -> None:
        self._redis.close()

    def _read_streams(self) -> None:
        self._is_behind.wait()
        self._has_room.wait()
        reads = self._next_reads()
        of_table = [read for read in reads if read.watches[0].from_table]
        of_streams = [read for read in reads if not read.watches[0].from_table]
        if of_streams:
            try:
                pages = self._ask_redis(of_streams)
            except redis.RedisError:
                pages = [None] * len(of_streams)
            except Exception:
                # Whatever stands in Redis, nobody must wait for ever: Postgres has it all.
                log.exception("reading streams from Redis failed")
                pages = [None] * len(of_streams)
            for read, page in zip(of_streams, pages, strict=True):
                if page is None:
                    of_table.append(read)
                else:
                    self._give(read, page, from_table=False)
        for read in of_table:
            self._of_table.put(read)

    def _next_reads(self) -> list[_Read]:
        together: dict[_Place, list[Watch]] = defaultdict(list)
        with self._lock:
            while self._behind and len(together) < MOST_AT_ONCE:
                run_id = next(iter(self._behind))
                del self._behind[run_id]
                for watch in self._watches_of(run_id):
                    if not watch.wants:
                        continue
                    place = _Place(run_id, watch.cursor, watch.named)
                    if place not in together and len(together) == MOST_AT_ONCE:
                        self._behind[run_id] = None  # for the next time, after the others
                    else:
                        watch.is_read_for = True
                        together[place].append(watch)
            if not self._behind:
                self._is_behind.clear()
        return [
            _Read(
                place,
                min(watch.limit for watch in watches),
                watches,
                max(watch.announced for watch in watches),
            )
            for place, watches in together.items()
        ]

    def _ask_redis(self, reads: Sequence[_Read]) -> list[Page | None]:
        # While Redis is silent every second caller would wait for it, and this one is everybody's:
        # the hub finds out when it is back.
        if self._connections.redis_outage.is_on:
            raise redis.ConnectionError("Redis was unavailable a moment ago")
        cursors = [(read.place.run_id, read.place.cursor, read.limit) for read in reads]
        named = [read.place.named for read in reads]
        pages: list[Page | None] = self._connections.ask_redis(
            lambda _: stream_pages.from_streams(self._redis, self._connections.keys, cursors, named)
        )
        return pages

    def _read_table(self) -> None:
        read = self._of_table.get()
        self._has_room.wait()
        place = read.place
        try:
            with self._connections.reading() as sql:
                page = stream_pages.from_table(
                    sql, place.run_id, place.cursor, read.limit, named=place.named
                )
        except Unavailable:
            time.sleep(UNAVAILABLE_SECONDS)
            self._want_again(read.watches)
        except EventsLost:
            self._refuse(read)
        except BaseException:
            self._want_again(read.watches)
            raise
        else:
            if page is None:
                self._nothing_there(read)
            else:
                self._give(read, page, from_table=page.events >= read.limit)

    def _give(self, read: _Read, page: Page, *, from_table: bool) -> None:
        with self._lock:
            for watch in read.watches:
                if watch.is_gone or watch.run_id != read.place.run_id:
                    continue
                watch.from_table = from_table
                watch.announced = max(watch.announced, page.last_seq)
                self.held.add(watch, page)
                watch.give(page)
            self._measure()

    def _want_again(self, watches: Iterable[Watch]) -> None:
        with self._lock:
            for watch in watches:
                watch.is_read_for = False
                self.read_for(watch.run_id)

    def _refuse(self, read: _Read) -> None:
        """Break the streams off at a hole; the next request with this cursor gets 410."""
        place = read.place
        try:
            with self._connections.reading() as sql:
                extra = event_log.subject(sql, place.run_id)
        except Unavailable:
            extra = {"run_id": str(place.run_id)}
        log.error(
            "run %s: event %d is missing in Postgres; its stream ends",
            place.run_id,
            place.cursor + 1,
            extra=extra,
        )
        self.holes.add(place.run_id, place.cursor)
        with self._lock:
            for watch in read.watches:
                watch.is_read_for = False
                watch.interrupt()

    def _nothing_there(self, read: _Read) -> None:
        """Handle an announced event that neither store has: a deleted run, or a restored Redis."""
        with self._lock:
            for watch in read.watches:
                if watch.run_id != read.place.run_id:
                    continue
                watch.is_read_for = False
                if watch.until is not None:
                    watch.interrupt()
                elif watch.announced > read.announced:
                    self.read_for(watch.run_id)
                else:
                    watch.announced = watch.cursor


def bytes_client(url: str) -> redis.Redis:
    """Create a client that decodes nothing, for one thread; replies pass through as bytes."""
    client = redis.Redis.from_url(
        url,
        socket_timeout=REDIS_TIMEOUT_SECONDS,
        socket_connect_timeout=REDIS_TIMEOUT_SECONDS,
        retry=Retry(NoBackoff(), 1, supported_errors=(redis.ConnectionError,)),
    )
    # The entries as they come, not as dictionaries.
    client.set_response_callback("XRANGE", lambda entries, **_: entries)
    return client
