"""Resets of passwords, from the token to the next login."""

from collections.abc import Callable
from contextlib import suppress

import pytest
from flask import Flask
from sqlalchemy import func, insert, update
from werkzeug.test import TestResponse

from arkloop.shared.accounts import accounts, erasure, invitations, password_resets
from arkloop.shared.actors import PERMISSIONS_OF_ROLE, Actor
from arkloop.shared.errors import Forbidden
from arkloop.shared.ids import new_id
from arkloop.shared.storage.connections import Connections
from arkloop.shared.storage.tables.accounts import memberships
from arkloop.shared.storage.tables.accounts import password_resets as table
from tests.clients import PASSWORD, Register, User, details_of, error_of
from tests.waiting import in_parallel

NEW = "a quite new password"


@pytest.fixture
def member(register: Register, alice: User) -> User:
    return register(org_of=alice, role="member")


def reset_of(admin: User, member: User) -> TestResponse:
    """Ask for the reset of a member of the admin's org."""
    return admin.post(f"/v1/orgs/{admin.org_id}/members/{member.id}/password-reset")


def token_of(response: TestResponse) -> str:
    assert 201 == response.status_code, response.text
    return str(response.json["token"])


@pytest.fixture
def use(app: Flask) -> Callable[..., TestResponse]:
    """Call it to set a password by a token."""

    def new(token: str, password: str = NEW) -> TestResponse:
        body = {"token": token, "password": password}
        return app.test_client().post("/v1/auth/password-reset", json=body)

    return new


#: `use(token, password=NEW)`
Use = Callable[..., TestResponse]


def log_in(user: User, password: str) -> int:
    body = {"login": user.login, "password": password}
    return user.client.application.test_client().post("/v1/auth/login", json=body).status_code


def test_a_reset_sets_a_password_and_ends_all_logins(alice: User, member: User, use: Use) -> None:
    """The old password, tokens and cookies are worth nothing; keys go on."""
    key = member.api_key()
    token = token_of(reset_of(alice, member))
    assert token.startswith("alr_") and len(token) == 47

    assert {"ok": True} == use(token).json

    assert [401, 200] == [log_in(member, password) for password in (PASSWORD, NEW)]
    assert 401 == member.get("/v1/me").status_code
    assert 401 == member.client.post("/v1/auth/refresh").status_code
    assert [200, 200] == [who.get("/v1/me").status_code for who in (alice, key)]


def test_after_a_reset_earlier_attempts_do_not_count(alice: User, member: User, use: Use) -> None:
    """Somebody who has tried too often may log in at once."""
    token = token_of(reset_of(alice, member))
    assert [401] * 10 + [429] == [log_in(member, "wrong horse") for _ in range(11)]

    use(token)

    assert 200 == log_in(member, NEW)


def test_of_many_who_use_a_token_at_once_one_succeeds(alice: User, member: User, use: Use) -> None:
    """The others get 400."""
    token = token_of(reset_of(alice, member))

    statuses = in_parallel(5, lambda number: use(token, f"password {number}").status_code)

    assert [200] + [400] * 4 == sorted(statuses)
    assert [200] == [status for n in range(5) if (status := log_in(member, f"password {n}")) == 200]


def test_a_token_that_is_not_open_sets_nothing(
    alice: User, member: User, use: Use, connections: Connections
) -> None:
    """Unknown, replaced, used or expired ones get the same response."""
    replaced = token_of(reset_of(alice, member))
    used = token_of(reset_of(alice, member))
    refused = [use(replaced), use("alr_x"), use("\ud83d\ude00")]
    assert 200 == use(used).status_code
    expired = token_of(reset_of(alice, member))
    with connections.transaction() as tx:
        tx.sql.execute(
            update(table).where(table.c.user_id == member.id).values(expires_at=func.now())
        )
    refused += [use(used), use(expired)]

    assert {(400, "password_resets.invalid")} == {error_of(response) for response in refused}
    assert 1 == len({response.json["message"] for response in refused})
    assert 200 == log_in(member, NEW)


def test_a_bad_password_does_not_use_up_a_token(alice: User, member: User, use: Use) -> None:
    """422 names the field."""
    token = token_of(reset_of(alice, member))

    assert ["password"] == list(details_of(use(token, "short")))
    assert 200 == use(token).status_code


def test_a_new_password_ends_a_reset(alice: User, member: User, use: Use) -> None:
    """A way in that is not needed any more is closed."""
    token = token_of(reset_of(alice, member))
    body = {"current": PASSWORD, "new": NEW}
    assert 200 == member.post("/v1/auth/password", body).status_code

    assert (400, "password_resets.invalid") == error_of(use(token))


def test_each_role_resets_whom_it_may(alice: User, member: User, register: Register) -> None:
    """Owners may reset all but themselves, admins no owners, members and API keys nobody."""
    owner, admin = (register(org_of=alice, role=role) for role in ("owner", "admin"))

    allowed = [reset_of(alice, owner), reset_of(alice, admin), reset_of(admin, member)]
    refused = [reset_of(admin, owner), reset_of(member, admin), reset_of(alice, alice)]
    refused.append(reset_of(alice.api_key(), member))

    assert [201] * 3 == [response.status_code for response in allowed]
    assert [(403, "auth.forbidden")] * 4 == [error_of(response) for response in refused]


