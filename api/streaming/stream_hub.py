"""The hub of a web process: one Redis subscription notifies all of its open streams.

A notification says up to which number a run has events, and brings the last of them if they are
short. A watch that has not got that far is read for by the `PageReader`; what Redis does not
report, the poll finds in Postgres. An idle stream is a watch in here and a sleeping thread, or
parked: it has no timer and no connection to a store.
"""

import contextlib
import itertools
import logging
import math
import queue
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import redis

from arkloop.api.streaming import hub_threads
from arkloop.api.streaming.disconnects import Disconnects
from arkloop.api.streaming.page_reader import PageReader
from arkloop.api.streaming.run_heads import RunHead, RunHeads
from arkloop.api.streaming.stream_pages import News, Page
from arkloop.api.streaming.watch import Watch
from arkloop.shared import metrics
from arkloop.shared.storage import keys, signals
from arkloop.shared.storage.connections import Connections

log = logging.getLogger(__name__)

#: How often Postgres is asked for news of all watched runs: a safety net, or all there is.
POLL_SECONDS = 5.0
POLL_SECONDS_WITHOUT_REDIS = 1.0
#: How often the watches are looked at: clients gone, tokens revoked, pings due, the process ending.
CHECK_SECONDS = 0.5
#: Seconds to wait for the confirmation of a subscription.
SUBSCRIBED_SECONDS = 1.0
#: Seconds from there until Postgres is asked for what came between a request's own look at its run
#: and the subscription: what comes afterwards says so itself, and many streams are short.
LOOK_UP_SECONDS = 0.1
#: How many runs or watches are gone through in one go; the others are served in between.
AT_ONCE = 200
#: A subscription needs a channel to begin with.
_NO_RUN = "none"
_MAX_ORDERS = 500
#: The number of the newest event, or what `event_log.news_of` returns.
_NEWS = re.compile("([0-9]{1,19})(?: ([0-9]{1,19})\n|\\Z)")


@dataclass(slots=True)
class _Followed:
    """A run that somebody follows, or a thread; `is_told`: its news come by the subscription.

    `heard` is the newest event that was announced; `is_sure`: it was looked up since the
    subscription. `can_wait`: each watch has looked at the run, just before it.
    """

    is_thread: bool
    watches: set[Watch] = field(default_factory=set)
    is_told: bool = False
    heard: int = 0
    is_sure: bool = False
    can_wait: bool = True
    asked_at: float = field(default_factory=time.monotonic)


