"""Requests and tokens a minute, counted for all workers together."""

import threading
import time
from dataclasses import replace

import pytest

from arkloop.shared import ids
from arkloop.shared.catalog.model_routes import Route
from arkloop.shared.storage.connections import Connections
from arkloop.shared.storage.outage import Outage
from arkloop.worker.process.route_limits import (
    JITTER,
    MAX_LINE_SECONDS,
    MAX_PAUSE_SECONDS,
    MAX_WAIT_SECONDS,
    RouteLimits,
)

ORG, OTHER_ORG = ids.new_id(), ids.new_id()


@pytest.fixture
def route() -> Route:
    """A route of the test's own, without limits."""
    return Route(id=str(ids.new_id()), provider="scripted", model="scripted-1")


def test_a_route_without_limits_is_free(connections: Connections, route: Route) -> None:
    """A route without limits is not counted."""
    limits = RouteLimits(connections)

    assert {None} == {limits.wait_for(route, ORG, 10**9) for _ in range(100)}
    assert [] == list(connections.redis.scan_iter(f"*{route.id}*"))


def test_requests_are_counted_over_all_processes(connections: Connections, route: Route) -> None:
    """The limit per minute is exact, for all workers together and however many at once."""
    limited = replace(route, requests_per_minute=20)
    workers = [RouteLimits(connections) for _ in range(4)]
    let_in: list[None] = []

    def call(limits: RouteLimits) -> None:
        for _ in range(10):
            if limits.wait_for(limited, ORG, 1) is None:
                let_in.append(None)

    threads = [threading.Thread(target=call, args=[limits]) for limits in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert 20 == len(let_in)
    refused = workers[0].wait_for(limited, ORG, 1)
    assert refused is not None
    reason, seconds = refused
    assert "requests" == reason
    # They count in full for a minute, but no call waits that long without asking.
    assert MAX_WAIT_SECONDS <= seconds <= MAX_WAIT_SECONDS * (1 + JITTER)


@pytest.mark.parametrize(
    ("used", "refused", "fits"), [(700, 400, 200), (5000, 1, None)], ids=["within", "beyond"]
)
def test_tokens_are_counted_by_the_estimate_and_by_what_came(
    connections: Connections, route: Route, used: int, refused: int, fits: int | None
) -> None:
    """What a call takes beyond what it was let in for counts for those that come, also where the
    minute had fewer left.
    """
    limited = replace(route, tokens_per_minute=1000)
    limits = RouteLimits(connections)
    assert None is limits.wait_for(limited, ORG, 300)

    limits.count_output(limited, 300, used)

    waits = limits.wait_for(limited, ORG, refused)
    assert waits is not None
    assert "tokens" == waits[0]
    if fits is not None:
        assert None is limits.wait_for(limited, ORG, fits)


def test_a_call_larger_than_a_minute_takes_a_whole_one(
    connections: Connections, route: Route
) -> None:
    """A call larger than the limit per minute takes a whole minute, or it would wait for ever."""
    limits = RouteLimits(connections)
    limited = replace(route, tokens_per_minute=1000)

    assert None is limits.wait_for(limited, ORG, 5000)
    assert None is not limits.wait_for(limited, ORG, 1)


def test_a_provider_that_asks_for_a_pause_gets_it_from_all(
    connections: Connections, route: Route
) -> None:
    """A provider's pause applies to all processes, and its end is spread over time."""
    told, other = RouteLimits(connections), RouteLimits(connections)
    began = time.monotonic()

    told.pause(route, None, 4)

    for limits in (told, other):
        refused = limits.wait_for(route, ORG, 1)
        assert refused is not None
        reason, seconds = refused
        assert "provider" == reason
        assert 4 - (time.monotonic() - began) - 0.01 < seconds <= 8
    left = connections.redis.pttl(connections.keys.route_pause(route.id)) / 1000
    assert 4 - (time.monotonic() - began) - 0.01 < left <= 4

    told.pause(route, None, 60)
    refused = told.wait_for(route, ORG, 1)
    assert refused is not None
    assert MAX_PAUSE_SECONDS <= refused[1] <= 2 * MAX_PAUSE_SECONDS


def test_a_pause_of_one_org_stops_no_other(connections: Connections, route: Route) -> None:
    """It holds for that org in every worker process, and for it alone."""
    told, other = RouteLimits(connections), RouteLimits(connections)

    told.pause(route, ORG, 60)

    for limits in (told, other):
        refused = limits.wait_for(route, ORG, 1)
        assert refused is not None
        assert "provider" == refused[0]
        assert None is limits.wait_for(route, OTHER_ORG, 1)


def test_without_redis_each_process_counts_for_itself(
    connections: Connections, route: Route
) -> None:
    """Limits are kept less well; no run waits for Redis, and none fails."""
    gone = replace(
        connections,
        settings=replace(connections.settings, redis_url="redis://127.0.0.1:1/0"),
        redis_outage=Outage(1),
    )
    gone.redis = type(connections.redis).from_url("redis://127.0.0.1:1/0")
    limits = RouteLimits(gone)
    limited = replace(route, requests_per_minute=2)

    answers = [limits.wait_for(limited, ORG, 1) for _ in range(3)]
    limits.pause(limited, None, 2)

    assert [None, None] == answers[:2]
    assert answers[2] is not None
    refused = limits.wait_for(limited, ORG, 1)
    assert refused is not None
    assert "provider" == refused[0]
    gone.redis.close()


# ---- how long a call has to wait -----------------------------------------------------


def age(connections: Connections, route: Route, seconds: float) -> None:
    """Make whatever is counted of the route so much older."""
    for key in connections.redis.scan_iter(f"*{route.id}*"):
        assert connections.redis.pexpire(key, connections.redis.pttl(key) - round(seconds * 1000))


@pytest.mark.parametrize(
    ("taken", "tokens", "seconds"),
    [
        # 1,000 of the minute before count 983 after one second and 850 after nine.
        ([(1000, 61)], 150, 7.94),
        ([(1000, 61)], 100, 4.94),
        ([(600, 61), (300, 0)], 200, 8.9),
        ([(900, 61), (90, 0)], 100, 4.93),
        # What was taken in this minute begins to count less when it is over.
        ([(800, 55)], 250, 8.675),
        ([(1000, 56)], 5, 4.24),
    ],
)
def test_a_call_comes_again_when_all_its_tokens_fit(
    connections: Connections,
    route: Route,
    taken: list[tuple[int, int]],
    tokens: int,
    seconds: float,
) -> None:
    """A call asks again when all its tokens fit, not twenty times a second from the first one
    on.
    """
    limited = replace(route, tokens_per_minute=1000)
    limits = RouteLimits(connections)
    began = time.monotonic()
    for count, age_seconds in taken:
        assert None is limits.wait_for(limited, ORG, count)
        age(connections, route, age_seconds)

    refused = limits.wait_for(limited, ORG, tokens)

    assert refused is not None
    reason, told = refused
    assert "tokens" == reason
    elapsed = time.monotonic() - began
    assert seconds - elapsed - 0.01 <= told <= seconds * (1 + JITTER) + 0.01
    age(connections, route, told)
    assert None is limits.wait_for(limited, ORG, tokens)


def test_those_that_wait_do_not_all_come_at_once(connections: Connections, route: Route) -> None:
    """Room for a request comes every two seconds: one of a process asks for it, not all."""
    limited = replace(route, requests_per_minute=30)
    limits = RouteLimits(connections)
    began = time.monotonic()  # the window is as old as its first request
    for _ in range(30):
        assert None is limits.wait_for(limited, ORG, 1)
    age(connections, route, 60.1)
    assert None is limits.wait_for(limited, ORG, 1)

    refused = [limits.wait_for(limited, ORG, 1) for _ in range(12)]

    elapsed = time.monotonic() - began
    told = [seconds for _, seconds in filter(None, refused)]
    assert 12 == len(told)
    assert all(told[n] >= min(1.9 + 2 * n, MAX_LINE_SECONDS) - elapsed for n in range(12))
    assert max(told) <= MAX_LINE_SECONDS * (1 + JITTER)
    assert len(set(told)) == len(told)
