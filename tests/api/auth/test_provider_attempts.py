"""The limit on logins by identity providers from one address."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import pytest
import redis
from flask import Flask

from arkloop.api.auth.provider_attempts import REQUESTS, ProviderAttempts
from arkloop.shared.errors import TooManyAttempts
from arkloop.shared.ids import new_id
from arkloop.shared.storage.connections import Connections
from tests.clients import error_of
from tests.waiting import in_parallel

BEGIN, CALLBACK = "/v1/auth/oidc/begin", "/v1/auth/oidc/callback"


@pytest.fixture
def attempts(app: Flask, connections: Connections) -> Iterator[ProviderAttempts]:
    """The count of the app, which begins anew for each test."""
    before = app.extensions["arkloop.provider_attempts"]
    connections.redis.flushdb()
    app.extensions["arkloop.provider_attempts"] = made = ProviderAttempts(connections)
    yield made
    app.extensions["arkloop.provider_attempts"] = before


def use_up(attempts: ProviderAttempts, address: str | None) -> None:
    for _ in range(REQUESTS):
        attempts.count(address)


def test_both_requests_of_a_login_are_refused(app: Flask, attempts: ProviderAttempts) -> None:
    """They are refused before body and cookie are read; other addresses are not affected."""
    client = app.test_client()
    use_up(attempts, "192.0.2.1")

    for address, expected in (("192.0.2.1", 429), ("192.0.2.2", None)):
        where = {"REMOTE_ADDR": address}
        for response in (
            client.post(BEGIN, json={"org_id": str(new_id())}, environ_base=where),
            client.get(f"{CALLBACK}?state=x&code=y", environ_base=where),
        ):
            assert (response.status_code == 429) is (expected == 429), response.text
            if expected:
                assert (429, "auth.too_many_attempts") == error_of(response)
                assert 1 <= int(response.headers["Retry-After"]) <= 60


def test_requests_at_once_are_counted_one_by_one(attempts: ProviderAttempts) -> None:
    """As many get through as the limit allows when more arrive at the same moment."""
    for _ in range(REQUESTS - 20):
        attempts.count("192.0.2.3")

    def attempt(_: int) -> bool:
        try:
            attempts.count("192.0.2.3")
        except TooManyAttempts:
            return False
        return True

    assert {True: 20, False: 44} == Counter(in_parallel(64, attempt))


@pytest.mark.parametrize(
    ("address", "other", "counts"),
    [
        ("2001:db8::1", "2001:db8::ffff:1", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("fe80::1%eth0", "fe80::2%eth1", True),
        (None, "192.0.2.4", False),
    ],
)
def test_an_ipv6_network_counts_as_one_address(
    attempts: ProviderAttempts, address: str | None, other: str, counts: bool
) -> None:
    """Its owner chooses among 2⁶⁴ addresses."""
    use_up(attempts, address)
    try:
        attempts.count(other)
    except TooManyAttempts:
        assert counts
    else:
        assert not counts


def test_without_redis_each_process_counts(connections: Connections) -> None:
    """Logins go on, and so does the limit."""
    away = replace(connections, redis=redis.Redis(port=1))
    two = [ProviderAttempts(away) for _ in range(2)]
    for attempts in two:
        use_up(attempts, "192.0.2.5")
        with pytest.raises(TooManyAttempts):
            attempts.count("192.0.2.5")
