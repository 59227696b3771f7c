"""`/v1/auth` for people of a suspended org."""

from collections.abc import Callable

import pytest
from flask import Flask

from arkloop.shared.accounts import suspensions
from arkloop.shared.storage.connections import Connections
from tests.clients import PASSWORD, Register, User, error_of

Change = Callable[[User], None]


@pytest.fixture
def suspend(connections: Connections, app: Flask) -> Change:
    """Call it for a user, whose org it suspends."""

    def change(user: User) -> None:
        with connections.transaction() as tx:
            suspensions.suspend(tx, user.org_id, "Unpaid bills")
        app.extensions["arkloop.auth"].forget()

    return change


@pytest.fixture
def resume(connections: Connections, app: Flask) -> Change:
    """Call it for a user, whose org it resumes."""

    def change(user: User) -> None:
        with connections.transaction() as tx:
            suspensions.resume(tx, user.org_id)
        app.extensions["arkloop.auth"].forget()

    return change


def test_nobody_logs_in_to_a_suspended_org(alice: User, app: Flask, suspend: Change) -> None:
    """401 with the right password; with a wrong one nothing says that the org is suspended."""
    suspend(alice)
    client = app.test_client()
    body = {"login": alice.login, "password": PASSWORD}

    right = client.post("/v1/auth/login", json=body)
    assert (401, "org.suspended") == error_of(right)
    assert "Bearer" == right.headers["WWW-Authenticate"]
    assert [] == right.headers.getlist("Set-Cookie")
    wrong = client.post("/v1/auth/login", json={**body, "password": "something else"})
    assert (401, "auth.unauthorized") == error_of(wrong)


def test_a_login_goes_on_after_its_org_is_resumed(
    alice: User, app: Flask, suspend: Change, resume: Change
) -> None:
    """The refresh token is refused meanwhile, and neither spent nor taken for a copied one."""
    client = app.test_client()
    client.post("/v1/auth/login", json={"login": alice.login, "password": PASSWORD})
    suspend(alice)
    for _ in range(2):
        assert (401, "org.suspended") == error_of(client.post("/v1/auth/refresh"))

    resume(alice)

    assert 200 == client.post("/v1/auth/refresh").status_code


def test_the_cookie_of_a_suspended_org_ends_its_login(
    alice: User, app: Flask, suspend: Change, resume: Change
) -> None:
    """Its access token cannot; after the org is resumed, neither of them is in force."""
    suspend(alice)
    assert (401, "org.suspended") == error_of(alice.post("/v1/auth/logout"))
    ended = alice.client.post("/v1/auth/logout")
    assert {"ok": True} == ended.json
    assert [True] == ["Max-Age=0" in cookie for cookie in ended.headers.getlist("Set-Cookie")]

    resume(alice)

    assert 401 == alice.get("/v1/me").status_code
    body = {"login": alice.login, "password": PASSWORD}
    again = app.test_client().post("/v1/auth/login", json=body).json
    assert again is not None
    entries = alice.with_token(again["access_token"]).get("/v1/audit-logs").json
    assert entries is not None
    assert ["auth.logged_in", "auth.logged_out"] == [one["action"] for one in entries[:2]]


def test_a_person_uses_their_other_orgs(register: Register, app: Flask, suspend: Change) -> None:
    """A login without `org_id` is in the first org that is open; one with it is refused."""
    first, other = register(), register()
    invitation = other.post(
        f"/v1/orgs/{other.org_id}/invitations", {"name": "A colleague", "role": "member"}
    ).json["token"]
    body = {"login": first.login, "password": PASSWORD}
    client = app.test_client()
    joined = client.post("/v1/auth/login", json={**body, "invitation": invitation}).json
    assert joined is not None
    suspend(first)

    own = client.post("/v1/auth/login", json=body).json
    assert own is not None
    for token in (joined["access_token"], own["access_token"]):
        me = first.with_token(token).get("/v1/me").json
        assert me is not None
        assert str(other.org_id) == me["org_id"]
    refused = client.post("/v1/auth/login", json={**body, "org_id": str(first.org_id)})
    assert (401, "org.suspended") == error_of(refused)


def test_nobody_joins_a_suspended_org(
    register: Register, app: Flask, suspend: Change, resume: Change
) -> None:
    """Its invitation is refused, and not used up."""
    owner, guest = register(), register()
    path = f"/v1/orgs/{owner.org_id}/invitations"
    invitation = owner.post(path, {"name": "A guest", "role": "member"}).json["token"]
    body = {"login": guest.login, "password": PASSWORD, "invitation": invitation}
    suspend(owner)
    assert (401, "org.suspended") == error_of(app.test_client().post("/v1/auth/login", json=body))

    resume(owner)

    assert 200 == app.test_client().post("/v1/auth/login", json=body).status_code
