"""Frames and pages: what any client reads from them is exactly the events, from either store."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
import redis
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import delete

from arkloop.api.streaming import page_reader, sse, stream_pages
from arkloop.api.streaming.stream_pages import PING, Page
from arkloop.shared.errors import EventsLost
from arkloop.shared.events.stored_events import StoredEvent, encode
from arkloop.shared.events.types import MessageDelta
from arkloop.shared.storage.connections import Connections
from arkloop.shared.storage.tables.events import run_events
from tests.api.streaming.followed_runs import FollowedRun, events_of_pieces, read_by_httpx_sse
from tests.clients import User
from tests.stored_runs import StoredRuns

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
NASTY = "\n\n\r\u2028\u0085 data: x id: 9 é€\U0001f600 \\ ' % \ufeff"


def frame_of(event: StoredEvent, *, named: bool = False) -> bytes:
    return stream_pages.frame(event.seq, event.type.encode(), event.payload.encode(), named=named)


@given(st.lists(TEXT, min_size=1, max_size=5), st.booleans())
def test_a_client_reads_exactly_the_events(texts: list[str], named: bool) -> None:
    """It reads them whatever text they contain; ids and names are the events' own."""
    events = [encode(i, MessageDelta(text), NOW) for i, text in enumerate(texts, 1)]
    frames = [frame_of(event, named=named) for event in events]

    read = read_by_httpx_sse(sse.HELLO + sse.RETRY + b"".join(frames) + PING)

    assert [event.payload for event in events] == [sent.data for sent in read]
    assert [str(event.seq) for event in events] == [sent.id for sent in read]
    assert {"message.delta" if named else "message"} == {sent.event for sent in read}
    assert [1000] + [None] * (len(events) - 1) == [sent.retry for sent in read]


