"""One per web process: which of the runs that somebody follows have news.

All open streams share one Redis subscription. A notification marks the run's
watches, and each client then reads for itself, from its own cursor: a slow one
costs nothing but that cursor. Whatever Redis does not tell, the poll finds in
Postgres.
"""

import _socket
import contextlib
import itertools
import logging
import queue
import socket
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID

import redis
from sqlalchemy import text

from shared import keys, signals
from shared.connections import Connections
from shared.errors import Unavailable

log = logging.getLogger(__name__)

#: How often Postgres is asked for news of all watched runs: a safety net, or all there is.
POLL_SECONDS = 5.0
POLL_SECONDS_WITHOUT_REDIS = 1.0
#: How often the watches are looked at: clients gone, tokens revoked, the process ending.
CHECK_SECONDS = 0.5
SUBSCRIBED_SECONDS = 1.0
_NO_CHANNEL = "run:none:news"
_MAX_ORDERS = 500

_LATEST = """
SELECT r.id, coalesce((SELECT max(e.seq) FROM run_events e WHERE e.run_id = r.id), 0) AS last_seq,
    r.ended_at IS NOT NULL AS ended,
    CASE WHEN t.is_private THEN t.created_by_user_id END AS only_for
FROM runs r JOIN threads t ON t.id = r.thread_id
WHERE r.id = ANY(CAST(:ids AS uuid[])) AND t.deleted_at IS NULL
"""


class Watch:
    """One client's: `news` is set when there are events after its `cursor`, or it must end.

    `announced` is the highest seq that it was told of, `user_id` who reads.
    """

    def __init__(
        self,
        run_id: UUID,
        user_id: UUID | None = None,
        connection: socket.socket | None = None,
        allowed: Callable[[], bool] = lambda: True,
    ) -> None:
        self.run_id = run_id
        self.user_id = user_id
        self.cursor = 0
        self.announced = 0
        self.news = threading.Event()
        self.ended = False
        self.subscribed = threading.Event()
        self._connection = connection
        self._allowed = allowed

    def announce(self, seq: int) -> None:
        """There are events up to `seq`."""
        if seq > self.announced:
            self.announced = seq
            if seq > self.cursor:
                self.news.set()

    def end(self) -> None:
        """The client is to be let go: its stream ends at the next frame."""
        self.ended = True
        self.news.set()

    def check(self) -> None:
        """End if the client has closed the connection or may not read any more."""
        if not self._is_connected() or not self._allowed():
            self.end()

    def _is_connected(self) -> bool:
        """An idle client's farewell is seen only by who looks: nothing is written to it."""
        if self._connection is None:
            return True
        if self._connection.fileno() < 0:
            return False  # closed by the server, whose generator has not noticed yet
        # Not by the object's own recv: a gevent socket would wait in it for the client.
        peer = _socket.socket(fileno=self._connection.fileno())
        try:
            return peer.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) != b""
        except (BlockingIOError, InterruptedError):
            return True
        except OSError:
            return False
        finally:
            peer.detach()


