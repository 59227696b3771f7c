"""`/v1/orgs/{org_id}/invitations`, and how they are accepted."""

import secrets
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import func, update
from werkzeug.test import TestResponse

from arkloop.api.app import create_app
from arkloop.shared.ids import new_id
from arkloop.shared.storage.connections import Connections
from arkloop.shared.storage.tables.accounts import invitations
from tests.clients import PASSWORD, Register, User, details_of, error_of
from tests.waiting import in_parallel


def path(user: User) -> str:
    return f"/v1/orgs/{user.org_id}/invitations"


def invite(user: User, role: str = "member") -> str:
    """Return the token of a new invitation to the user's org."""
    response = user.post(path(user), {"name": "Bob", "role": role})
    assert 201 == response.status_code, response.text
    return str(response.json["token"])


def account(**changes: Any) -> dict[str, Any]:
    name = f"user-{secrets.token_hex(6)}"
    return {"login": name, "email": f"{name}@example.com", "password": PASSWORD, **changes}


@pytest.fixture
def join(app: Flask) -> Callable[..., TestResponse]:
    """Call it to register somebody new with an invitation, or to log `by` in with it."""

    def new(invitation: str, by: User | None = None) -> TestResponse:
        client = app.test_client()
        if by is None:
            return client.post("/v1/auth/register", json=account(invitation=invitation))
        body = {"login": by.login, "password": PASSWORD, "invitation": invitation}
        return client.post("/v1/auth/login", json=body)

    return new


#: `join(invitation, by=None)`
Join = Callable[..., TestResponse]


def me(user: User, response: TestResponse) -> dict[str, Any]:
    """Return what `/v1/me` shows for the access token of the response."""
    return dict(user.with_token(response.json["access_token"]).get("/v1/me").json)


def test_a_new_invitation_shows_its_token_once(alice: User) -> None:
    """201 with every field; the list, and a repeated request, have all but the token."""
    body = {"name": "Bob", "role": "admin", "lifetime_seconds": 60}
    key = {"Idempotency-Key": "one"}
    response = alice.post(path(alice), body, headers=key)
    made = dict(response.json or {})
    token = made.pop("token")

    assert 201 == response.status_code
    assert f"{path(alice)}/{made['id']}" == response.headers["Location"]
    expected = {"org_id": str(alice.org_id), "name": "Bob", "role": "admin"}
    expected |= {"created_by_user_id": str(alice.id)}
    expected |= {name: made[name] for name in ("id", "created_at", "expires_at")}
    assert expected == made
    assert token.startswith("ali_") and len(token) == 47
    assert made == alice.post(path(alice), body, headers=key).json
    assert [made] == alice.get(path(alice)).json


def test_somebody_new_registers_with_an_invitation(
    alice: User, join: Join, connections: Connections
) -> None:
    """They join its org in its role, and get no org of their own; closed registration is no bar."""
    response = join(invite(alice, "admin"))
    settings = replace(connections.settings, registration_open=False)
    closed = create_app(connections=replace(connections, settings=settings)).test_client()
    also = closed.post("/v1/auth/register", json=account(invitation=invite(alice)))

    seen = me(alice, response)
    assert (201, str(alice.org_id), "admin") == (response.status_code, seen["org_id"], seen["role"])
    assert (201, "member") == (also.status_code, me(alice, also)["role"])
    assert 3 == len(alice.get(f"/v1/orgs/{alice.org_id}/members").json)
    assert [] == alice.get(path(alice)).json


def test_somebody_with_an_account_logs_in_with_an_invitation(
    alice: User, register: Register, join: Join
) -> None:
    """The login is in the new org; later ones are in the first org, or in the one that is named."""
    bob = register()
    response = join(invite(alice), bob)

    assert (200, str(alice.org_id)) == (response.status_code, me(alice, response)["org_id"])
    body: dict[str, Any] = {"login": bob.login, "password": PASSWORD}
    first = bob.client.post("/v1/auth/login", json=body)
    assert str(bob.org_id) == me(bob, first)["org_id"]
    named = bob.client.post("/v1/auth/login", json={**body, "org_id": str(alice.org_id)})
    assert str(alice.org_id) == me(bob, named)["org_id"]


def test_who_has_left_all_orgs_comes_back_with_an_invitation(
    alice: User, register: Register, join: Join
) -> None:
    """The account stays when its last membership ends."""
    bob = register(org_of=alice, role="member")
    assert 204 == bob.delete(f"/v1/orgs/{alice.org_id}/members/{bob.id}").status_code

    response = join(invite(alice, "owner"), bob)

    assert (200, "owner") == (response.status_code, me(bob, response)["role"])


@pytest.mark.parametrize("new", [True, False])
def test_of_many_who_come_with_a_token_at_once_one_is_let_in(
    alice: User, register: Register, join: Join, new: bool
) -> None:
    """The others get 400, and no account is made for them."""
    token = invite(alice)
    people = [None if new else register() for _ in range(5)]

    answers = in_parallel(5, lambda number: join(token, people[number]))

    assert [201 if new else 200] + [400] * 4 == sorted(answer.status_code for answer in answers)
    assert 2 == len(alice.get(f"/v1/orgs/{alice.org_id}/members").json)


