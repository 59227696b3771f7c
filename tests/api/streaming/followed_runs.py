"""A run with a worker that writes, and what clients of a hub are sent of it."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from uuid import UUID

import httpx
from httpx_sse import EventSource, ServerSentEvent

from arkloop.api.streaming import sse
from arkloop.api.streaming.stream_hub import StreamHub
from arkloop.api.streaming.watch import Watch
from arkloop.shared.claim import Claim
from arkloop.shared.events import event_log
from arkloop.shared.events.stored_events import StoredEvent
from arkloop.shared.events.types import MessageDelta
from tests.stored_runs import StoredRuns


def read_by_httpx_sse(*pieces: bytes) -> list[ServerSentEvent]:
    """Read a stream that arrives in these pieces."""
    head = {"Content-Type": "text/event-stream"}
    response = httpx.Response(200, headers=head, content=iter(pieces))
    return list(EventSource(response).iter_sse())


def events_of_pieces(*pieces: bytes) -> list[list[ServerSentEvent]]:
    """Read a stream that arrives in these pieces; return the events that each of them completes."""
    found: list[list[ServerSentEvent]] = []

    def content() -> Iterator[bytes]:
        for piece in pieces:
            found.append([])
            yield piece

    head = {"Content-Type": "text/event-stream"}
    for sent in EventSource(httpx.Response(200, headers=head, content=content())).iter_sse():
        found[-1].append(sent)
    return found


def seqs(stream: bytes) -> list[int]:
    return [int(sent.id) for sent in read_by_httpx_sse(stream)]


@dataclass
class FollowedRun:
    """Its first event is there; the others are written here."""

    stored: StoredRuns
    claim: Claim

    @classmethod
    def of(cls, stored: StoredRuns) -> "FollowedRun":
        return cls(stored, stored.claimed())

    @property
    def id(self) -> UUID:
        return self.claim.run_id

    def write(self, *texts: str) -> list[StoredEvent]:
        return self.stored.write(self.claim, *map(MessageDelta, texts))

    def end(self) -> None:
        self.stored.finish(self.claim)

    def lose(self, *seqs: int) -> None:
        """Delete these events from Redis; without any, all of the run."""
        name = self.stored.connections.keys.events(self.id)
        redis = self.stored.connections.redis
        redis.xdel(name, *(f"{seq}-0" for seq in seqs)) if seqs else redis.delete(name)

    @property
    def frames(self) -> list[bytes]:
        """The frames that a client must get, made from the rows."""
        events: list[StoredEvent] = []
        with self.stored.connections.reading() as sql:
            while more := event_log.read_table(sql, self.id, len(events)):
                events += more
        return [f"data: {event.payload}\nid: {event.seq}\n\n".encode() for event in events]

    def watch(self, cursor: int = 0, *, named: bool = False, until: int | None = None) -> Watch:
        return Watch(self.id, self.stored.actor, cursor=cursor, named=named, until=until)


@dataclass
class Client:
    """Takes a stream in a thread of its own; each piece only when it `may_take` it."""

    hub: StreamHub
    watch: Watch
    user_agent: str = ""
    pieces: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.may_take = threading.Event()
        self.may_take.set()
        self._thread = threading.Thread(target=self._take, daemon=True)
        self._thread.start()

    @property
    def received(self) -> bytes:
        return b"".join(list(self.pieces))

    def whole(self) -> bytes:
        """Return everything when it has ended."""
        self._thread.join(60)
        assert not self._thread.is_alive()
        return self.received

    def _take(self) -> None:
        stream: Iterator[bytes] = sse.stream(
            self.hub, self.watch, {"HTTP_USER_AGENT": self.user_agent}
        )
        for piece in stream:
            self.pieces.append(piece)
            self.may_take.wait()
