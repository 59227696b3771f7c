"""The hub: one subscription for all streams of a process, and its notifications."""

import contextlib
import os
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import event

from arkloop.api.streaming import stream_hub
from arkloop.api.streaming.disconnects import Disconnects
from arkloop.api.streaming.stream_hub import StreamHub
from arkloop.api.streaming.watch import Watch
from arkloop.shared import ids
from arkloop.shared.actors import Actor
from arkloop.shared.storage import rewinds, signals
from arkloop.shared.storage.connections import Connections
from tests.clients import Register
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
def without_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub learns nothing from its safety net."""
    monkeypatch.setattr(stream_hub, "POLL_SECONDS", 60.0)
    monkeypatch.setattr(stream_hub, "POLL_SECONDS_WITHOUT_REDIS", 60.0)


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


@pytest.mark.usefixtures("without_polls")
def test_what_comes_between_the_requests_look_and_the_subscription_is_found(
    hub: StreamHub, stored: StoredRuns
) -> None:
    """Nobody announces it any more: it is looked up."""
    run_id, connections = stored.claimed().run_id, stored.connections
    eventually(lambda: connections.redis.exists(connections.keys.events(run_id)))
    with watching(hub, stored.create(), stored.actor):  # the hub listens
        watch = Watch(run_id, stored.actor, last_seq=0)
        hub.add(watch)
        eventually(lambda: 1 == watch.announced)
        hub.remove(watch)


@pytest.mark.usefixtures("without_polls")
def test_what_the_request_has_seen_is_read_before_the_subscription(
    hub: StreamHub, stored: StoredRuns, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first page waits for no notification, and for no second look at the run."""
    monkeypatch.setattr(stream_hub, "SUBSCRIBED_SECONDS", 60.0)
    with watching(hub, stored.create(), stored.actor):
        monkeypatch.setattr(hub, "_pubsub", None)  # nothing is subscribed to
        watch = Watch(stored.claimed().run_id, stored.actor, last_seq=1)
        hub.add(watch)
        page = hub.next_page(watch, 30)
        hub.remove(watch)

    assert page is not None
    assert 1 == page.last_seq


@pytest.mark.usefixtures("without_polls")
def test_a_request_that_has_looked_spares_the_hub_its_own_look(
    hub: StreamHub, stored: StoredRuns, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stream that ends soon costs no other statement."""
    monkeypatch.setattr(stream_hub, "LOOK_UP_SECONDS", 4.0)
    monkeypatch.setattr(stream_hub, "SUBSCRIBED_SECONDS", 60.0)
    run_id = stored.create()
    with watching(hub, stored.create(), stored.actor), looked_up(stored.connections) as looks:
        watch = Watch(run_id, stored.actor, last_seq=0)
        hub.add(watch)
        eventually(lambda: hub._followed[run_id].is_told)
        hub.remove(watch)
        eventually(lambda: hub._unsure.empty() and hub._unknown.empty())
        time.sleep(4.2)

    assert run_id not in looks


@pytest.mark.usefixtures("without_polls")
def test_who_joins_others_whose_run_was_looked_up_needs_no_look(
    hub: StreamHub, stored: StoredRuns
) -> None:
    """Events since then were announced."""
    run_id, later_id = stored.create(), stored.create()
    # Once the hub listens, it subscribes to a run once.
    with watching(hub, stored.create(), stored.actor), watching(hub, run_id, stored.actor):
        eventually(lambda: hub._followed[run_id].is_sure)
        with looked_up(stored.connections) as looks:
            watch = Watch(run_id, stored.actor, last_seq=0)
            hub.add(watch)
            with watching(hub, later_id, stored.actor):
                eventually(lambda: hub._followed[later_id].is_sure)
            hub.remove(watch)

    assert later_id in looks
    assert run_id not in looks


@pytest.mark.usefixtures("without_polls")
def test_who_joins_others_before_their_run_was_looked_up_has_it_looked_up(
    hub: StreamHub, stored: StoredRuns, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Postgres was unavailable, for example, when the others had theirs looked up."""
    monkeypatch.setattr(stream_hub, "LOOK_UP_SECONDS", 60.0)
    run_id, connections = stored.claimed().run_id, stored.connections
    eventually(lambda: connections.redis.exists(connections.keys.events(run_id)))
    with watching(hub, stored.create(), stored.actor):
        first = Watch(run_id, stored.actor, last_seq=0)
        hub.add(first)
        eventually(lambda: hub._followed[run_id].is_told)
        second = Watch(run_id, stored.actor, last_seq=0)
        hub.add(second)
        eventually(lambda: 1 == first.announced == second.announced)
        for watch in (first, second):
            hub.remove(watch)


@contextlib.contextmanager
def looked_up(connections: Connections) -> Iterator[list[UUID]]:
    """Note the runs whose newest event Postgres is asked for within the block."""
    found: list[UUID] = []

    def note(_sql: object, _cursor: object, statement: str, parameters: Any, *_: object) -> None:
        if "newest.seq" in statement:
            found.extend(parameters["ids"])

    event.listen(connections.engine, "before_cursor_execute", note)
    try:
        yield found
    finally:
        event.remove(connections.engine, "before_cursor_execute", note)


def test_who_joins_others_learns_what_they_have_heard(hub: StreamHub, stored: StoredRuns) -> None:
    """An event is announced to the others after a request has looked, and before it watches."""
    run_id = stored.create()
    with watching(hub, run_id, stored.actor) as first:
        stored.connections.redis.publish(stored.connections.keys.news(run_id), 5)
        eventually(lambda: 5 == first.announced)
        late = Watch(run_id, stored.actor, last_seq=4)
        hub.add(late)
        hub.remove(late)

    assert 5 == late.announced


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

        eventually(lambda: 5 == watch.announced)


def test_watches_follow_a_new_epoch(hub: StreamHub, stored: StoredRuns) -> None:
    """The subscription moves to the new names; what is published there arrives."""
    connections, run_id = stored.connections, stored.create()
    with watching(hub, run_id, stored.actor) as watch:
        old = connections.keys.news(run_id)
        with connections.transaction() as tx:
            rewinds.rotate(tx.sql)
        rewinds.check(connections)

        assert old != connections.keys.news(run_id)
        eventually(lambda: bool(connections.redis.publish(connections.keys.news(run_id), 5)))
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
    """A watch whose reader loses access ends soon, without another event."""

    def seconds_until_end() -> float:
        allowed = [True]
        with watching(hub, stored.create(), stored.actor, may_read=lambda _: allowed[0]) as watch:
            assert not watch.ended
            allowed[0], lost = False, time.monotonic()
            eventually(lambda: watch.ended)
            return time.monotonic() - lost

    assert any(seconds_until_end() < 1.5 for _ in range(5))  # one may be held up


def test_a_run_of_another_org_or_of_none_is_not_watched(
    hub: StreamHub, stored: StoredRuns, register: Register
) -> None:
    """A stream opened before its run was deleted, or turned private, ends."""
    run_id = stored.create()
    stranger = StoredRuns.of(stored.connections, register()).actor
    for watch in (
        Watch(uuid4(), stored.actor),
        Watch(run_id, stranger),
        Watch(uuid4(), stored.actor, last_seq=0),
        Watch(run_id, stranger, last_seq=0),
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
    other, peer = socket.socketpair()
    # In one call: between two of them another thread might open something with this number.
    os.dup2(other.fileno(), number)
    ours.detach()
    with socket.socket(fileno=number) as new, other, theirs:
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
