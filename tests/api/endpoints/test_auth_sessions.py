"""Refresh tokens and log-outs: rotated, reused, expired and hashed."""

from dataclasses import replace

import pytest
from flask.testing import FlaskClient
from sqlalchemy import select, text
from werkzeug.test import TestResponse

from arkloop.api.app import create_app
from arkloop.shared.storage.connections import Connections
from arkloop.shared.storage.tables.accounts import refresh_tokens
from tests.api.endpoints.sessions_of_users import me
from tests.clients import PASSWORD, Register, User, error_of
from tests.waiting import in_parallel

COOKIE = "arkloop_refresh_token"


def cookie_of(client: FlaskClient) -> str | None:
    cookie = client.get_cookie(COOKIE, path="/v1/auth")
    return cookie.value if cookie else None


def refresh_with(client: FlaskClient, token: str | None) -> TestResponse:
    """Refresh with this token in the cookie, whatever the client has."""
    client.set_cookie(COOKIE, token or "", path="/v1/auth")
    return client.post("/v1/auth/refresh")


def test_refresh_rotates_the_cookie(alice: User) -> None:
    """A new access token, a new refresh token, again and again."""
    seen = {cookie_of(alice.client)}
    for _ in range(3):
        response = alice.client.post("/v1/auth/refresh")
        assert 200 == response.status_code
        assert 200 == me(alice.client, response)
        seen.add(cookie_of(alice.client))

    assert 4 == len(seen)


def test_reuse_of_a_rotated_token_ends_the_login(alice: User) -> None:
    """The holder of the old one is a thief, or a victim: both have to log in again."""
    old = cookie_of(alice.client)
    new = alice.client.post("/v1/auth/refresh")
    newest = cookie_of(alice.client)

    assert 401 == refresh_with(alice.client, old).status_code
    assert 401 == refresh_with(alice.client, newest).status_code
    alice.client.application.extensions["arkloop.auth"].forget()
    assert 401 == me(alice.client, new)


def test_reuse_ends_that_login_alone(alice: User, client: FlaskClient) -> None:
    """Another device of the same user stays logged in."""
    client.post("/v1/auth/login", json={"login": alice.login, "password": PASSWORD})
    old = cookie_of(alice.client)
    alice.client.post("/v1/auth/refresh")
    refresh_with(alice.client, old)

    assert 200 == client.post("/v1/auth/refresh").status_code


def test_of_two_refreshes_at_once_one_wins(alice: User) -> None:
    """One token never becomes two live ones."""
    token = cookie_of(alice.client)
    app = alice.client.application

    answers = in_parallel(5, lambda _: refresh_with(app.test_client(), token))

    assert [200, 401, 401, 401, 401] == sorted(answer.status_code for answer in answers)


@pytest.mark.parametrize("token", ["", "x", "é", "a b", "x" * 3_000])
def test_what_is_no_refresh_token_is_refused(client: FlaskClient, token: str) -> None:
    """The response is 401, with or without a cookie."""
    assert (401, "auth.unauthorized") == error_of(client.post("/v1/auth/refresh"))
    assert (401, "auth.unauthorized") == error_of(refresh_with(client, token))


def test_a_refresh_token_ends_after_30_days(alice: User, connections: Connections) -> None:
    """A refresh token expires after 30 days and is deleted at the next login."""
    with connections.transaction() as tx:
        tx.sql.execute(
            text(
                "UPDATE refresh_tokens SET expires_at = expires_at - interval '30 days'"
                " WHERE user_id = :id"
            ),
            {"id": alice.id},
        )
    assert 401 == alice.client.post("/v1/auth/refresh").status_code

    alice.client.post("/v1/auth/login", json={"login": alice.login, "password": PASSWORD})
    with connections.reading() as sql:
        left = select(refresh_tokens.c.id).where(refresh_tokens.c.user_id == alice.id)
        assert 1 == len(sql.execute(left).all())


def test_only_hashes_of_refresh_tokens_are_stored(alice: User, connections: Connections) -> None:
    """The database does not contain what is needed to refresh a session."""
    with connections.reading() as sql:
        stored = sql.scalars(select(refresh_tokens.c.token_hash)).all()

    assert cookie_of(alice.client) not in stored
    assert all(len(hash_) == 64 for hash_ in stored)


def test_logout_ends_the_login(alice: User) -> None:
    """Access token, refresh token and cookie."""
    token = cookie_of(alice.client)
    response = alice.post("/v1/auth/logout")

    assert (200, {"ok": True}) == (response.status_code, response.json)
    assert cookie_of(alice.client) in (None, "")
    assert 401 == alice.get("/v1/me").status_code
    assert 401 == refresh_with(alice.client, token).status_code


@pytest.mark.parametrize("is_exchanged", [False, True])
def test_logout_by_the_cookie_ends_its_login(alice: User, is_exchanged: bool) -> None:
    """Without an access token; a page may send the cookie that another has just exchanged."""
    cookie = cookie_of(alice.client)
    if is_exchanged:
        alice.client.post("/v1/auth/refresh")
    newest = cookie_of(alice.client)

    for _ in range(2):  # it may be repeated
        alice.client.set_cookie(COOKIE, cookie or "", path="/v1/auth")
        assert {"ok": True} == alice.client.post("/v1/auth/logout").json
    assert 401 == alice.get("/v1/me").status_code
    assert 401 == refresh_with(alice.client, newest).status_code


def test_logout_by_a_cookie_of_no_login_is_refused(alice: User, client: FlaskClient) -> None:
    """Neither an unknown cookie nor one beside a refused access token ends anything."""
    for _ in range(2):
        assert (401, "auth.unauthorized") == error_of(client.post("/v1/auth/logout"))
        client.set_cookie(COOKIE, "unknown", path="/v1/auth")
    wrong = alice.with_token("wrong").post("/v1/auth/logout")

    assert (401, "auth.unauthorized") == error_of(wrong)
    assert 200 == alice.client.post("/v1/auth/refresh").status_code


def test_logout_by_an_api_key_ends_no_login(alice: User) -> None:
    """The key stays valid as well."""
    key = alice.api_key()

    assert {"ok": True} == key.post("/v1/auth/logout").json
    assert [200, 200] == [user.get("/v1/me").status_code for user in (alice, key)]


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        (None, True),
        ("http://localhost", True),
        ("https://app.example.com", True),
        ("null", False),
        ("https://evil.example.com", False),
        ("http://localhost.evil.com", False),
        ("http://localhost:8080", False),
        ("http://[", False),
        ("http://", False),
        ("", False),
    ],
)
@pytest.mark.parametrize(
    ("path", "has_token"),
    [("login", False), ("refresh", False), ("logout", True), ("logout", False)],
)
def test_pages_of_other_origins_may_not_use_the_cookie(
    connections: Connections,
    register: Register,
    path: str,
    has_token: bool,
    origin: str | None,
    allowed: bool,
) -> None:
    """Our own origin and the listed ones may, programs without an Origin too."""
    user = register()
    settings = replace(connections.settings, cors_origins=("https://app.example.com",))
    client = create_app(connections=replace(connections, settings=settings)).test_client()
    token = cookie_of(user.client)
    client.set_cookie(COOKIE, token or "", path="/v1/auth")
    headers = {"Authorization": f"Bearer {user.token}"} if has_token else {}
    if origin is not None:
        headers["Origin"] = origin
    body = {"login": user.login, "password": PASSWORD} if path == "login" else {}

    response = client.post(f"/v1/auth/{path}", json=body, headers=headers)

    assert (200 if allowed else 403) == response.status_code
