"""Long polls: requests that wait for work that any web process may hand out.

An idle poll is an entry in the hub and a sleeping greenlet: no connection to Postgres or Redis.
`{epoch}:polls` announces work to all web processes; each wakes the poll that has waited longest.
Postgres has the work itself: a poll that is woken in vain waits again, and work whose announcement
was lost is found by a look at all of it, every few seconds.
"""

import logging
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from arkloop.api.streaming import hub_threads
from arkloop.api.streaming.disconnects import Disconnects, is_closed
from arkloop.shared.errors import Unavailable
from arkloop.shared.outage_log import reason_of
from arkloop.shared.storage import signals
from arkloop.shared.storage.connections import Connections

log = logging.getLogger(__name__)

#: How often Postgres is searched for work: a safety net, or all there is.
LOOK_SECONDS = 2.0
LOOK_SECONDS_WITHOUT_REDIS = 0.5
#: How many polls begin a look of their own in a second, when the process begins to listen: each
#: asks Postgres, through the pool of all requests.
OWN_LOOKS_PER_SECOND = 200
#: How often closed connections are looked for.
CHECK_SECONDS = 0.25

#: `(topic, detail)` of work that waits in Postgres.
Look = Callable[[], Iterable[tuple[str, str]]]


@dataclass(slots=True, eq=False)
class LongPoll:
    """A request that waits for a topic; only for work with one of its `details`, if it has any."""

    topic: str
    details: frozenset[str] | None = None
    connection: socket.socket | None = None
    #: None of the hub's looks finds its news, so it looks by itself soon after the process begins
    #: to listen: what was announced before was lost.
    looks_itself: bool = False
    #: Its client has closed the connection while it waited.
    has_left: bool = False
    #: It has to respond now: its client has left, or the process stops.
    is_over: bool = False
    #: The detail for which it was woken last and that it has not looked for yet.
    news: str | None = None
    #: The detail for which it looks now.
    sought: str | None = None
    descriptor: int | None = None
    # A lock and not an Event, of which thousands of idle polls would each hold 1 KiB.
    _wake: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._wake.acquire()

    def client_has_left(self) -> bool:
        """Return whether the client has closed the connection by now."""
        return self.connection is not None and is_closed(self.connection)

    def wake(self, news: str) -> None:
        """Let the poll look for work."""
        self.news = news
        self._release()

    def _release(self) -> None:
        with suppress(RuntimeError):  # it is awake already
            self._wake.release()

    def end(self) -> None:
        """Let the poll respond with what there is."""
        self.is_over = True
        self._release()

    def wait(self, seconds: float) -> bool:
        """Wait until there may be work, for at most these seconds; False if it should respond.

        News that come while the poll looks for work wake it again.
        """
        woken = seconds > 0 and self._wake.acquire(timeout=seconds)
        if not woken or self.is_over:
            return False
        self.sought, self.news = self.news, None
        return True


