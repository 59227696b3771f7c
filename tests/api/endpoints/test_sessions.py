"""The logins of a user: the list, and the end of each."""

from collections.abc import Callable
from datetime import datetime, timedelta

import pytest
from flask import Flask
from sqlalchemy import func, update

from arkloop.shared.storage.connections import Connections
from arkloop.shared.storage.tables.accounts import refresh_tokens
from tests.clients import PASSWORD, Register, User, error_of


@pytest.fixture
def log_in(app: Flask, alice: User) -> Callable[[], User]:
    """Call it for one more login of alice, as from another browser."""

    def new() -> User:
        client = app.test_client()
        body = {"login": alice.login, "password": PASSWORD}
        response = client.post("/v1/auth/login", json=body)
        assert response.json is not None
        token = response.json["access_token"]
        return User(client, alice.login, alice.id, alice.org_id, token)

    return new


def sessions_of(user: User) -> list[dict[str, object]]:
    response = user.get("/v1/auth/sessions")
    assert 200 == response.status_code, response.text
    items: list[dict[str, object]] = response.json["items"]
    return items


def test_each_login_is_listed_and_knows_itself(alice: User, log_in: Callable[[], User]) -> None:
    """The newest one first; an exchange of the cookie is no other login."""
    phone = log_in()
    assert 200 == alice.client.post("/v1/auth/refresh").status_code

    seen = sessions_of(phone)

    assert [False, True] == [session["is_current"] for session in seen]
    assert seen[0]["refreshed_at"] > seen[0]["created_at"]  # type: ignore[operator]  # both text
    assert [session["id"] for session in seen] == [one["id"] for one in sessions_of(alice)]
    expires = datetime.fromisoformat(str(seen[0]["expires_at"]))
    refreshed = datetime.fromisoformat(str(seen[0]["refreshed_at"]))
    assert timedelta(days=30) == expires - refreshed


def test_an_ended_login_gets_nothing_any_more(alice: User, log_in: Callable[[], User]) -> None:
    """Neither its token nor its cookie is in force; the others go on."""
    phone = log_in()
    lost = next(one["id"] for one in sessions_of(phone) if one["is_current"])

    assert 204 == alice.call("DELETE", f"/v1/auth/sessions/{lost}").status_code

    assert 401 == phone.get("/v1/me").status_code
    assert 401 == phone.client.post("/v1/auth/refresh").status_code
    assert [True] == [session["is_current"] for session in sessions_of(alice)]
    gone = alice.call("DELETE", f"/v1/auth/sessions/{lost}")
    assert (404, "sessions.not_found") == error_of(gone)


def test_a_user_may_end_the_login_of_the_request(alice: User) -> None:
    """It is a logout that leaves the cookie, which is worth nothing then."""
    own = sessions_of(alice)[0]["id"]

    assert 204 == alice.call("DELETE", f"/v1/auth/sessions/{own}").status_code
    assert 401 == alice.get("/v1/me").status_code


def test_nobody_sees_or_ends_the_logins_of_others(register: Register, alice: User) -> None:
    """Neither does the owner of the org."""
    member = register(org_of=alice, role="member")
    theirs = sessions_of(member)[0]["id"]

    refused = alice.call("DELETE", f"/v1/auth/sessions/{theirs}")

    assert theirs not in [session["id"] for session in sessions_of(alice)]
    assert (404, "sessions.not_found") == error_of(refused)
    assert 200 == member.get("/v1/me").status_code


def test_a_login_that_has_expired_is_not_listed(
    alice: User, log_in: Callable[[], User], connections: Connections
) -> None:
    """Its rows may still be there, until the next login."""
    phone = log_in()
    other = next(one["id"] for one in sessions_of(phone) if not one["is_current"])
    with connections.transaction() as tx:
        tx.sql.execute(
            update(refresh_tokens)
            .where(refresh_tokens.c.family_id == other)
            .values(expires_at=func.now())
        )

    assert [True] == [session["is_current"] for session in sessions_of(phone)]


def test_an_api_key_sees_and_ends_no_login(alice: User) -> None:
    """A key with `admin` does neither: its thief must not lock the user out."""
    key = alice.api_key("admin")
    own = sessions_of(alice)[0]["id"]

    assert (403, "auth.forbidden") == error_of(key.get("/v1/auth/sessions"))
    ended = key.call("DELETE", f"/v1/auth/sessions/{own}")
    assert (403, "auth.forbidden") == error_of(ended)
