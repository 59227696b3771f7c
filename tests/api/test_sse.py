"""Frames: what any client reads from them is exactly the events."""

import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from uuid import uuid4

import httpx
import pytest
from httpx_sse import EventSource, ServerSentEvent
from hypothesis import given
from hypothesis import strategies as st

from api import sse
from api.stream_hub import Watch
from shared import eventlog, keys
from shared.connections import Connections
from shared.events import MessageDelta, RunCancelled, StoredEvent, Usage, encode

NOW = datetime(2026, 1, 1, tzinfo=UTC)
#: Text that looks like a part of the protocol, or like the end of a line.
LOOKALIKES = st.sampled_from(
    [
        "\n",
        "\r",
        "\r\n",
        "\u2028",
        "\u0085",
        "\x0b",
        "\n\n",
        "data: x",
        "id: 9",
        ":",
        "retry: 1",
        "\ufeff",
    ]
)
TEXT = st.lists(st.text() | LOOKALIKES).map("".join)


def read_by_httpx_sse(stream: bytes) -> list[ServerSentEvent]:
    response = httpx.Response(200, headers={"Content-Type": "text/event-stream"}, content=stream)
    return list(EventSource(response).iter_sse())


@given(st.lists(TEXT, min_size=1, max_size=5), st.booleans())
def test_a_client_reads_exactly_the_events(texts: list[str], named: bool) -> None:
    """Whatever text is in them; ids and names are the events' own."""
    events = [encode(i, MessageDelta(text), NOW) for i, text in enumerate(texts, 1)]
    frames = [sse.frame(event, named=named, first=event.seq == 1) for event in events]

    read = read_by_httpx_sse(sse.HELLO + "".join(frames).encode() + sse.PING)

    assert [event.payload for event in events] == [sent.data for sent in read]
    assert [str(event.seq) for event in events] == [sent.id for sent in read]
    assert {"message.delta" if named else "message"} == {sent.event for sent in read}
    assert [1000] + [None] * (len(events) - 1) == [sent.retry for sent in read]


@given(TEXT)
def test_a_frame_is_three_lines(text: str) -> None:
    """One `data:` line, then `id:`, then an empty line; LF only."""
    event = encode(12, MessageDelta(text), NOW)

    assert f"data: {event.payload}\nid: 12\n\n" == sse.frame(event, named=False, first=False)
    assert 3 == sse.frame(event, named=False, first=False).count("\n")
    assert "\r" not in sse.frame(event, named=True, first=True)


def test_the_first_frame_says_when_to_reconnect() -> None:
    """Not in a frame of its own, which some clients take for an empty event."""
    event = StoredEvent(1, "run.started", "{}")

    first = sse.frame(event, named=True, first=True)

    assert "retry: 1000\nevent: run.started\ndata: {}\nid: 1\n\n" == first


@given(st.integers(min_value=0), st.data())
def test_a_stream_that_is_cut_anywhere_gives_whole_events(seed: int, data: st.DataObject) -> None:
    """A client that goes on after the last id it has dispatched misses and repeats nothing."""
    events = [encode(i, MessageDelta(f"{seed} \u2028 {i}"), NOW) for i in range(1, 6)]
    stream = (
        sse.HELLO
        + "".join(sse.frame(event, named=False, first=event.seq == 1) for event in events).encode()
    )
    cut = data.draw(st.integers(0, len(stream)))

    before = read_by_httpx_sse(stream[:cut])
    cursor = int(before[-1].id) if before else 0
    after = [event.payload for event in events[cursor:]]

    assert [event.payload for event in events] == [sent.data for sent in before] + after


@pytest.fixture
def run(connections: Connections) -> "FollowedRun":
    return FollowedRun(connections)


class FollowedRun:
    """A run whose events are in Redis alone, and a watch of it."""

    def __init__(self, connections: Connections) -> None:
        self.connections = connections
        self.watch = Watch(uuid4())
        self.events: list[StoredEvent] = []

    def publish(self, *texts: str) -> None:
        new = [
            encode(len(self.events) + i, MessageDelta(text), NOW) for i, text in enumerate(texts, 1)
        ]
        self._publish(new)

    def end(self) -> None:
        end = RunCancelled(Usage(), 0)  # type: ignore[arg-type]
        self._publish([encode(len(self.events) + 1, end, NOW)])

    def _publish(self, new: list[StoredEvent]) -> None:
        self.events += new
        eventlog.publish(self.connections, {self.watch.run_id: new})
        self.watch.announce(self.events[-1].seq)

    def follow(self) -> Iterator[bytes]:
        return sse.follow(self.connections, self.watch, named=False)


def test_events_are_followed_to_the_end(run: FollowedRun) -> None:
    """What was there, what comes, and nothing after the terminal event."""
    run.publish("a", "b")
    stream = run.follow()
    assert sse.HELLO == next(stream)
    assert [1, 2] == [int(sent.id) for sent in read_by_httpx_sse(next(stream))]
    threading.Timer(0.05, run.publish, ["c"]).start()
    assert b'"seq":3' in next(stream)
    run.end()

    assert [4] == [int(sent.id) for sent in read_by_httpx_sse(b"".join(stream))]


def test_a_stream_ends_when_its_reader_may_not_read_any_more(run: FollowedRun) -> None:
    """At the next frame."""
    stream = run.follow()
    next(stream)
    threading.Timer(0.05, run.watch.end).start()

    assert [] == list(stream)


def test_much_at_once_is_sent_in_pieces(run: FollowedRun) -> None:
    """So that a slow client is seen to make progress; whole frames each."""
    run.publish(*["x" * 5000] * 20)
    run.end()

    pieces = list(run.follow())

    assert len(pieces) > 3
    assert all(piece.endswith(b"\n\n") for piece in pieces[1:])
    assert all(len(piece) < sse.CHUNK_BYTES + 6000 for piece in pieces)
    assert [event.payload for event in run.events] == [
        sent.data for sent in read_by_httpx_sse(b"".join(pieces))
    ]


def test_a_replay_ends_where_the_events_do(run: FollowedRun) -> None:
    """It does not wait for more."""
    run.publish("a", "b")

    stream = b"".join(sse.replay(run.connections, run.watch, named=False))

    assert [1, 2] == [json.loads(sent.data)["seq"] for sent in read_by_httpx_sse(stream)]
    assert 2 == run.watch.cursor


def test_the_stream_in_redis_is_what_is_followed(run: FollowedRun) -> None:
    """Its key is made of the run's id."""
    run.publish("a")

    assert 1 == run.connections.redis.xlen(keys.events(run.watch.run_id))
