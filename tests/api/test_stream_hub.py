"""The hub: one subscription for all streams of a process, and who is told of what."""

import socket
from collections.abc import Iterator
from uuid import uuid4

import pytest

from api.stream_hub import StreamHub, Watch
from shared import keys, signals
from shared.connections import Connections
from tests.waiting import eventually


@pytest.fixture
def hub(connections: Connections, monkeypatch: pytest.MonkeyPatch) -> Iterator[StreamHub]:
    """One that pings its subscription all the time."""
    monkeypatch.setattr(signals, "PING_SECONDS", 0.05)
    hub = StreamHub(connections)
    with hub.watch(uuid4()):  # the first one starts it
        eventually(lambda: hub._is_listening)
    yield hub
    hub.close()


def test_news_reach_everybody_who_watches_the_run(hub: StreamHub, connections: Connections) -> None:
    """And nobody else."""
    run_id = uuid4()
    with hub.watch(run_id) as one, hub.watch(run_id) as two, hub.watch(uuid4()) as other:
        for watch in (one, two, other):
            watch.news.clear()
        connections.redis.publish(keys.news(run_id), 5)

        assert one.news.wait(5)
        assert two.news.wait(5)
        assert not other.news.is_set()


def test_old_news_are_no_news(hub: StreamHub, connections: Connections) -> None:
    """What a client has seen already wakes nobody."""
    run_id = uuid4()
    with hub.watch(run_id) as ahead, hub.watch(run_id) as behind:
        ahead.cursor = 5
        ahead.news.clear()
        connections.redis.publish(keys.news(run_id), 5)

        assert behind.news.wait(5)
        assert not ahead.news.is_set()


def test_the_last_one_to_leave_ends_the_subscription(
    hub: StreamHub, connections: Connections
) -> None:
    """A run that nobody watches costs nothing."""
    run_id = uuid4()

    def subscribers() -> int:
        return int(connections.redis.pubsub_numsub(keys.news(run_id))[0][1])

    with hub.watch(run_id):
        with hub.watch(run_id):
            assert 1 == subscribers()
        assert 1 == subscribers()
    eventually(lambda: 0 == subscribers())


def test_a_quiet_subscription_answers_its_pings(
    hub: StreamHub, connections: Connections, caplog: pytest.LogCaptureFixture
) -> None:
    """The answers are no news and no fault: the subscription lives on."""

    def pings() -> int:
        return int(connections.redis.info("commandstats")["cmdstat_ping"]["calls"])

    before = pings()
    eventually(lambda: pings() >= before + 4)

    assert [] == [record for record in caplog.records if record.name == "api.stream_hub"]


def test_a_watch_whose_reader_may_not_read_any_more_is_ended(hub: StreamHub) -> None:
    """Within a second, without news."""
    allowed = [True]
    with hub.watch(uuid4(), None, lambda: allowed[0]) as watch:
        allowed[0] = False

        eventually(lambda: watch.ended)
        assert watch.news.is_set()


def test_a_process_that_stops_ends_all_watches(hub: StreamHub) -> None:
    """Their clients go on elsewhere."""
    with hub.watch(uuid4()) as one, hub.watch(uuid4()) as two:
        hub.stopping = lambda: True

        eventually(lambda: one.ended and two.ended)


def test_a_subscription_that_fails_is_no_error_of_the_request(hub: StreamHub) -> None:
    """The connection is being lost: its listener sees to it, and the poll brings the news."""

    class Broken:
        def subscribe(self, *channels: str) -> None:
            raise AssertionError("used by another greenlet")

    hub._pubsub = Broken()
    hub._is_listening = False

    with hub.watch(uuid4()) as watch:
        eventually(hub._wanted.empty)

        assert not watch.ended


def test_a_connection_that_the_server_has_closed_ends_its_watch() -> None:
    """And the watches after it are looked at all the same."""
    ours, theirs = socket.socketpair()
    watch = Watch(uuid4(), connection=ours)
    watch.check()
    assert not watch.ended

    ours.close()
    watch.check()

    assert watch.ended
    theirs.close()
