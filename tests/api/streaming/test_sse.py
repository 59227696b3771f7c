"""Streams: followed to the end, replayed, and read together by all who stand at the same place."""

import socket
import threading
from dataclasses import replace

import pytest

from arkloop.api.streaming import held_pages, sse, stream_hub, stream_pages
from arkloop.api.streaming.stream_hub import StreamHub
from arkloop.api.streaming.stream_pages import PING
from arkloop.api.streaming.watch import Watch
from arkloop.shared import times
from arkloop.shared.events import event_log
from arkloop.shared.events.stored_events import StoredEvent, encode
from arkloop.shared.events.types import MessageDelta, RunCompleted
from arkloop.shared.storage.connections import Connections, connect_redis
from arkloop.shared.storage.outage import Outage
from tests.api.streaming.followed_runs import Client, FollowedRun, seqs
from tests.closed_port import closed_port
from tests.stored_runs import USED
from tests.waiting import eventually


def whole(run: FollowedRun, after: int = 0) -> bytes:
    return sse.HELLO + sse.RETRY + b"".join(run.frames[after:])


def be_ready_for_news(hub: StreamHub, run: FollowedRun, *clients: Client) -> None:
    """Wait until the clients wait behind the first event, and the hub's subscription is there.

    A client may get what Postgres has before that, and miss what is published meanwhile.
    """
    eventually(lambda: all([1] == seqs(client.received) for client in clients))
    eventually(lambda: all(client.watch.waits for client in clients))
    eventually(lambda: hub._followed[run.id].is_told)


def bring(run: FollowedRun, *events: StoredEvent) -> None:
    """Publish news with these events, which no store has."""
    connections = run.stored.connections
    connections.redis.publish(connections.keys.news(run.id), event_log.news_of(events))


def store(run: FollowedRun, event: StoredEvent) -> None:
    """Store an event in Postgres alone, and publish nothing."""
    with run.stored.connections.transaction() as tx:
        event_log.store(tx, {run.id: [event]})
        tx.after_commit.clear()


def test_events_are_followed_to_the_end(hub: StreamHub, run: FollowedRun) -> None:
    """What was there, what comes, and nothing after the terminal event."""
    run.write("a")
    client = Client(hub, run.watch())
    eventually(lambda: [1, 2] == seqs(client.received))
    run.write("b")
    eventually(lambda: [1, 2, 3] == seqs(client.received))
    run.end()

    assert whole(run) == client.whole()


def test_those_at_one_place_are_sent_the_same_bytes(hub: StreamHub, run: FollowedRun) -> None:
    """They share one read: the very same object."""
    clients = [Client(hub, run.watch()) for _ in range(5)]
    eventually(lambda: all([1] == seqs(client.received) for client in clients))
    eventually(lambda: all(client.watch.waits for client in clients))
    run.write("a" * 1000)
    eventually(lambda: all([1, 2] == seqs(client.received) for client in clients))
    run.end()

    for client in clients:
        assert whole(run) == client.whole()
    assert 1 == len({id(client.pieces[2]) for client in clients})


def test_who_takes_nothing_holds_up_nobody(hub: StreamHub, run: FollowedRun) -> None:
    """Another gets all of it as it comes; the slow one gets the rest when it takes it."""
    slow, fast = Client(hub, run.watch()), Client(hub, run.watch())
    eventually(lambda: [1] == seqs(slow.received) == seqs(fast.received))
    slow.may_take.clear()
    for number in range(2, 8):
        run.write("x" * 40_000)
        eventually(lambda number=number: list(range(1, number + 1)) == seqs(fast.received))
    held = len(slow.received)
    slow.may_take.set()
    run.end()

    assert held < 2 * stream_pages.PIECE_BYTES + 20_000
    assert whole(run) == fast.whole() == slow.whole()