def test_users_of_other_orgs_are_not_found(alice: User, register: Register) -> None:
    """They are treated as if they did not exist."""
    bob = register()
    theirs = f"/v1/orgs/{bob.org_id}/members/{bob.id}/password-reset"

    assert (404, "members.not_found") == error_of(reset_of(alice, bob))
    assert (404, "orgs.not_found") == error_of(alice.post(theirs))


def test_an_admin_resets_nobody_who_is_in_another_org_too(
    alice: User, member: User, register: Register, connections: Connections
) -> None:
    """The token would open the other org to them."""
    values = {"user_id": member.id, "org_id": register().org_id, "role": "member"}
    with connections.transaction() as tx:
        tx.sql.execute(insert(memberships).values(**values))

    assert (403, "auth.forbidden") == error_of(reset_of(alice, member))


@pytest.mark.parametrize("joins", [True, False])
def test_a_reset_ends_when_the_user_joins_or_leaves_an_org(
    alice: User, member: User, register: Register, use: Use, app: Flask, joins: bool
) -> None:
    """An admin who has kept the token does not follow them there."""
    token, bob = token_of(reset_of(alice, member)), register()
    if joins:
        invited = bob.post(f"/v1/orgs/{bob.org_id}/invitations", {"name": "x", "role": "member"})
        body = {"login": member.login, "password": PASSWORD, "invitation": token_of(invited)}
        assert 200 == app.test_client().post("/v1/auth/login", json=body).status_code
    else:
        assert 204 == member.delete(f"/v1/orgs/{alice.org_id}/members/{member.id}").status_code

    assert (400, "password_resets.invalid") == error_of(use(token))


def test_a_reset_ends_with_the_role_that_the_user_had(
    alice: User, member: User, register: Register, use: Use
) -> None:
    """An admin who has kept the token does not become an owner by it."""
    token = token_of(reset_of(register(org_of=alice, role="admin"), member))
    path = f"/v1/orgs/{alice.org_id}/members/{member.id}"
    assert 200 == alice.patch(path, {"role": "owner"}).status_code

    assert (400, "password_resets.invalid") == error_of(use(token))


@pytest.mark.parametrize("end", ["removed", "demoted", "erased"])
def test_a_reset_ends_with_the_role_of_the_admin_who_made_it(
    alice: User,
    member: User,
    register: Register,
    use: Use,
    connections: Connections,
    monkeypatch: pytest.MonkeyPatch,
    end: str,
) -> None:
    """The resets that other admins have made stay open."""
    admin, other = (register(org_of=alice, role="admin") for _ in range(2))
    token, kept = token_of(reset_of(admin, member)), token_of(reset_of(alice, other))
    path = f"/v1/orgs/{alice.org_id}/members/{admin.id}"
    if end == "removed":
        assert 204 == alice.delete(path).status_code
    elif end == "demoted":
        assert 200 == alice.patch(path, {"role": "member"}).status_code
    else:
        monkeypatch.setattr(erasure, "ACCESS_ENDS_SECONDS", 0)
        erasure.erase_user(connections, admin.id)

    assert (400, "password_resets.invalid") == error_of(use(token))
    assert 200 == log_in(member, PASSWORD)
    assert 200 == use(kept).status_code


def test_a_reset_that_replaces_another_has_its_own_maker(
    alice: User, member: User, register: Register, use: Use, connections: Connections
) -> None:
    """The operator's token is not that of the admin before."""
    admin = register(org_of=alice, role="admin")
    reset_of(admin, member)
    with connections.transaction() as tx:
        token, _ = password_resets.create(tx, member.id)

    assert 204 == alice.delete(f"/v1/orgs/{alice.org_id}/members/{admin.id}").status_code

    assert 200 == use(token).status_code


def test_nobody_joins_an_org_with_a_reset_that_was_made_at_the_same_moment(
    connections: Connections, register: Register, alice: User
) -> None:
    """Either the reset sees the other org, or the end of resets sees the reset."""
    bob = register()
    actor = Actor(
        org_id=alice.org_id,
        user_id=alice.id,
        role="owner",
        permissions=PERMISSIONS_OF_ROLE["owner"],
    )
    for _ in range(5):
        member = register(org_of=alice, role="member")
        invited = bob.post(f"/v1/orgs/{bob.org_id}/invitations", {"name": "x", "role": "member"})
        invitation = token_of(invited)

        def act(number: int, member: User = member, invitation: str = invitation) -> None:
            with suppress(Forbidden), connections.transaction() as tx:
                if number:
                    invitations.accept(tx, invitation, member.id)
                else:
                    password_resets.create_for_member(tx, actor, member.id)

        in_parallel(2, act)

        with connections.reading() as sql:
            assert 2 == len(accounts.orgs_of(sql, member.id))
            is_open = sql.scalar(table.select().where(table.c.user_id == member.id))
        assert is_open is None


def test_a_repeated_request_gets_a_new_token(alice: User, member: User) -> None:
    """A secret is not stored, not even for a repeated request."""
    key = {"Idempotency-Key": str(new_id())}
    path = f"/v1/orgs/{alice.org_id}/members/{member.id}/password-reset"

    assert 2 == len({token_of(alice.post(path, headers=key)) for _ in range(2)})