class StreamHub:
    """Made once per process, after any fork; `stopping` tells that the process is to end."""

    def __init__(self, connections: Connections) -> None:
        self.stopping: Callable[[], bool] = lambda: False
        self._connections = connections
        self._lock = threading.Lock()
        self._watches: dict[UUID, set[Watch]] = defaultdict(set)
        self._pubsub: Any = None
        #: Channels to be subscribed (True) or not any more, in the order of their coming.
        self._wanted: queue.SimpleQueue[tuple[str, bool]] = queue.SimpleQueue()
        self._is_listening = False
        self._started = False
        self._closed = False

    def close(self) -> None:
        """Let the hub's threads end; nobody may watch any more."""
        self._closed = True

    @contextlib.contextmanager
    def watch(
        self,
        run_id: UUID,
        user_id: UUID | None = None,
        connection: socket.socket | None = None,
        allowed: Callable[[], bool] = lambda: True,
    ) -> Iterator[Watch]:
        """Be told of the run's news. Returns once the subscription is confirmed, or after 1 s.

        `user_id` reads over the socket `connection`; `allowed` says whether their token holds.
        """
        watch = Watch(run_id, user_id, connection, allowed)
        with self._lock:
            self._start()
            first = run_id not in self._watches
            known = next(iter(self._watches[run_id]), None)
            if known is not None:
                watch.subscribed = known.subscribed
            self._watches[run_id].add(watch)
            if first:
                self._wanted.put((keys.news(run_id), True))
        try:
            if self._is_listening:
                watch.subscribed.wait(SUBSCRIBED_SECONDS)
            yield watch
        finally:
            with self._lock:
                self._watches[run_id].discard(watch)
                if not self._watches[run_id]:
                    del self._watches[run_id]
                    # Under the lock: a new watch's subscription must come after it.
                    self._wanted.put((keys.news(run_id), False))

    def _start(self) -> None:
        """With the first watch: a process that serves no stream listens to nothing."""
        if self._started:
            return
        self._started = True
        for task in (self._listen, self._subscribe, self._poll, self._check):
            threading.Thread(
                target=self._forever, args=(task,), name=f"hub{task.__name__}", daemon=True
            ).start()

    def _watched(self) -> list[Watch]:
        with self._lock:
            return [watch for watches in self._watches.values() for watch in watches]

    def _of_channel(self, channel: str) -> list[Watch]:
        run_id = UUID(channel.split(":")[1])
        with self._lock:
            return list(self._watches.get(run_id, ()))

    # ---- the hub's threads ----

    def _forever(self, task: Callable[[], None]) -> None:
        while not self._closed:
            try:
                task()
            except (redis.RedisError, Unavailable, OSError) as error:
                if not self._closed:
                    log.warning("%s: %s", task.__name__, error)
                time.sleep(signals.RECONNECT_SECONDS)
            except Exception:
                log.exception("%s failed", task.__name__)
                time.sleep(signals.RECONNECT_SECONDS)

    def _listen(self) -> None:
        client = signals.listening_client(self._connections.settings.redis_url)
        try:
            with client.pubsub() as pubsub:
                pubsub.subscribe(_NO_CHANNEL)
                self._pubsub = pubsub
                with self._lock:
                    runs = list(self._watches)
                if runs:
                    pubsub.subscribe(*map(keys.news, runs))
                self._is_listening = True
                # What happened while nobody listened is read now.
                for watch in self._watched():
                    watch.news.set()
                for message in signals.listen(pubsub):
                    self._on_message(message)
        finally:
            self._is_listening = False
            self._pubsub = None
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
        if message["channel"] == _NO_CHANNEL:
            return
        for watch in self._of_channel(message["channel"]):
            if message["type"] == "subscribe":
                watch.subscribed.set()
            else:
                watch.announce(int(message["data"]))

    def _poll(self) -> None:
        is_told = self._is_listening and not self._connections.redis_outage.is_on
        time.sleep(POLL_SECONDS if is_told else POLL_SECONDS_WITHOUT_REDIS)
        watches = self._watched()
        if not watches:
            return
        runs = list({watch.run_id for watch in watches})
        with self._connections.reading() as sql:
            rows = sql.execute(text(_LATEST), {"ids": runs})
            latest = {row.id: row for row in rows}
        for watch in watches:
            row = latest.get(watch.run_id)
            if row is None or row.only_for not in (None, watch.user_id):
                watch.end()  # gone, or private since
                continue
            watch.announce(row.last_seq)
            # A cursor beyond the end of the run waits for nothing any more.
            if row.ended and row.last_seq <= watch.cursor:
                watch.end()

    def _check(self) -> None:
        time.sleep(CHECK_SECONDS)
        for watch in self._watched():
            if self.stopping():
                watch.end()
            else:
                watch.check()