#: 50, each with some hundred cuts; `make framing` has 10,000.
@settings(max_examples=settings().max_examples // 2)
@given(st.lists(LOOKALIKES | st.text(max_size=3), max_size=6).map("".join), st.booleans())
def test_wherever_it_is_split_a_payload_is_one_event(text: str, named: bool) -> None:
    """A part up to any byte is no event, and the rest makes it one."""
    event = encode(7, MessageDelta(text), NOW)
    frame = frame_of(event, named=named)
    expected = (event.payload, "7", "message.delta" if named else "message")

    for cut in range(len(frame)):
        [before, [sent]] = events_of_pieces(frame[:cut], frame[cut:])
        assert [] == before
        assert expected == (sent.data, sent.id, sent.event)


@given(TEXT)
def test_a_frame_is_three_lines(text: str) -> None:
    """It is one `data:` line, then `id:`, then an empty line; LF only."""
    event = encode(12, MessageDelta(text), NOW)

    assert f"data: {event.payload}\nid: 12\n\n".encode() == frame_of(event)
    assert 3 == frame_of(event).count(b"\n")
    assert b"\r" not in frame_of(event, named=True)


@given(st.integers(min_value=0), st.data())
def test_a_stream_that_is_cut_anywhere_gives_whole_events(seed: int, data: st.DataObject) -> None:
    """A client that resumes after the last id it has dispatched misses and repeats nothing."""
    events = [encode(i, MessageDelta(f"{seed} \u2028 {i}"), NOW) for i in range(1, 6)]
    stream = sse.HELLO + sse.RETRY + b"".join(map(frame_of, events))
    cut = data.draw(st.integers(0, len(stream)))

    before = read_by_httpx_sse(stream[:cut])
    cursor = int(before[-1].id) if before else 0
    after = [event.payload for event in events[cursor:]]

    assert [event.payload for event in events] == [sent.data for sent in before] + after


@given(st.lists(st.integers(1, 3 * stream_pages.PIECE_BYTES), min_size=1, max_size=12))
def test_a_page_is_sent_in_pieces_of_whole_frames(sizes: list[int]) -> None:
    """A longer frame is cut between characters: a slow client is seen to make progress in it."""
    frames = [
        b"data: %b\nid: %d\n\n" % ("é".encode() * (size // 2), seq)
        for seq, size in enumerate(sizes, 1)
    ]
    page = Page(b"".join(frames), len(frames), len(frames), False)

    pieces = list(page.pieces())

    assert page.data == b"".join(pieces)
    assert all(piece.decode() for piece in pieces)
    assert all(len(piece) <= stream_pages.PIECE_BYTES for piece in pieces)
    assert all(piece.endswith(b"\n\n") or b"\n\n" not in piece for piece in pieces)


@pytest.fixture
def client(connections: Connections) -> redis.Redis:
    """A client that does not decode."""
    return page_reader.bytes_client(connections.settings.redis_url)


def from_streams(
    run: FollowedRun,
    client: redis.Redis,
    reads: Sequence[tuple[UUID, int, int]],
    named: Sequence[bool],
) -> list[Page | None]:
    return stream_pages.from_streams(client, run.stored.connections.keys, reads, named)


def from_table(run: FollowedRun, cursor: int, limit: int, *, named: bool = False) -> Page | None:
    with run.stored.connections.reading() as sql:
        return stream_pages.from_table(sql, run.id, cursor, limit, named=named)


@pytest.mark.parametrize("named", [False, True])
def test_both_stores_give_the_same_bytes(
    run: FollowedRun, client: redis.Redis, named: bool
) -> None:
    """Postgres makes the frames itself; from every cursor they are those that Redis gives."""
    run.write(NASTY, "b", "", NASTY * 3)
    run.end()
    frames = [frame_of(event, named=named) for event in run.stored.events(run.id)]

    with client:
        for cursor in range(len(frames) + 2):
            [page] = from_streams(run, client, [(run.id, cursor, 100)], [named])
            assert page == from_table(run, cursor, 100, named=named)
            assert b"".join(frames[cursor:]) == (page.data if page else b"")
            if page:
                assert (len(frames), True) == (page.last_seq, page.ended)


def test_many_runs_are_read_in_one_round_trip(run: FollowedRun, client: redis.Redis) -> None:
    """Each from its own cursor; where there is nothing, or not the next event, it says so."""
    run.write("a", "b", "c")
    other = FollowedRun.of(run.stored)
    other.lose(1)

    with client:
        pages = from_streams(
            run,
            client,
            [(run.id, 0, 2), (run.id, 3, 9), (other.id, 0, 9), (run.id, 4, 9)],
            [False, False, False, False],
        )

    assert [2, 4, None, None] == [page and page.last_seq for page in pages]
    assert [b"".join(run.frames[:2]), run.frames[3]] == [page.data for page in pages if page]


def test_a_page_ends_before_a_hole(run: FollowedRun, client: redis.Redis) -> None:
    """A page from Redis ends before a hole, and Postgres has what follows."""
    run.write("a", "b", "c")
    run.lose(3)

    with client:
        [page] = from_streams(run, client, [(run.id, 0, 9)], [False])

    assert page is not None
    assert (2, b"".join(run.frames[:2])) == (page.last_seq, page.data)


@pytest.mark.parametrize(
    "fields",
    [
        {"x": "y"},
        {"type": "message.delta", "payload": "foreign", "more": "fields"},
        {"type": "message.delta", "payload": '{"seq":3}'},
        {"type": "message.delta", "payload": "foreign"},
        {"type": "message.delta", "payload": '{"seq":4,"type":"message.delta","data":{}}'},
        {"type": "message.delta", "payload": '{"seq":3,"type":"message.delta",\n"data":{}}'},
    ],
)
def test_a_foreign_entry_ends_a_page(
    run: FollowedRun, client: redis.Redis, fields: dict[Any, Any]
) -> None:
    """Postgres has the event, whatever another program has written under the next number."""
    run.write("a")
    run.stored.connections.redis.xadd(run.stored.connections.keys.events(run.id), fields, id="3-0")

    with client:
        pages = from_streams(run, client, [(run.id, 0, 9), (run.id, 2, 9)], [False] * 2)

    assert [2, None] == [page and page.last_seq for page in pages]


def test_a_named_frame_has_the_type_of_its_payload(run: FollowedRun, client: redis.Redis) -> None:
    """A foreign entry cannot give an event another name, nor a page another end."""
    run.write("a")
    fields = {"type": "run.completed", "payload": '{"seq":3,"type":"message.delta","data":{}}'}
    run.stored.connections.redis.xadd(run.stored.connections.keys.events(run.id), fields, id="3-0")

    with client:
        named, plain = from_streams(run, client, [(run.id, 0, 9)] * 2, [True, False])

    assert named is not None and plain is not None
    assert (2, 3, False) == (named.last_seq, plain.last_seq, plain.ended)


def test_a_key_of_another_type_leaves_only_its_own_run_to_postgres(
    run: FollowedRun, client: redis.Redis
) -> None:
    """The other runs of the same round trip are read from Redis as before."""
    other = FollowedRun.of(run.stored)
    run.lose()
    run.stored.connections.redis.set(run.stored.connections.keys.events(run.id), "a string")

    with client:
        pages = from_streams(run, client, [(run.id, 0, 9), (other.id, 0, 9)], [False] * 2)

    assert [None, 1] == [page and page.last_seq for page in pages]


def test_a_page_has_a_size(run: FollowedRun, client: redis.Redis) -> None:
    """A page ends after a number of bytes, and at the wanted number of events."""
    run.write(*["x" * 15_000] * 20)

    with client:
        [page] = from_streams(run, client, [(run.id, 0, 20)], [False])

    assert page is not None
    assert page == from_table(run, 0, 20)
    assert len(page.data) < stream_pages.PAGE_BYTES + 16_000
    assert page.next_limit == 9
    assert 2 == getattr(from_table(run, 0, 2), "last_seq", None)


def test_a_page_of_the_table_ends_before_a_hole(connections: Connections, alice: User) -> None:
    """A failover has lost commits: nobody reads past it unawares, everybody may read after it."""
    stored = StoredRuns.of(connections, alice)
    claim = stored.claimed()
    stored.write(claim, *(MessageDelta(str(seq)) for seq in range(2, 8)))
    with connections.transaction() as tx:
        holed = run_events.c.seq.in_((4, 5)) & (run_events.c.run_id == claim.run_id)
        tx.sql.execute(delete(run_events).where(holed))

    def last_seq(after_seq: int) -> int | None:
        with connections.reading() as sql:
            page = stream_pages.from_table(sql, claim.run_id, after_seq, 100, named=False)
            return page and page.last_seq

    assert (3, 3, 7, 7, None) == tuple(map(last_seq, (0, 2, 5, 6, 7)))
    for cursor in (3, 4):
        with pytest.raises(EventsLost):
            last_seq(cursor)
