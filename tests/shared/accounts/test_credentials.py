"""Credentials, invitations and roles made with a key or login that has ended in another process."""

import threading
from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text

from arkloop.api.auth import bearer
from arkloop.shared.accounts import api_keys, credentials, sessions
from arkloop.shared.actors import Actor
from arkloop.shared.errors import Unauthorized
from arkloop.shared.storage.connections import Connections
from tests.clients import Register, User

#: As another process does it.
ENDS = {
    "the key is revoked": "UPDATE api_keys SET revoked_at = now() WHERE user_id = :user_id",
    "the login ends": "UPDATE refresh_tokens SET revoked_at = now() WHERE user_id = :user_id",
    "the role is taken away": "UPDATE memberships SET role = 'member' WHERE user_id = :user_id",
    "the org is suspended": "UPDATE orgs SET suspended_at = now(), suspension_reason = 'a'"
    " WHERE id = (SELECT org_id FROM memberships WHERE user_id = :user_id)",
}
KEY: dict[str, Any] = {"name": "another", "scopes": ["admin"]}
INVITATION: dict[str, Any] = {"name": "a friend", "role": "owner"}


@pytest.fixture(autouse=True, scope="module")
def lasting_beliefs() -> Iterator[None]:
    """An app that does not ask again after the two seconds that a test may take."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bearer, "CACHE_SECONDS", 600)
        yield


@pytest.fixture
def bob(register: Register, alice: User) -> User:
    """An owner beside alice, whom the process has seen."""
    user = register(org_of=alice, role="owner")
    assert 200 == user.get("/v1/me").status_code
    return user


@pytest.fixture
def end(connections: Connections) -> Callable[[str, UUID], None]:
    """Call it for what happens to a user elsewhere."""

    def happen(how: str, user_id: UUID) -> None:
        with connections.transaction() as tx:
            tx.sql.execute(text(ENDS[how]), {"user_id": user_id})

    return happen


@pytest.mark.parametrize("by", ["key", "login"])
def test_a_revocation_waits_for_what_is_being_made(
    bob: User, connections: Connections, by: str
) -> None:
    """A revocation that committed first would leave the key that the transaction makes."""
    actor = _actor(bob, connections, by)
    revoked = threading.Event()

    def revoke() -> None:
        with connections.transaction() as tx:
            if actor.api_key_id is not None:
                api_keys.revoke(tx, actor, actor.api_key_id)
            elif actor.session_id is not None:
                sessions.end(tx, user_id=bob.id, session_id=actor.session_id)
        revoked.set()

    revoking = threading.Thread(target=revoke)
    with connections.transaction() as tx:
        assert "admin" in credentials.permissions_now(tx.sql, actor)
        revoking.start()
        assert not revoked.wait(0.3)
    revoking.join(60)
    assert revoked.is_set()
    with connections.transaction() as tx, pytest.raises(Unauthorized):
        credentials.permissions_now(tx.sql, actor)


def _actor(user: User, connections: Connections, by: str) -> Actor:
    """Return who the user is by a new key, or by their login."""
    if by == "key":
        user.api_key("admin")
    names = {"key": "id FROM api_keys", "login": "family_id FROM refresh_tokens"}
    with connections.reading() as sql:
        found = sql.scalar(text(f"SELECT {names[by]} WHERE user_id = :id"), {"id": user.id})
    made = {"api_key_id": found} if by == "key" else {"session_id": found}
    admin = frozenset({"admin"})
    return Actor(org_id=user.org_id, user_id=user.id, role="owner", permissions=admin, **made)


@pytest.mark.parametrize("how", ENDS)
def test_no_key_is_made_with_what_has_ended(
    bob: User, end: Callable[[str, UUID], None], how: str
) -> None:
    """The process still believes the key or login, as a read shows."""
    caller = bob.api_key("admin") if how == "the key is revoked" else bob
    assert 200 == caller.get("/v1/api-keys").status_code
    end(how, bob.id)

    assert 200 == caller.get("/v1/api-keys").status_code
    status = caller.post("/v1/api-keys", KEY).status_code
    assert (403 if how == "the role is taken away" else 401) == status


@pytest.mark.parametrize("how", [how for how in ENDS if "key" not in how])
def test_nobody_is_let_in_or_raised_with_what_has_ended(
    bob: User, alice: User, end: Callable[[str, UUID], None], how: str
) -> None:
    """Invitations, roles and resets are refused, for oneself and for others."""
    members = f"/v1/orgs/{bob.org_id}/members"
    end(how, bob.id)
    refused = 403 if how == "the role is taken away" else 401

    assert refused == bob.post(f"/v1/orgs/{bob.org_id}/invitations", INVITATION).status_code
    for user in (alice, bob):
        changed = bob.patch(f"{members}/{user.id}", {"role": "owner"})
        assert refused == changed.status_code, changed.text
    assert refused == bob.post(f"{members}/{alice.id}/password-reset").status_code
