"""The limits on requests per minute."""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from flask import Flask
from sqlalchemy import func

from arkloop.api.app import create_app
from arkloop.api.auth.request_limits import RequestLimits, _reset
from arkloop.shared.actors import Actor
from arkloop.shared.errors import RateLimitExceeded
from arkloop.shared.ids import new_id
from arkloop.shared.org_limits import OrgLimits
from arkloop.shared.storage.connections import REDIS_PAUSE_SECONDS, Connections, connect_redis
from arkloop.shared.storage.outage import Outage
from tests.api.auth.test_password_attempts import full
from tests.clients import Register, User, error_of
from tests.shared_app import patient_with_redis
from tests.stored_runs import StoredRuns
from tests.waiting import in_parallel

#: A test is over before a window with so much time left is.
SECONDS = 50


def new_actor(**fields: Any) -> Actor:
    """Return an actor of an org whose window has some time left."""
    org_id = uuid4()
    while _reset(org_id, time.time()) < SECONDS:
        org_id = uuid4()
    return Actor(org_id=org_id, user_id=uuid4(), role="owner", permissions=frozenset(), **fields)


@pytest.fixture
def limits_of(app: Flask, connections: Connections) -> Iterator[Callable[..., RequestLimits]]:
    """Call it for the limits of a web process of its own."""
    with patient_with_redis(connections) as patient:

        def new(**settings: Any) -> RequestLimits:
            changed = replace(connections.settings, **settings)
            return RequestLimits(replace(patient, settings=changed))

        yield new


@pytest.fixture
def accepts(app: Flask) -> Callable[[RequestLimits, Actor], bool]:
    """Call it for whether a request is accepted."""

    def asked(limits: RequestLimits, actor: Actor) -> bool:
        with app.app_context():
            try:
                limits.count(actor)
            except RateLimitExceeded:
                return False
            return True

    return asked


