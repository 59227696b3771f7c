"""The hub: one subscription for all streams of a process, and its notifications."""

import contextlib
import socket
from collections.abc import Callable, Iterator
from uuid import UUID, uuid4

import pytest

from arkloop.api.streaming.disconnects import Disconnects
from arkloop.api.streaming.stream_hub import StreamHub
from arkloop.api.streaming.watch import Watch
from arkloop.shared import ids
from arkloop.shared.actors import Actor
from arkloop.shared.storage import rewinds, signals
from arkloop.shared.storage.connections import Connections
from tests.clients import Register, User
from tests.stored_runs import StoredRuns
from tests.waiting import eventually, in_parallel


@pytest.fixture
def hub(connections: Connections, monkeypatch: pytest.MonkeyPatch) -> Iterator[StreamHub]:
    """A hub that pings its subscription all the time."""
    monkeypatch.setattr(signals, "PING_SECONDS", 0.05)
    hub = StreamHub(connections)
    yield hub
    hub.close()


@pytest.fixture
def stored(connections: Connections, alice: User) -> StoredRuns:
    return StoredRuns.of(connections, alice)


@contextlib.contextmanager
def watching(
    hub: StreamHub,
    run_id: UUID,
    reader: Actor,
    *,
    cursor: int = 0,
    connection: socket.socket | None = None,
    may_read: Callable[[Actor], bool] = lambda _: True,
) -> Iterator[Watch]:
    """Watch the run as a client that was notified of its existing events."""
    watch = Watch(run_id, reader, cursor=cursor, connection=connection, may_read=may_read)
    hub.add(watch)
    try:
        eventually(lambda: hub._followed[run_id].is_told and hub._unknown.empty())
        yield watch
    finally:
        hub.remove(watch)


def test_news_reach_everybody_who_watches_the_run(hub: StreamHub, stored: StoredRuns) -> None:
    """New events reach every watch of the run, and no other."""
    run_id, other_id, actor = stored.create(), stored.create(), stored.actor
    with (
        watching(hub, run_id, actor) as one,
        watching(hub, run_id, actor) as two,
        watching(hub, other_id, actor) as other,
    ):
        stored.connections.redis.publish(stored.connections.keys.news(run_id), 5)

        eventually(lambda: 5 == one.announced == two.announced)
        assert 0 == other.announced


def test_what_is_there_already_is_told_to_who_comes(hub: StreamHub, stored: StoredRuns) -> None:
    """Events that happen before the subscription is confirmed reach a new watch by a read of
    Postgres afterwards.
    """
    claim = stored.claimed()
    with watching(hub, claim.run_id, stored.actor) as first:
        eventually(lambda: 1 == first.announced)
        with watching(hub, claim.run_id, stored.actor) as second:
            eventually(lambda: 1 == second.announced)


def test_an_announcement_of_known_events_is_ignored(hub: StreamHub, stored: StoredRuns) -> None:
    """Nothing is read for a client that has seen it already."""
    run_id = stored.create()
    with watching(hub, run_id, stored.actor, cursor=5) as ahead:
        ahead.waits = True
        stored.connections.redis.publish(stored.connections.keys.news(run_id), 5)

        eventually(lambda: 5 == ahead.announced)
        assert not ahead.wants


def test_a_foreign_notification_is_ignored(hub: StreamHub, stored: StoredRuns) -> None:
    """The subscription stays, and with it the notifications of all other runs."""
    run_id = stored.create()
    with watching(hub, run_id, stored.actor) as watch:
        for message in ("", "seven", "-1", "²"):
            stored.connections.redis.publish(stored.connections.keys.news(run_id), message)
        stored.connections.redis.publish(stored.connections.keys.news(run_id), 5)

        eventually(lambda: 5 == watch.announced, seconds=0.4)


def test_watches_follow_a_new_epoch(hub: StreamHub, stored: StoredRuns) -> None:
    """The subscription moves to the new names; what is published there arrives."""
    connections, run_id = stored.connections, stored.create()
    with watching(hub, run_id, stored.actor) as watch:
        old = connections.keys.news(run_id)
        with connections.transaction() as tx:
            rewinds.rotate(tx.sql)
        rewinds.check(connections)

        assert old != connections.keys.news(run_id)
        eventually(
            lambda: bool(connections.redis.publish(connections.keys.news(run_id), 5)), seconds=5
        )
        eventually(lambda: 5 == watch.announced)