def test_who_comes_in_the_middle_gets_the_rest(hub: StreamHub, run: FollowedRun) -> None:
    """Beside those that are ahead of it, while events are written."""
    clients = [Client(hub, run.watch())]
    for number in range(30):
        run.write(f"{number}")
        if number % 5 == 0:
            clients.append(Client(hub, run.watch(cursor=number // 2)))
    run.end()

    assert whole(run) == clients[0].whole()
    for number, client in enumerate(clients[1:]):
        assert whole(run, number * 5 // 2) == client.whole()


def test_frames_are_named_for_those_who_want_it(hub: StreamHub, run: FollowedRun) -> None:
    """Frames are named for the clients that request it, and for no other client at the same
    cursor.
    """
    plain, named = Client(hub, run.watch()), Client(hub, run.watch(named=True))
    run.write("a")
    run.end()

    assert whole(run) == plain.whole()
    assert seqs(named.whole()) == seqs(plain.whole())
    assert 3 == named.received.count(b"event: ")


@pytest.mark.parametrize("lost", [(1,), (3, 4), (6,), ()])
def test_what_redis_lacks_comes_from_postgres(
    hub: StreamHub, run: FollowedRun, lost: tuple[int, ...]
) -> None:
    """Postgres replaces what Redis lacks: the beginning, a hole, the end or all, for old and new
    clients.
    """
    there = Client(hub, run.watch())
    there.may_take.clear()
    run.write("a", "b", "c", "d", "e")
    run.lose(*lost)
    there.may_take.set()
    late = [Client(hub, run.watch(cursor=cursor)) for cursor in range(7)]
    eventually(lambda: list(range(1, 7)) == seqs(there.received))
    run.end()

    assert whole(run) == there.whole()
    for cursor, client in enumerate(late):
        assert whole(run, cursor) == client.whole()


def test_news_of_what_is_nowhere_are_waited_out(hub: StreamHub, run: FollowedRun) -> None:
    """An old copy of Redis tells of events that there are not: nobody is sent or asked too much."""
    client = Client(hub, run.watch())
    eventually(lambda: [1] == seqs(client.received))
    run.stored.connections.redis.publish(run.stored.connections.keys.news(run.id), 9)
    eventually(lambda: client.watch.announced == client.watch.cursor == 1)
    run.write("a")
    run.end()

    assert whole(run) == client.whole()


def test_news_that_bring_their_events_need_no_read(hub: StreamHub, run: FollowedRun) -> None:
    """Clients that have all before get them from the notification: no store has these events."""
    plain, named = Client(hub, run.watch()), Client(hub, run.watch(named=True))
    be_ready_for_news(hub, run, plain, named)
    events = [
        encode(seq, MessageDelta(text), times.now()) for seq, text in ((2, "é\u2028"), (3, ""))
    ]
    bring(run, *events)

    eventually(lambda: [1, 2, 3] == seqs(plain.received) == seqs(named.received))
    sent = b"".join(f"data: {event.payload}\nid: {event.seq}\n\n".encode() for event in events)
    assert plain.received.endswith(sent)
    assert named.received.endswith(
        sent.replace(b"data: ", b"event: message.delta\ndata: "),
    )


def test_news_beyond_what_a_client_has_are_read_for_it(hub: StreamHub, run: FollowedRun) -> None:
    """It is behind, since news were lost: it gets what it lacks, and then what they brought."""
    client = Client(hub, run.watch())
    be_ready_for_news(hub, run, client)
    store(run, encode(2, MessageDelta("a"), times.now()))
    run.stored.write(replace(run.claim, last_seq=2), MessageDelta("b"))
    eventually(lambda: [1, 2, 3] == seqs(client.received))


def test_a_terminal_event_that_news_bring_ends_the_stream(hub: StreamHub, run: FollowedRun) -> None:
    """The stream ends although no store has the end of the run."""
    client = Client(hub, run.watch())
    be_ready_for_news(hub, run, client)
    bring(run, encode(2, RunCompleted(None, USED.usage, USED.cost_usd, "stop"), times.now()))

    assert [1, 2] == seqs(client.whole())


@pytest.mark.parametrize("has_room", [True, False])
def test_news_are_given_where_a_client_waits_and_there_is_room(
    hub: StreamHub, run: FollowedRun, monkeypatch: pytest.MonkeyPatch, has_room: bool
) -> None:
    """All other clients get what is stored, by reading: here it differs from what news bring."""
    monkeypatch.setattr(held_pages, "STALLED_SECONDS", 600.0)
    if not has_room:
        monkeypatch.setattr(held_pages, "MAX_HELD_BYTES", 1)
    slow, ready = Client(hub, run.watch()), Client(hub, run.watch())
    be_ready_for_news(hub, run, slow, ready)
    slow.may_take.clear()
    run.write("a")
    eventually(lambda: [1, 2] == seqs(slow.received) == seqs(ready.received))
    eventually(lambda: ready.watch.waits)
    assert has_room != hub._reader.held.are_too_many
    stored, brought = (encode(3, MessageDelta(text), times.now()) for text in ("b", "c"))
    bring(run, brought)
    eventually(lambda: 3 == slow.watch.announced == ready.watch.announced)
    store(run, stored)
    slow.may_take.set()
    run.end()

    assert whole(run) == slow.whole()
    expected = whole(run)
    if has_room:
        expected = expected.replace(stored.payload.encode(), brought.payload.encode())
    assert expected == ready.whole()


@pytest.mark.parametrize("payload", ["", "{}", '{"seq":3,"type":"message.delta","data":{}}'])
def test_news_with_anything_but_events_are_read(
    hub: StreamHub, run: FollowedRun, payload: str
) -> None:
    """What another program has published there reaches nobody."""
    client = Client(hub, run.watch())
    be_ready_for_news(hub, run, client)
    connections = run.stored.connections
    connections.redis.publish(connections.keys.news(run.id), f"2 2\n{payload}")
    run.write("a")
    run.end()

    assert whole(run) == client.whole()


def test_a_stray_entry_silences_no_follower(
    connections: Connections, run: FollowedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Followers get the event of that number from Postgres, and all that come after it."""
    monkeypatch.setattr(stream_hub, "POLL_SECONDS", 600.0)  # what they miss comes by no poll
    hub = StreamHub(connections)
    followers = [Client(hub, run.watch()) for _ in range(2)]
    eventually(lambda: all([1] == seqs(one.received) for one in followers))
    connections.redis.xadd(connections.keys.events(run.id), {"x": "y"}, id="2-0")
    run.write("a", "b")
    eventually(lambda: all([1, 2, 3] == seqs(one.received) for one in followers))
    run.end()

    assert [whole(run)] * 2 == [one.whole() for one in followers]
    hub.close()


def test_without_redis_everything_comes_from_postgres(
    connections: Connections, run: FollowedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without Redis a stream gets the same events from the poll of Postgres, only later."""
    monkeypatch.setattr(stream_hub, "POLL_SECONDS_WITHOUT_REDIS", 0.05)
    url = f"redis://127.0.0.1:{closed_port()}"
    settings = replace(connections.settings, redis_url=url)
    away = replace(
        connections, settings=settings, redis=connect_redis(url), redis_outage=Outage(60)
    )
    hub = StreamHub(away)
    client = Client(hub, run.watch())
    eventually(lambda: [1] == seqs(client.received))
    run.write("a")
    eventually(lambda: [1, 2] == seqs(client.received))
    run.end()

    assert whole(run) == client.whole()
    hub.close()


def test_silence_is_filled_with_pings(
    connections: Connections, run: FollowedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All from one round through the watches, and not after what was just sent."""
    monkeypatch.setattr(stream_hub, "CHECK_SECONDS", 0.02)
    hub = StreamHub(
        replace(connections, settings=replace(connections.settings, sse_ping_seconds=3))
    )
    client = Client(hub, run.watch())
    eventually(lambda: client.received.count(PING) > 1)
    run.end()

    assert whole(run) == client.whole().replace(PING, b"")
    assert client.received.startswith(whole(run)[: len(sse.HELLO) + 20])
    hub.close()


def test_a_stream_ends_when_its_reader_may_not_read_any_more(
    hub: StreamHub, run: FollowedRun
) -> None:
    """The stream ends at the next frame, and leaves nothing behind."""
    client = Client(hub, run.watch(cursor=1))
    eventually(lambda: [sse.HELLO] == client.pieces)
    client.watch.end()

    assert sse.HELLO == client.whole()
    assert not hub._followed


def test_a_replay_ends_where_the_events_did(hub: StreamHub, run: FollowedRun) -> None:
    """It waits for no more; also of a run that Redis has forgotten."""
    run.write("a")
    assert whole(run) == Client(hub, run.watch(until=2)).whole()
    run.lose()
    assert whole(run) == Client(hub, run.watch(until=2)).whole()
    assert sse.HELLO == Client(hub, run.watch(cursor=3, until=3)).whole()
    assert not hub._replayed


def test_a_replay_of_a_run_that_goes_away_ends(hub: StreamHub, run: FollowedRun) -> None:
    """The replay of a run that is deleted meanwhile ends, since no store has its events."""
    run.lose()

    assert sse.HELLO + sse.RETRY + run.frames[0] == Client(hub, run.watch(until=5)).whole()


def test_a_long_run_is_replayed_whole(hub: StreamHub, run: FollowedRun) -> None:
    """Over many pages from Postgres, by several at once."""
    run.write(*["x" * 3000] * 200)
    run.lose()
    run.end()
    clients = [Client(hub, run.watch(until=202)) for _ in range(4)]

    for client in clients:
        assert whole(run) == client.whole()


@pytest.mark.parametrize("leaves", [True, False])
def test_a_client_that_takes_nothing_has_not_left(
    hub: StreamHub, run: FollowedRun, leaves: bool
) -> None:
    """Its stream is closed after a minute, as after it has left; that cancels no run."""
    here, there = socket.socketpair()
    left: list[bool] = []
    watch = Watch(run.id, run.stored.actor, connection=here)
    stream = sse.stream(hub, watch, {}, on_leave=lambda: left.append(True))
    next(stream)
    if leaves:
        there.close()

    stream.close()  # type: ignore[attr-defined]  # gunicorn does so when a write fails

    assert leaves == bool(left)
    here.close()
    there.close()


def test_a_client_that_is_cut_off_has_not_left(
    hub: StreamHub, run: FollowedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub's own end of a slow client's connection cancels no run."""
    monkeypatch.setattr(held_pages, "MAX_HELD_BYTES", 1)
    monkeypatch.setattr(held_pages, "STALLED_SECONDS", 0)
    left: list[bool] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        there = socket.create_connection(server.getsockname())
        here, _ = server.accept()
    with here, there:
        watch = Watch(run.id, run.stored.actor, connection=here)
        stream = sse.stream(hub, watch, {}, on_leave=lambda: left.append(True))
        next(stream)
        next(stream)  # a page, which the client never takes

        eventually(lambda: watch.is_broken_off)
        with hub._lock:  # the check that has cut it off has looked at the connections, too
            pass
        stream.close()  # type: ignore[attr-defined]  # gunicorn does so when a write fails

        assert [] == left


def test_what_is_kept_of_the_request_is_emptied(hub: StreamHub, run: FollowedRun) -> None:
    """Thousands of idle streams would hold thousands of environments."""
    environ = {"HTTP_HOST": "localhost"}
    stream = sse.stream(hub, run.watch(), environ)
    next(stream)

    assert {} == environ
    threading.Thread(target=stream.close).start()