def test_a_token_that_is_not_open_lets_nobody_in(
    alice: User, register: Register, join: Join, connections: Connections
) -> None:
    """Unknown, used, revoked or expired ones get the same response."""
    used, revoked, expired = invite(alice), invite(alice), invite(alice)
    assert 201 == join(used).status_code
    expired_id, revoked_id = (one["id"] for one in alice.get(path(alice)).json)
    assert 204 == alice.delete(f"{path(alice)}/{revoked_id}").status_code
    with connections.transaction() as tx:
        is_it = invitations.c.id == expired_id
        tx.sql.execute(update(invitations).where(is_it).values(expires_at=func.now()))

    assert [] == alice.get(path(alice)).json
    bob = register()
    bodies = set()
    for token in ("ali_unknown", "x", "\ud83d\ude00", used, revoked, expired):
        for response in (join(token), join(token, bob)):
            assert (400, "invitations.invalid") == error_of(response)
            bodies.add(response.json["message"])
    assert 1 == len(bodies)
    for gone in (expired_id, revoked_id, new_id()):
        refused = alice.delete(f"{path(alice)}/{gone}")
        assert (404, "invitations.not_found") == error_of(refused)


def test_an_invitation_that_is_not_used_stays_open(
    alice: User, register: Register, join: Join, app: Flask
) -> None:
    """A member who comes with it, a taken login and a wrong password do not use it up."""
    bob, token = register(org_of=alice, role="member"), invite(alice)
    body = account(login=bob.login, invitation=token)
    wrong = {"login": register().login, "password": "wrong horse", "invitation": token}

    assert (409, "members.already_member") == error_of(join(token, bob))
    taken = app.test_client().post("/v1/auth/register", json=body)
    assert (409, "accounts.taken") == error_of(taken)
    refused = app.test_client().post("/v1/auth/login", json=wrong)
    assert (401, "auth.unauthorized") == error_of(refused)
    assert 201 == join(token).status_code


def test_nobody_gives_a_role_above_their_own(alice: User, register: Register) -> None:
    """Admins invite no owners; members and keys nobody, and see no invitations."""
    admin, member = (register(org_of=alice, role=role) for role in ("admin", "member"))
    assert 201 == admin.post(path(alice), {"name": "x", "role": "admin"}).status_code
    refused = admin.post(path(alice), {"name": "x", "role": "owner"})
    assert (403, "auth.forbidden") == error_of(refused)

    for who in (member, alice.api_key()):
        assert (403, "auth.forbidden") == error_of(who.get(path(alice)))
        refused = who.post(path(alice), {"name": "x", "role": "member"})
        assert (403, "auth.forbidden") == error_of(refused)
        refused = who.delete(f"{path(alice)}/{new_id()}")
        assert (403, "auth.forbidden") == error_of(refused)


@pytest.mark.parametrize("removed", [True, False])
def test_invitations_end_with_the_role_that_made_them(
    alice: User, register: Register, join: Join, removed: bool
) -> None:
    """A removed or demoted admin has prepared no way back."""
    admin = register(org_of=alice, role="admin")
    token = invite(admin)
    member = f"/v1/orgs/{alice.org_id}/members/{admin.id}"
    if removed:
        assert 204 == alice.delete(member).status_code
    else:
        assert 200 == alice.patch(member, {"role": "member"}).status_code

    assert (400, "invitations.invalid") == error_of(join(token))


def test_another_orgs_invitations_are_not_found(alice: User, register: Register) -> None:
    """They are treated as if they did not exist."""
    bob = register()
    invite(bob)
    theirs = bob.get(path(bob)).json[0]["id"]

    assert (404, "orgs.not_found") == error_of(alice.get(path(bob)))
    assert (404, "orgs.not_found") == error_of(alice.delete(f"{path(bob)}/{theirs}"))
    refused = alice.delete(f"{path(alice)}/{theirs}")
    assert (404, "invitations.not_found") == error_of(refused)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", ""),
        ("name", "a" * 201),
        ("role", "root"),
        ("lifetime_seconds", 59),
        ("lifetime_seconds", 30 * 86_400 + 1),
        ("lifetime_seconds", "60"),
        ("email", "a@b"),
    ],
)
def test_a_wrong_field_is_named(alice: User, field: str, value: Any) -> None:
    """422, and nothing is made."""
    body = {"name": "Bob", "role": "member", field: value}

    assert [field] == list(details_of(alice.post(path(alice), body)))


def test_an_org_cannot_be_named_beside_an_invitation(alice: User, app: Flask) -> None:
    """422: the invitation says which org it is."""
    body = {"login": alice.login, "password": PASSWORD, "invitation": "x"}
    body["org_id"] = str(alice.org_id)

    assert ["org_id"] == list(details_of(app.test_client().post("/v1/auth/login", json=body)))