class StreamHub:
    """Made once per process, after any fork; `stopping` tells that the process is to end."""

    def __init__(self, connections: Connections) -> None:
        self.stopping: Callable[[], bool] = lambda: False
        self.heads = RunHeads(connections)
        self._connections = connections
        self._lock = threading.Lock()
        self._followed: dict[UUID, _Followed] = {}
        #: Whose stream ends at what is there: nobody tells them of news.
        self._replayed: dict[UUID, set[Watch]] = {}
        self._reader = PageReader(connections, self._lock, self._watches_of)
        self.holes = self._reader.holes
        self._disconnects = Disconnects()
        self._by_descriptor: dict[int, Watch] = {}
        self._pubsub: Any = None
        #: Channels to be subscribed (True) or not any more, in the order of their coming.
        self._wanted: queue.SimpleQueue[tuple[str, bool]] = queue.SimpleQueue()
        #: Runs whose newest event is to be looked up: now, and at a time of the monotonic clock.
        self._unknown: queue.SimpleQueue[UUID] = queue.SimpleQueue()
        self._unsure: queue.SimpleQueue[tuple[float, UUID]] = queue.SimpleQueue()
        self._is_listening = False
        self._started = False
        self._closed = False

    def close(self) -> None:
        """Let the hub's threads end; nobody may watch any more."""
        self._closed = True
        self._reader.close()

    # ---- for the streams ----

    def add(self, watch: Watch) -> None:
        """Notify the watch of its run's new events from now on; if it has an end, only read for it.

        Of events that its request has not seen it hears when the run was looked up.
        """
        metrics.STREAMS.add(1)
        with self._lock:
            self._start()
            if watch.connection is not None:
                watch.descriptor = self._disconnects.add(watch.connection)
                self._by_descriptor[watch.descriptor] = watch
            self._follow(watch)

    def remove(self, watch: Watch) -> None:
        """Remove a watch whose stream has ended."""
        metrics.STREAMS.add(-1)
        with self._lock:
            watch.is_gone = True
            self._reader.release(watch)
            if watch.connection is not None and watch.descriptor is not None:
                self._disconnects.remove(watch.connection, watch.descriptor)
                if self._by_descriptor.get(watch.descriptor) is watch:
                    del self._by_descriptor[watch.descriptor]
            self._unfollow(watch)

    def move(self, watch: Watch, to: UUID, cursor: int = 0, **how: Any) -> None:
        """Turn a watch, whose client was given everything, as `Watch.begin` does."""
        with self._lock:
            self._unfollow(watch)
            watch.begin(to, cursor, **how)
            self._follow(watch)

    def next_page(self, watch: Watch, seconds: float = -1) -> Page | None:
        """Wait for it. None if a ping is due, if the watch `is_over`, or after these seconds."""
        watch.wrote_at = time.monotonic()
        self.expect_page(watch)
        return watch.wait(seconds)

    def expect_page(self, watch: Watch) -> None:
        """Let the next page be read, for which the watch is going to wait."""
        with self._lock:
            self._reader.release(watch)
            watch.waits = True
            if watch.wants:
                self._reader.read_for(watch.run_id)

    # ---- inside ----

    def _follow(self, watch: Watch) -> None:
        if watch.until is not None:
            self._replayed.setdefault(watch.run_id, set()).add(watch)
            return
        followed = self._followed.get(watch.run_id)
        if followed is None:
            followed = self._followed[watch.run_id] = _Followed(watch.awaits_run)
            self._wanted.put((self._channel(watch.run_id, followed), True))
        followed.watches.add(watch)
        is_known = watch.last_seq is not None
        watch.announced = max(watch.announced, followed.heard if is_known else 0)
        followed.can_wait = followed.can_wait and is_known
        if not self._is_listening or (followed.is_told and not (is_known and followed.is_sure)):
            self._unknown.put(watch.run_id)

    def _unfollow(self, watch: Watch) -> None:
        if watch.until is not None:
            replayed = self._replayed[watch.run_id]
            replayed.discard(watch)
            if not replayed:
                del self._replayed[watch.run_id]
            return
        followed = self._followed[watch.run_id]
        followed.watches.discard(watch)
        if not followed.watches:
            del self._followed[watch.run_id]
            # Under the lock: a new watch's subscription must come after it.
            self._wanted.put((self._channel(watch.run_id, followed), False))

    def _channel(self, id_: UUID, followed: _Followed) -> str:
        names = self._connections.keys
        return names.runs(id_) if followed.is_thread else names.news(id_)

    def _start(self) -> None:
        """Start listening with the first watch: a process without streams needs no subscription."""
        if self._started:
            return
        self._started = True
        tasks = (self._subscribe, self._look_up, self._make_sure, self._poll)
        more = (self._check, self._probe, *self._reader.threads)
        hub_threads.start("hub", self._listen, (*tasks, *more), lambda: self._closed)

    def _watches_of(self, run_id: UUID) -> Iterable[Watch]:
        followed = self._followed.get(run_id)
        return itertools.chain(
            followed.watches if followed is not None else (), self._replayed.get(run_id, ())
        )

    def _announce(self, run_id: UUID, seq: int, news: News | None = None) -> None:
        """Announce to the run's watches that there are events up to `seq`, of which `news` are the
        last.
        """
        with self._lock:
            if (followed := self._followed.get(run_id)) is None:
                return
            followed.heard = max(followed.heard, seq)
            behind: list[Watch] = []
            for watch in followed.watches:
                if seq > watch.announced:
                    watch.announced = seq
                    if watch.awaits_run:
                        watch.end()
                    elif watch.wants:
                        behind.append(watch)
            if behind and (news is None or self._reader.give_news(behind, news)):
                self._reader.read_for(run_id)

    def _heard(self, head: RunHead | None, run_id: UUID) -> None:
        """Apply what Postgres has on the run to its watches."""
        with self._lock:
            if (followed := self._followed.get(run_id)) is None:
                return
            followed.is_sure = True
            for watch in list(followed.watches):
                if head is None or not head.is_seen_by(watch.reader):
                    watch.interrupt()  # gone, or private since
                # A cursor beyond the end of the run waits for nothing any more.
                elif head.ended_at is not None and head.last_seq <= watch.cursor:
                    watch.end()
        if head is not None:
            self._announce(run_id, head.last_seq)

    # ---- the hub's threads ----

    def _listen(self, works: Callable[[], None]) -> None:
        names = self._connections.keys
        client = signals.listening_client(self._connections.settings.redis_url)
        try:
            with client.pubsub() as pubsub:
                epoch = names.epoch
                pubsub.subscribe(names.news(_NO_RUN))
                self._pubsub = pubsub
                with self._lock:
                    channels = [self._channel(*item) for item in self._followed.items()]
                    for followed in self._followed.values():
                        followed.is_told = followed.is_sure = followed.can_wait = False
                        followed.heard = 0
                if channels:
                    pubsub.subscribe(*channels)
                self._is_listening = True
                works()
                for message in signals.listen(pubsub, names, epoch):
                    self._on_message(message)
        finally:
            self._is_listening, self._pubsub = False, None
            client.close()

    def _subscribe(self) -> None:
        """Send what is wanted, as much at a time as there is; who watches waits for the answer.

        Here and not in the watching request: redis-py reconnects where an error meets it, and two
        threads on one new connection fail both. Whatever fails here, the listener notices.
        """
        orders = [self._wanted.get()]
        while not self._wanted.empty() and len(orders) < _MAX_ORDERS:
            orders.append(self._wanted.get())
        pubsub = self._pubsub
        if pubsub is None:
            return  # the listener subscribes to all that is watched when it is back
        for is_wanted, group in itertools.groupby(orders, key=lambda order: order[1]):
            channels = [channel for channel, _ in group]
            try:
                (pubsub.subscribe if is_wanted else pubsub.unsubscribe)(*channels)
            except Exception as error:
                log.warning("not subscribed: %s", error)

    def _on_message(self, message: dict[str, Any]) -> None:
        run = keys.subject_of(message["channel"])
        if run == _NO_RUN:
            return
        run_id = UUID(run)
        if message["type"] == "message":
            # Anything else is somebody else's.
            if (found := _NEWS.match(message["data"])) is not None:
                first, last = found.groups()
                payloads = message["data"][found.end() :]
                news = News(int(first) - 1, payloads.encode()) if last is not None else None
                self._announce(run_id, int(last or first), news)
            return
        with self._lock:
            if (followed := self._followed.get(run_id)) is None:
                return
            followed.is_told, followed.is_sure = True, False
            # What happened before is looked up now, or soon: nothing is left out between the two.
            if followed.can_wait:
                self._unsure.put((time.monotonic() + LOOK_UP_SECONDS, run_id))
            else:
                self._unknown.put(run_id)

    def _make_sure(self) -> None:
        """Let a run be looked up when its time has come."""
        due, run_id = self._unsure.get()
        time.sleep(max(0.0, due - time.monotonic()))
        self._unknown.put(run_id)

    def _look_up(self) -> None:
        run_ids = {self._unknown.get()}
        while not self._unknown.empty() and len(run_ids) < AT_ONCE:
            run_ids.add(self._unknown.get())
        with self._lock:
            run_ids &= self._followed.keys()  # who has left meanwhile needs no answer
            known = {run_id: (-1, self._followed[run_id].is_thread) for run_id in run_ids}
        heads = self._news(known)
        for run_id in run_ids:
            self._heard(heads.get(run_id), run_id)

    def _poll(self) -> None:
        """Poll Postgres for all runs once per period, a part at a time."""
        self._pause(math.ceil(len(self._followed) / AT_ONCE) or 1)
        known: dict[UUID, tuple[int, bool]] = {}
        with self._lock:
            for run_id in list(itertools.islice(self._followed, AT_ONCE)):
                # To the end of the queue, behind those that came meanwhile.
                followed = self._followed[run_id] = self._followed.pop(run_id)
                # An end user may have lost the thread: theirs are always looked at.
                announced = min(
                    watch.announced if watch.reader.end_user_id is None else -1
                    for watch in followed.watches
                )
                known[run_id] = announced, followed.is_thread
        for run_id, head in self._news(known).items():
            self._heard(head, run_id)

    def _news(self, known: Mapping[UUID, tuple[int, bool]]) -> dict[UUID, RunHead | None]:
        """Return the heads of runs, and of threads, that have more than the known number."""
        runs = {id_: seq for id_, (seq, is_thread) in known.items() if not is_thread}
        threads = {id_: position for id_, (position, is_thread) in known.items() if is_thread}
        heads: dict[UUID, RunHead | None] = {}
        if runs and not self._closed:
            heads |= self.heads.news(runs)
        if threads and not self._closed:
            heads |= self.heads.thread_news(threads)
        return heads

    def _pause(self, parts: int) -> None:
        """Pause between the parts of the poll; shortly as soon as Redis no longer notifies."""
        step = min(POLL_SECONDS_WITHOUT_REDIS, POLL_SECONDS / parts)
        end = time.monotonic() + POLL_SECONDS / parts
        is_told = True
        while is_told and time.monotonic() < end:
            is_told = self._is_listening and not self._connections.redis_outage.is_on
            time.sleep(step if is_told else POLL_SECONDS_WITHOUT_REDIS / parts)

    def _check(self) -> None:
        """Check all watches once per period, a part at a time."""
        with self._lock:
            watches = [watch for one in self._followed.values() for watch in one.watches]
            watches += itertools.chain(*self._replayed.values())
            self._reader.cut_stalled()
            for number in self._disconnects.look():
                if (gone := self._by_descriptor.get(number)) is not None:
                    gone.leave()
            if self.stopping():
                for watch in watches:
                    watch.interrupt()
        parts = [watches[i : i + AT_ONCE] for i in range(0, len(watches), AT_ONCE)] or [[]]
        for part in parts:
            time.sleep(CHECK_SECONDS / len(parts))
            if self._closed:
                return
            for watch in part:
                if watch.may_read(watch.reader):
                    watch.rest(self._connections.settings.sse_ping_seconds)
                else:
                    watch.interrupt()
        now = time.monotonic()
        with self._lock:
            for run_id, followed in self._followed.items():
                if not followed.is_told and now > followed.asked_at + SUBSCRIBED_SECONDS:
                    followed.asked_at = now
                    self._unknown.put(run_id)

    def _probe(self) -> None:
        """Ping Redis while it is down, to find out when it is back."""
        time.sleep(signals.RECONNECT_SECONDS)
        if self._connections.redis_outage.is_on:
            with contextlib.suppress(redis.RedisError):
                self._connections.ask_redis(lambda client: client.ping())
