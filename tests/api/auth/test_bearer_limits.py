"""Limits of one org alone, as requests meet them."""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from flask import Flask

from arkloop.api.app import create_app
from arkloop.api.auth.bearer import CACHE_SECONDS
from arkloop.api.auth.request_limits import _reset
from arkloop.shared.accounts import org_settings
from arkloop.shared.storage.connections import Connections
from tests.clients import Register, User, error_of
from tests.waiting import eventually

Set = Callable[..., None]
SSE = {"Accept": "text/event-stream"}


@pytest.fixture
def set_(connections: Connections) -> Set:
    """Call it for what the operator sets for the user's org."""

    def change(user: User, **values: int | None) -> None:
        with connections.transaction() as tx:
            org_settings.change(tx, user.org_id, values)

    return change


@pytest.fixture
def alice(register: Register) -> User:
    """The owner of an org whose minute for requests ends after the test."""
    user = register()
    while _reset(user.org_id, time.time()) < 50:
        user = register()
    return user


@pytest.fixture(scope="module")
def limited(connections: Connections) -> Iterator[Flask]:
    """An app whose settings limit the runs and streams of all orgs."""
    changed = replace(connections.settings, org_concurrent_runs=1, org_streams=1)
    app = create_app(connections=replace(connections, settings=changed))
    yield app
    for name in ("hub", "polls", "reports", "stream_slots"):
        app.extensions[f"arkloop.{name}"].close()


def limits_of(user: User) -> dict[tuple[str, str], int]:
    """Return the limits that `/v1/me` shows."""
    me = user.get("/v1/me").json
    assert me is not None
    return {(one["name"], one["scope"]): one["limit"] for one in me["limits"]}


def test_an_org_may_have_limits_where_others_have_none(
    alice: User, register: Register, set_: Set
) -> None:
    """Requests, runs and streams may be limited; `/v1/me` shows the limits, and the weight."""
    set_(alice, org_requests_per_minute=6, org_concurrent_runs=1, org_streams=1, weight=3)

    first = alice.post("/v1/runs", {"message": "hello"}).json
    assert first is not None
    path = f"/v1/runs/{first['run_id']}/events"
    assert (429, "runs.limit_exceeded") == error_of(alice.post("/v1/runs", {"message": "hello"}))
    open_ = alice.get(path, headers=SSE)
    assert (429, "streams.limit_exceeded") == error_of(alice.get(path, headers=SSE))
    open_.close()
    me = alice.get("/v1/me")
    assert me.json is not None and 3 == me.json["weight"]
    assert {("requests", "org"): 6, ("concurrent_runs", "org"): 1, ("streams", "org"): 1} == {
        (one["name"], one["scope"]): one["limit"] for one in me.json["limits"]
    }
    assert '"org";q=6;w=60' == me.headers["RateLimit-Policy"]
    assert 200 == alice.get("/v1/me").status_code
    assert (429, "rate_limit.exceeded") == error_of(alice.get("/v1/me"))

    other = register()
    assert {} == limits_of(other)
    assert "RateLimit" not in other.get("/v1/me").headers


def test_an_org_may_have_more_than_others(
    alice: User, register: Register, limited: Flask, set_: Set
) -> None:
    """An org may have no limit at all; each key and client of the org gets it."""
    bob, other = (replace(user, client=limited.test_client()) for user in (alice, register()))
    set_(alice, org_concurrent_runs=3, org_streams=0)

    made = [bob.post("/v1/runs", {"message": "hello"}).status_code for _ in range(4)]

    assert [201, 201, 201, 429] == made
    assert {("concurrent_runs", "org"): 3} == limits_of(bob)
    assert [201, 429] == [
        other.post("/v1/runs", {"message": "hello"}).status_code for _ in range(2)
    ]


def test_a_ticket_has_the_limits_of_its_org(alice: User, set_: Set) -> None:
    """A stream by ticket takes a slot like any other."""
    run = alice.post("/v1/runs", {"message": "hello"}).json
    assert run is not None
    path = f"/v1/runs/{run['run_id']}"
    ticket = alice.post(f"{path}/stream-ticket", {}).json
    assert ticket is not None
    set_(alice, org_streams=1)
    eventually(lambda: {("streams", "org"): 1} == limits_of(alice), seconds=2 * CACHE_SECONDS)
    open_ = alice.get(f"{path}/events", headers=SSE)

    refused = alice.client.get(f"{path}/events?ticket={ticket['ticket']}", headers=SSE)

    assert (429, "streams.limit_exceeded") == error_of(refused)
    open_.close()


def test_a_change_counts_within_two_seconds(alice: User, set_: Set) -> None:
    """It counts in a process that knows the old limits, and for an org that has used all of its
    requests.
    """
    set_(alice, org_requests_per_minute=2)
    assert [200, 200, 429] == [alice.get("/v1/me").status_code for _ in range(3)]

    set_(alice, org_requests_per_minute=None)

    eventually(lambda: 200 == alice.get("/v1/me").status_code, seconds=2 * CACHE_SECONDS)
