"""The limit on attempts to guess a password."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import redis
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from arkloop.api.auth.password_attempts import ATTEMPTS, MINUTES, PasswordAttempts
from arkloop.shared.errors import TooManyAttempts
from arkloop.shared.storage.connections import Connections
from arkloop.shared.storage.outage import Outage
from tests.clients import PASSWORD, Register, User
from tests.waiting import in_parallel


def log_in(client: FlaskClient, login: str, password: str = "wrong password") -> TestResponse:
    return client.post("/v1/auth/login", json={"login": login, "password": password})


@contextmanager
def full(server: redis.Redis) -> Iterator[None]:
    """Let Redis reject what counts, and accept what reads or deletes."""
    usual = server.config_get("maxmemory*")
    server.config_set("maxmemory-policy", "noeviction")
    server.config_set("maxmemory", "1")
    try:
        yield
    finally:
        for name in ("maxmemory", "maxmemory-policy"):
            server.config_set(name, str(usual[name]))


@contextmanager
def hiding_ends(server: redis.Redis) -> Iterator[None]:
    """Let Redis count, and refuse to say when a count ends."""
    server.acl_setuser("default", enabled=True, commands=["-ttl"])
    try:
        yield
    finally:
        server.acl_setuser("default", enabled=True, commands=["+ttl"])


@pytest.mark.parametrize("exists", [True, False])
def test_after_ten_wrong_passwords_the_right_one_waits(
    client: FlaskClient, alice: User, exists: bool
) -> None:
    """A login that does not exist is treated alike; upper and lower case are the same login."""
    login = alice.login if exists else f"nobody-{alice.login}"
    spellings = [login, login.upper()] * (ATTEMPTS // 2)
    assert [401] * ATTEMPTS == [log_in(client, spelling).status_code for spelling in spellings]

    refused = log_in(client, login, PASSWORD)

    assert 429 == refused.status_code
    assert refused.json is not None and "auth.too_many_attempts" == refused.json["code"]
    assert 1 <= int(refused.headers["Retry-After"]) <= MINUTES * 60


def test_no_spelling_of_a_login_has_attempts_of_its_own(
    client: FlaskClient, register: Register
) -> None:
    """Postgres finds a user by letters that Python does not lower to the same ones."""
    login = register(login="irina-kiki").login
    spellings = [login.replace("i", "İ", n) for n in range(4)] + [login.replace("k", "\u212a")]
    for spelling in spellings:
        assert 200 == log_in(client, spelling, PASSWORD).status_code
    statuses = [log_in(client, spelling).status_code for spelling in spellings * 4]

    assert [401] * ATTEMPTS == statuses[:ATTEMPTS]
    assert {429} == {*statuses[ATTEMPTS:]}


def test_attempts_with_one_login_do_not_count_for_another(client: FlaskClient, alice: User) -> None:
    """Nobody is locked out by guesses at somebody else's password."""
    for _ in range(ATTEMPTS + 1):
        log_in(client, f"other-{alice.login}")

    assert 200 == log_in(client, alice.login, PASSWORD).status_code


def test_the_right_password_ends_the_count(client: FlaskClient, alice: User) -> None:
    """A user who mistypes now and then never meets the limit."""
    for _ in range(2):
        for _ in range(ATTEMPTS - 1):
            assert 401 == log_in(client, alice.login).status_code
        assert 200 == log_in(client, alice.login, PASSWORD).status_code


def test_attempts_at_once_are_counted_one_by_one(app: Flask, alice: User) -> None:
    """Ten passwords are compared when thirty arrive at the same moment.

    The web process of the tests has as many connections: no request waits for one.
    """

    def attempt(_: int) -> int:
        return log_in(app.test_client(), alice.login).status_code

    assert {401: ATTEMPTS, 429: 30 - ATTEMPTS} == Counter(in_parallel(30, attempt))