class LongPollHub:
    """All long polls of a web process; made once per process, after any fork."""

    def __init__(self, connections: Connections) -> None:
        self.stopping: Callable[[], bool] = lambda: False
        #: Each finds the work of one kind in Postgres.
        self.looks: list[Look] = []
        self._connections = connections
        self._lock = threading.Lock()
        #: By topic, those first that have waited longest.
        self._waiting: dict[str, dict[LongPoll, None]] = {}
        self._disconnects = Disconnects()
        self._by_descriptor: dict[int, LongPoll] = {}
        self._look_now = threading.Event()
        self._is_listening = False
        self._started = False
        self._closed = False

    def close(self) -> None:
        """Let the hub's threads end; nobody may wait any more."""
        self._closed = True
        self._look_now.set()

    @contextmanager
    def waiting(self, poll: LongPoll) -> Iterator[None]:
        """Wake the poll for its news while the block is executed."""
        with self._lock:
            self._start()
            self._waiting.setdefault(poll.topic, {})[poll] = None
            if poll.connection is not None:
                poll.descriptor = self._disconnects.add(poll.connection)
                self._by_descriptor[poll.descriptor] = poll
        try:
            yield
        finally:
            with self._lock:
                self._remove(poll)
            if poll.news is not None:  # it leaves without having looked: another one looks
                self.wake(poll.topic, poll.news)

    def wake(self, topic: str, detail: str, *, everyone: bool = False) -> None:
        """Wake the poll of the topic that has waited longest, or everyone, if it is for them."""
        with self._lock:
            for poll in self._waiting.get(topic, ()):
                if poll.news is None and (poll.details is None or detail in poll.details):
                    poll.wake(detail)
                    if not everyone:
                        return

    def pass_on(self, poll: LongPoll) -> None:
        """Wake a poll for the work that this one was woken for and does not take."""
        if poll.sought is not None:
            self.wake(poll.topic, poll.sought)

    def _remove(self, poll: LongPoll) -> None:
        waiting = self._waiting[poll.topic]
        del waiting[poll]
        if not waiting:
            del self._waiting[poll.topic]
        if poll.connection is not None and poll.descriptor is not None:
            self._disconnects.remove(poll.connection, poll.descriptor)
            if self._by_descriptor.get(poll.descriptor) is poll:
                del self._by_descriptor[poll.descriptor]

    # ---- the hub's threads ----

    def _start(self) -> None:
        """Start with the first poll: a process without polls needs no subscription."""
        if self._started:
            return
        self._started = True
        tasks = (self._look, self._check)
        hub_threads.start("polls", self._listen, tasks, lambda: self._closed)

    def _listen(self, works: Callable[[], None]) -> None:
        names = self._connections.keys
        client = signals.listening_client(self._connections.settings.redis_url)
        try:
            with client.pubsub() as pubsub:
                epoch = names.epoch
                pubsub.subscribe(names.polls())
                works()
                for message in signals.listen(pubsub, names, epoch):
                    if self._closed:
                        return
                    self._on_message(message)
        finally:
            self._is_listening = False
            client.close()

    def _on_message(self, message: dict[str, Any]) -> None:
        if message["type"] == "subscribe":
            self._is_listening = True
            self._look_now.set()  # for what was announced before
            threading.Thread(
                target=self._wake_those_that_look, name="polls_own", daemon=True
            ).start()
            return
        whom, _, rest = str(message["data"]).partition(" ")
        topic, _, detail = rest.partition(" ")
        self.wake(topic, detail, everyone=whom == "all")

    def _wake_those_that_look(self) -> None:
        with self._lock:
            every = [poll for waiting in self._waiting.values() for poll in waiting]
        for poll in every:
            if not poll.looks_itself:
                continue
            with self._lock:
                if poll.news is None:
                    poll.wake("")
            time.sleep(1 / OWN_LOOKS_PER_SECOND)

    def _look(self) -> None:
        is_told = self._is_listening and not self._connections.redis_outage.is_on
        self._look_now.wait(LOOK_SECONDS if is_told else LOOK_SECONDS_WITHOUT_REDIS)
        self._look_now.clear()
        if not self._waiting or self._closed:
            return
        for look in self.looks:
            for topic, detail in look():
                self.wake(topic, detail)

    def _check(self) -> None:
        time.sleep(CHECK_SECONDS)
        with self._lock:
            for number in self._disconnects.look():
                if (gone := self._by_descriptor.get(number)) is not None:
                    gone.has_left = True
                    gone.end()
            if self.stopping():
                for waiting in self._waiting.values():
                    for poll in waiting:
                        poll.end()


def respond_later(
    hub: LongPollHub,
    poll: LongPoll,
    environ: dict[str, Any],
    seconds: float,
    take: Callable[[], bytes | None],
    otherwise: Callable[[], bytes],
) -> Iterator[bytes]:
    """Yield the body of a response as soon as `take` returns one; after `seconds`, `otherwise`.

    Nothing is held meanwhile: `environ`, with all that hangs on it, is emptied. A client that has
    left takes no work.
    """
    environ.clear()
    del environ
    end = time.monotonic() + seconds
    body = None
    with hub.waiting(poll):
        body = _taken(hub, poll, take)
        while body is None and poll.wait(end - time.monotonic()):
            body = _taken(hub, poll, take)
    yield body if body is not None else otherwise()


def _taken(hub: LongPollHub, poll: LongPoll, take: Callable[[], bytes | None]) -> bytes | None:
    """Return what `take` returns; None if the client has left or Postgres is unavailable."""
    if poll.client_has_left():
        hub.pass_on(poll)  # not noticed yet
        poll.has_left = True
        poll.end()
        return None
    with outage_logged():
        return take()
    return None


@contextmanager
def outage_logged() -> Iterator[None]:
    """Log that Postgres is unavailable to the block: a poll that has waited has sent its status."""
    try:
        yield
    except Unavailable as error:
        log.warning("long poll: %s", reason_of(error))