@pytest.mark.parametrize("limit", [100, 1000])
def test_64_callers_of_two_processes_get_what_the_limit_says(
    limits_of: Callable[..., RequestLimits], accepts: Callable[..., bool], limit: int
) -> None:
    """They get exactly as many, whether requests are taken one by one or in parts."""
    processes = [limits_of(org_requests_per_minute=limit) for _ in range(2)]
    actor = new_actor()

    def call(number: int) -> int:
        return sum(accepts(processes[number % 2], actor) for _ in range(limit // 32))

    assert limit == sum(in_parallel(64, call))


def test_most_requests_cost_no_round_trip(
    limits_of: Callable[..., RequestLimits],
    accepts: Callable[..., bool],
    connections: Connections,
) -> None:
    """A process takes a hundredth of the limit at a time; a refused request takes nothing."""
    limits, actor = limits_of(org_requests_per_minute=1000), new_actor()
    before = _script_calls(connections)

    assert 1000 == sum(accepts(limits, actor) for _ in range(3000))

    assert 101 == _script_calls(connections) - before


def _script_calls(connections: Connections) -> int:
    stats = connections.redis.info("commandstats")
    return int(stats.get("cmdstat_evalsha", {"calls": 0})["calls"])


def test_without_redis_a_process_gives_out_its_share(
    accepts: Callable[..., bool], connections: Connections
) -> None:
    """The limit divided by the web processes of the machine; nothing fails."""
    settings = replace(connections.settings, org_requests_per_minute=10, api_workers=2)
    away = connect_redis("redis://127.0.0.1:1/0")
    outage = Outage(REDIS_PAUSE_SECONDS)
    limits = RequestLimits(replace(connections, settings=settings, redis=away, redis_outage=outage))
    actor = new_actor()

    assert 5 == sum(accepts(limits, actor) for _ in range(12))


def test_uses_are_counts_of_the_process_while_redis_is_full(
    limits_of: Callable[..., RequestLimits],
    accepts: Callable[..., bool],
    connections: Connections,
) -> None:
    """A full Redis still responds, with a count that misses what was taken meanwhile."""
    limits, actor = limits_of(org_requests_per_minute=6000), new_actor()
    assert all(accepts(limits, actor) for _ in range(70))
    with full(connections.redis):
        assert all(accepts(limits, actor) for _ in range(60 - 10 + 130))
        [of_process] = limits.uses(actor)
    assert all(accepts(limits, actor) for _ in range(70))
    [of_all] = limits.uses(actor)

    assert 6000 - 130 == of_process.remaining
    assert 6000 - 140 == of_all.remaining


def test_a_redis_that_comes_back_empty_leaves_no_more_than_the_limit(
    limits_of: Callable[..., RequestLimits],
    accepts: Callable[..., bool],
    connections: Connections,
) -> None:
    """What the process had taken before is not added to it: the use would be less than none."""
    limits, actor = limits_of(org_requests_per_minute=6000), new_actor()
    assert accepts(limits, actor)

    connections.redis.delete(*connections.redis.keys(f"*{actor.org_id}*"))

    assert [6000] == [use.remaining for use in limits.uses(actor)]


def test_what_a_key_is_refused_does_not_count_for_its_org(
    limits_of: Callable[..., RequestLimits], accepts: Callable[..., bool]
) -> None:
    """A key that floods takes no more of the org's requests than its own limit."""
    limits = limits_of(org_requests_per_minute=10, key_requests_per_minute=4)
    actor = new_actor()
    key = replace(actor, api_key_id=new_actor().org_id)

    assert 4 == sum(accepts(limits, key) for _ in range(20))
    assert 6 == sum(accepts(limits, actor) for _ in range(20))


def test_what_the_org_is_refused_does_not_count_for_the_key(
    limits_of: Callable[..., RequestLimits], accepts: Callable[..., bool]
) -> None:
    """The key has it left in the org's next window."""
    limits = limits_of(org_requests_per_minute=2, key_requests_per_minute=5)
    actor = new_actor()
    key = replace(actor, api_key_id=new_actor().org_id)

    assert 2 == sum(accepts(limits, key) for _ in range(9))

    left = {use.policy: use.remaining for use in limits.uses(key)}
    assert {"key": 3, "org": 0} == left


def test_another_limit_counts_at_once(
    limits_of: Callable[..., RequestLimits], accepts: Callable[..., bool]
) -> None:
    """It counts within the window, whatever the process has taken of it or was refused."""
    limits = limits_of()
    actor = new_actor()

    def accepted(most: int, requests: int) -> int:
        of_limit = replace(actor, limits=OrgLimits(org_requests_per_minute=most))
        return sum(accepts(limits, of_limit) for _ in range(requests))

    # A process that is refused has taken one, or a part, in vain.
    assert [5, 7, 0] == [accepted(5, 9), accepted(13, 12), accepted(4, 3)]
    assert 960 < accepted(1000, 2000) <= 1000 - 12
    assert 0 == accepted(900, 20)


def test_a_clock_that_is_set_back_refuses_nobody(
    limits_of: Callable[..., RequestLimits],
    accepts: Callable[..., bool],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A limit that was used up by a clock that was ahead counts anew when that is corrected."""
    limits, actor, now = limits_of(org_requests_per_minute=5), new_actor(), time.time
    with monkeypatch.context() as ahead:
        ahead.setattr(time, "time", lambda: now() + 3600)
        assert 5 == sum(accepts(limits, actor) for _ in range(7))

    assert 5 == sum(accepts(limits, actor) for _ in range(7))


# ---- over HTTP -----------------------------------------------------------------------


@contextmanager
def limited(connections: Connections, **settings: Any) -> Iterator[Flask]:
    changed = replace(connections.settings, **settings)
    app = create_app(connections=replace(connections, settings=changed))
    yield app
    for name in ("hub", "polls", "reports"):
        app.extensions[f"arkloop.{name}"].close()


@pytest.fixture(scope="module")
def small(connections: Connections) -> Iterator[Flask]:
    """An app in which an org may send five requests a minute."""
    with (
        patient_with_redis(connections) as patient,
        limited(patient, org_requests_per_minute=5, org_concurrent_runs=1) as app,
    ):
        yield app


@pytest.fixture
def bob(register: Register, small: Flask) -> User:
    """A user whose window has just begun, and who uses `small`."""
    user = register()
    while _reset(user.org_id, time.time()) < SECONDS:
        user = register()
    return replace(user, client=small.test_client())


def test_a_request_too_many_gets_429(bob: User) -> None:
    """It says the code, the limit and when to retry; every response says what is left."""
    answers = [bob.get("/v1/threads") for _ in range(6)]

    assert [*[200] * 5, 429] == [answer.status_code for answer in answers]
    left = [answer.headers["RateLimit"].partition(";t=")[0] for answer in answers]
    assert [f'"org";r={n}' for n in (4, 3, 2, 1, 0, 0)] == left
    refused = answers[-1]
    assert '"org";q=5;w=60' == refused.headers["RateLimit-Policy"]
    assert refused.json is not None and "rate_limit.exceeded" == refused.json["code"]
    assert {"limit": "org", "per_minute": 5} == refused.json["details"]
    assert refused.headers["RateLimit"].endswith(f";t={refused.headers['Retry-After']}")
    assert SECONDS // 2 < int(refused.headers["Retry-After"]) <= 60


def test_each_way_to_identify_counts(bob: User) -> None:
    """Streams by ticket or token and results of tools too, which check tokens by themselves."""
    run = bob.post("/v1/runs", {"message": "hello"}).json
    assert run is not None
    path = f"/v1/runs/{run['run_id']}"
    ticket = bob.post(f"{path}/stream-ticket", {"tool_results": True}).json
    assert ticket is not None
    by_ticket = f"?ticket={ticket['ticket']}"
    for _ in range(3):
        bob.client.head(f"{path}/events{by_ticket}")

    statuses = [
        bob.client.get(f"{path}/events{by_ticket}").status_code,
        bob.client.post(f"{path}/tool-results{by_ticket}", json=[]).status_code,
        bob.get(f"{path}/events").status_code,
        bob.post(f"{path}/tool-results", []).status_code,
    ]

    assert {429: 4} == Counter(statuses)


def test_streams_and_results_count_that_are_refused(bob: User) -> None:
    """A key without the permission asks for them no more often than for anything else."""
    key = bob.api_key("data.threads.read")
    path = f"/v1/runs/{new_id()}"

    asked = [key.get(f"{path}/events") for _ in range(2)]
    asked += [key.post(f"{path}/tool-results", []) for _ in range(2)]
    too_many = [key.get(f"{path}/events"), key.post(f"{path}/tool-results", [])]

    assert [403] * 4 == [answer.status_code for answer in asked]
    assert [429] * 2 == [answer.status_code for answer in too_many]


def test_streams_by_a_ticket_after_its_end_count(bob: User, connections: Connections) -> None:
    """Their refusal takes a look at the run in Postgres, so they are counted before it."""
    stored = StoredRuns.of(connections, bob)
    run_id = UUID((bob.post("/v1/runs", {"message": "hello"}).json or {})["run_id"])
    path = f"/v1/runs/{run_id}"
    ticket = (bob.post(f"{path}/stream-ticket").json or {})["ticket"]
    stored.cancel(run_id)
    stored.set(run_id, ended_at=func.now() - timedelta(minutes=11))

    asked = [bob.client.get(f"{path}/events?ticket={ticket}").status_code for _ in range(4)]

    assert [401, 401, 401, 429] == asked


def test_too_many_requests_leave_workers_their_runs(bob: User) -> None:
    """Heartbeats count by themselves, under a limit of the same size."""
    for _ in range(6):
        bob.get("/v1/threads")
    of_agent = ("/v1/agent-workers/a:heartbeat", {"runs": []})
    of_tools = ("/v1/tool-workers/a:heartbeat", {"calls": [{"call_id": str(new_id()), "fence": 1}]})

    def beat(path: str, held: dict[str, Any]) -> int:
        return bob.post(path, {"worker_id": str(new_id()), **held}).status_code

    assert 429 == bob.get("/v1/threads").status_code
    assert [200, 200, 200] == [beat(*of_agent), beat(*of_tools), beat(*of_agent)]
    assert {429: 8, 200: 2} == Counter(beat(*of_agent) for _ in range(10))


def test_me_shows_the_limits(bob: User) -> None:
    """It shows the use, this request included; an org without limits has none there."""
    bob.post("/v1/runs", {"message": "hello"})

    shown = bob.get("/v1/me").json

    assert shown is not None
    requests, of_runs = shown["limits"]
    assert requests.pop("resets_at") is not None
    assert {"name": "requests", "scope": "org", "limit": 5, "used": 2} == requests
    assert {
        "name": "concurrent_runs",
        "scope": "org",
        "limit": 1,
        "used": 1,
        "resets_at": None,
    } == of_runs


def test_a_run_too_many_gets_429(bob: User) -> None:
    """The response says when to retry, although the end of a run is not known."""
    refused = [bob.post("/v1/runs", {"message": "hello"}) for _ in range(2)][-1]

    assert (429, "runs.limit_exceeded") == error_of(refused)
    assert "2" == refused.headers["Retry-After"]


def test_without_limits_nothing_is_counted(alice: User) -> None:
    """Responses have no such headers by default, and Redis is not asked."""
    answer = alice.get("/v1/me")

    assert "RateLimit" not in answer.headers
    assert answer.json is not None and [] == answer.json["limits"]