def test_the_last_one_to_leave_ends_the_subscription(hub: StreamHub, stored: StoredRuns) -> None:
    """A run that nobody watches costs nothing."""
    run_id = stored.create()

    def subscribers() -> int:
        channel = stored.connections.keys.news(run_id)
        return int(stored.connections.redis.pubsub_numsub(channel)[0][1])

    with watching(hub, run_id, stored.actor):
        with watching(hub, run_id, stored.actor):
            assert 1 == subscribers()
        assert 1 == subscribers()
    eventually(lambda: 0 == subscribers())


def test_a_quiet_subscription_answers_its_pings(
    hub: StreamHub, stored: StoredRuns, caplog: pytest.LogCaptureFixture
) -> None:
    """The answers are no news and no fault: the subscription lives on."""

    def pings() -> int:
        return int(stored.connections.redis.info("commandstats")["cmdstat_ping"]["calls"])

    with watching(hub, stored.create(), stored.actor):
        before = pings()
        eventually(lambda: pings() >= before + 4)

    assert [] == [
        record for record in caplog.records if record.name == "arkloop.api.streaming.stream_hub"
    ]


def test_a_watch_whose_reader_may_not_read_any_more_is_ended(
    hub: StreamHub, stored: StoredRuns
) -> None:
    """A watch whose reader loses access ends without another event."""
    allowed = [True]
    with watching(hub, stored.create(), stored.actor, may_read=lambda _: allowed[0]) as watch:
        assert not watch.ended
        allowed[0] = False

        eventually(lambda: watch.ended)


def test_a_run_of_another_org_or_of_none_is_not_watched(
    hub: StreamHub, stored: StoredRuns, register: Register
) -> None:
    """A stream opened before its run was deleted, or turned private, ends."""
    run_id = stored.create()
    for watch in (
        Watch(uuid4(), stored.actor),
        Watch(run_id, StoredRuns.of(stored.connections, register()).actor),
    ):
        hub.add(watch)
        eventually(lambda watch=watch: watch.ended)
        hub.remove(watch)


def test_a_process_that_stops_ends_all_watches(hub: StreamHub, stored: StoredRuns) -> None:
    """All watches of a stopping process end, and their clients reconnect elsewhere."""
    with (
        watching(hub, stored.create(), stored.actor) as one,
        watching(hub, stored.create(), stored.actor) as two,
    ):
        hub.stopping = lambda: True

        eventually(lambda: one.ended and two.ended)


def test_a_subscription_that_fails_is_no_error_of_the_request(
    hub: StreamHub, stored: StoredRuns
) -> None:
    """The connection is being lost: its listener sees to it, and meanwhile Postgres is asked."""

    class Broken:
        def subscribe(self, *channels: str) -> None:
            raise AssertionError("used by another greenlet")

    with watching(hub, stored.create(), stored.actor):
        hub._pubsub = Broken()
        watch = Watch(stored.claimed().run_id, stored.actor)
        hub.add(watch)

        eventually(lambda: 1 == watch.announced)
        assert not watch.ended
        hub.remove(watch)


def test_a_client_that_closes_its_connection_is_noticed(hub: StreamHub, stored: StoredRuns) -> None:
    """A closed connection is noticed without a write, and other streams continue."""
    (ours, theirs), (ours_too, theirs_too) = socket.socketpair(), socket.socketpair()
    with ours, theirs_too, ours_too:
        with (
            watching(hub, stored.create(), stored.actor, connection=ours) as gone,
            watching(hub, stored.create(), stored.actor, connection=ours_too) as there,
        ):
            theirs.close()

            eventually(lambda: gone.ended)
            assert not there.ended


def test_a_number_that_has_passed_to_another_connection_is_let_alone() -> None:
    """The kernel gives a closed connection's number to the next one."""
    disconnects = Disconnects()
    ours, theirs = socket.socketpair()
    number = disconnects.add(ours)
    ours.close()
    theirs.close()
    again, other = socket.socketpair()
    with again, other:
        new, peer = (again, other) if again.fileno() == number else (other, again)
        assert number == disconnects.add(new)
        disconnects.remove(ours, number)
        peer.close()

        assert [number] == disconnects.look()


def test_many_who_come_at_once_are_answered_together(hub: StreamHub, stored: StoredRuns) -> None:
    """One query serves all who ask while another is under way; an unknown run is not found."""

    run_ids = [stored.create() for _ in range(5)]
    heads = in_parallel(20, lambda number: hub.heads.get(run_ids[number % 5]))

    assert run_ids * 4 == [head and head.run_id for head in heads]
    assert hub.heads.get(ids.new_id()) is None