def test_the_present_password_cannot_be_guessed_with_a_stolen_token(alice: User) -> None:
    """The limit counts by the user; logging in is not limited by it."""
    body = {"current": "wrong password", "new": "a new password"}
    statuses = [alice.post("/v1/auth/password", body).status_code for _ in range(ATTEMPTS + 1)]

    assert [*[422] * ATTEMPTS, 429] == statuses
    assert 200 == log_in(alice.client, alice.login, PASSWORD).status_code


def test_a_login_spelled_like_the_id_of_a_user_does_not_count_for_that_user(
    client: FlaskClient, alice: User
) -> None:
    """The attempts at the user's present password cannot be used up by others."""
    for _ in range(ATTEMPTS + 1):
        log_in(client, str(alice.id))

    body = {"current": PASSWORD, "new": "a new password"}
    assert 200 == alice.post("/v1/auth/password", body).status_code


def test_an_account_named_like_the_id_of_a_user_ends_no_count_of_that_user(
    client: FlaskClient, alice: User, register: Register
) -> None:
    """The thief of a token does not reset the attempts with an account of their own."""
    named_like_alice = register(login=str(alice.id))
    body = {"current": "wrong password", "new": "a new password"}
    for _ in range(ATTEMPTS):
        assert 422 == alice.post("/v1/auth/password", body).status_code
    assert 200 == log_in(client, named_like_alice.login, PASSWORD).status_code

    assert 429 == alice.post("/v1/auth/password", body).status_code


def test_without_redis_a_process_counts_for_itself(connections: Connections) -> None:
    """The limit is kept by each web process, and a right password ends that count, too."""
    away = redis.Redis(host="127.0.0.1", port=1, socket_connect_timeout=0.2)
    attempts = PasswordAttempts(replace(connections, redis=away, redis_outage=Outage(60)))
    for _ in range(ATTEMPTS):
        attempts.count("somebody")
    with pytest.raises(TooManyAttempts):
        attempts.count("somebody")

    attempts.forget("somebody")

    attempts.count("somebody")


def test_the_right_password_ends_the_count_while_redis_is_full(
    client: FlaskClient, alice: User, connections: Connections
) -> None:
    """The web process counts for itself then, and forgets what it has counted."""
    with full(connections.redis):
        attempts = [log_in(client, alice.login, PASSWORD) for _ in range(ATTEMPTS + 1)]

    assert [200] * (ATTEMPTS + 1) == [attempt.status_code for attempt in attempts]


def test_the_right_password_ends_what_was_counted_while_redis_was_full(
    client: FlaskClient, alice: User, connections: Connections
) -> None:
    """Redis may be full again before the minutes of that count are over."""
    with full(connections.redis):
        for _ in range(ATTEMPTS):
            assert 401 == log_in(client, alice.login).status_code
    assert 200 == log_in(client, alice.login, PASSWORD).status_code

    with full(connections.redis):
        assert 200 == log_in(client, alice.login, PASSWORD).status_code


def test_a_refusal_while_redis_is_full_has_the_time_of_the_count(
    client: FlaskClient, alice: User, connections: Connections
) -> None:
    """The minutes are those in which the web process has counted."""
    with full(connections.redis):
        for _ in range(ATTEMPTS):
            assert 401 == log_in(client, alice.login).status_code
        refused = log_in(client, alice.login)

    assert 429 == refused.status_code
    assert (MINUTES - 1) * 60 < int(refused.headers["Retry-After"]) <= MINUTES * 60


def test_a_refusal_stands_where_its_end_cannot_be_read(
    client: FlaskClient, alice: User, connections: Connections
) -> None:
    """The count of the web process, which has none of these attempts, would admit the next ones."""
    for _ in range(ATTEMPTS):
        assert 401 == log_in(client, alice.login).status_code

    with hiding_ends(connections.redis):
        refused = log_in(client, alice.login, PASSWORD)

    assert 429 == refused.status_code
    assert str(MINUTES * 60) == refused.headers["Retry-After"]


def test_redis_does_not_get_the_login(
    client: FlaskClient, alice: User, connections: Connections
) -> None:
    """It may be an email address."""
    log_in(client, f"{alice.login}@example.com")

    keys = connections.redis.keys("*password-attempts*")
    assert keys
    assert not [key for key in keys if alice.login in str(key)]
