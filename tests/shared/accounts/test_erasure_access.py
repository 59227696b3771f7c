"""Erasures of a user who meanwhile tries to come back."""

from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import ColumnElement, delete, func, insert, select, update

from arkloop.shared.accounts import (
    accounts,
    api_keys,
    erasure,
    invitations,
    password_resets,
    sessions,
)
from arkloop.shared.accounts.erasure import RunsGoOn
from arkloop.shared.actors import PERMISSIONS_OF_ROLE, Actor
from arkloop.shared.ids import new_id
from arkloop.shared.runs.states import RunState
from arkloop.shared.storage.connections import Connections, Transaction
from arkloop.shared.storage.tables import accounts as tables
from arkloop.shared.storage.tables.accounts import (
    identities,
    identity_providers,
    memberships,
    refresh_tokens,
)
from arkloop.shared.storage.tables.threads import threads
from tests.clients import PASSWORD, Register, User
from tests.shared.accounts.test_erasure import MakeRun
from tests.shared.runs.test_queries import beside, waits_for_a_lock
from tests.waiting import eventually


@pytest.fixture(autouse=True)
def short_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits for the end of runs and of access that are over at once."""
    monkeypatch.setattr(erasure, "RUNS_END_SECONDS", 0)
    monkeypatch.setattr(erasure, "ACCESS_ENDS_SECONDS", 0)


@pytest.fixture
def bob(alice: User, register: Register) -> User:
    return register(f"bob-{new_id().hex}", org_of=alice, role="member")


def test_no_invitation_leads_back_while_runs_end(
    connections: Connections, alice: User, bob: User, make_run: MakeRun
) -> None:
    """The password is void with the first transaction, though the login is there to the last."""
    thread_id = bob.thread(is_private=True)
    make_run(bob, thread_id, RunState.QUEUED)
    path = f"/v1/orgs/{alice.org_id}/invitations"
    made = alice.post(path, {"name": "a friend", "role": "member"})
    assert made.json is not None, made.text
    with pytest.raises(RunsGoOn):
        erasure.erase_user(connections, bob.id)

    login = {"login": bob.login, "password": PASSWORD, "invitation": made.json["token"]}
    came = bob.client.post("/v1/auth/login", json=login)

    assert 401 == came.status_code
    assert [False] * 3 == access_of(connections, bob.id)


def come_back(tx: Transaction, alice: User, bob: User) -> None:
    """Log in by a provider that had identified the person before the erasure forgot who they are
    there.
    """
    of_bob = {"user_id": bob.id, "org_id": alice.org_id}
    tx.sql.execute(insert(memberships).values(**of_bob, role="admin"))
    provider_id, identity_id = new_id(), new_id()
    provider: dict[str, Any] = {"issuer": "https://idp.example", "client_id": "c"}
    provider |= {"email_domains": [], "signing_algorithm": "RS256", "session_hours": 1}
    provider |= {"joining_role": "admin", "assumes_verified_email": False}
    of_org = {"id": provider_id, "org_id": alice.org_id}
    tx.sql.execute(insert(identity_providers).values(**of_org, **provider))
    identity = {"id": identity_id, "provider_id": provider_id, "subject": "bob"}
    tx.sql.execute(insert(identities).values(**identity, user_id=bob.id))
    sessions.begin(tx, **of_bob, by=(identity_id, timedelta(hours=1)))


def lock(tx: Transaction, thread_id: str) -> None:
    locked = select(threads.c.id).where(threads.c.id == UUID(thread_id))
    tx.sql.execute(locked.with_for_update())


def test_a_login_that_comes_during_an_erasure_ends_with_the_name(
    connections: Connections, alice: User, bob: User
) -> None:
    """Everything that the person has made by it ends, too."""
    thread_id = bob.thread(is_private=True)
    of_bob = {"org_id": alice.org_id, "created_by_user_id": bob.id}
    with connections.transaction() as tx:
        lock(tx, thread_id)
        # All access has ended, and the threads are deleted next.
        join = beside(connections, lambda: erasure.erase_user(connections, bob.id))
        with connections.transaction() as other:
            come_back(other, alice, bob)
            may = PERMISSIONS_OF_ROLE["admin"]
            actor = Actor(org_id=alice.org_id, user_id=bob.id, role="admin", permissions=may)
            week = timedelta(days=7)
            invitations.create(other, actor, name="Bob again", role="admin", lifetime=week)
            password_resets.create(other, alice.id, by_user_id=bob.id)
            password_resets.create(other, bob.id)
            api_keys.create(other, actor, name="Bob's")
            diary = {"id": new_id(), "title": "Bob's diary", "is_private": True}
            other.sql.execute(insert(threads).values(**diary, **of_bob))
    join()

    assert [False] * 3 == access_of(connections, bob.id)
    with connections.reading() as sql:
        for table in (tables.invitations, tables.password_resets, threads):
            assert (
                [] == sql.execute(select(table).where(table.c.created_by_user_id == bob.id)).all()
            )
        of_him = select(tables.password_resets).where(tables.password_resets.c.user_id == bob.id)
        assert [] == sql.execute(of_him).all()
        assert all(sql.scalars(select(tables.api_keys.c.revoked_at).where(is_of(bob))))
        login = sql.scalar(select(tables.users.c.login).where(tables.users.c.id == bob.id))
    assert f"@erased-{bob.id}" == login


def test_a_password_reset_in_use_is_waited_for(
    connections: Connections, alice: User, bob: User
) -> None:
    """Neither ends the other: the new password is void next."""
    resets = tables.password_resets
    with connections.transaction() as tx:
        password_resets.create(tx, bob.id)
    with connections.transaction() as tx:
        tx.sql.execute(delete(resets).where(resets.c.user_id == bob.id))
        join = beside(connections, lambda: erasure.erase_user(connections, bob.id))
        accounts.change_password(tx, user_id=bob.id, password_hash="new")
    join()

    with connections.reading() as sql:
        hashed = select(tables.users.c.password_hash).where(tables.users.c.id == bob.id)
        assert "erased" == sql.scalar(hashed)


def test_a_login_that_is_refreshed_is_waited_for(
    connections: Connections, alice: User, bob: User
) -> None:
    """What it makes ends, too."""
    thread_id = bob.thread(is_private=True)
    with connections.transaction() as refreshing:
        with connections.transaction() as tx:
            lock(tx, thread_id)
            join = beside(connections, lambda: erasure.erase_user(connections, bob.id))
            with connections.transaction() as other:
                come_back(other, alice, bob)
            mine = update(refresh_tokens).where(refresh_tokens.c.user_id == bob.id)
            refreshing.sql.execute(mine.values(rotated_at=func.now()))
        eventually(lambda: waits_for_a_lock(connections))
        sessions.begin(refreshing, user_id=bob.id, org_id=alice.org_id)
    join()

    assert [False] * 3 == access_of(connections, bob.id)


def is_of(user: User) -> ColumnElement[bool]:
    return tables.api_keys.c.user_id == user.id


def access_of(connections: Connections, user_id: UUID) -> list[bool]:
    """Return whether the user has memberships, identities and logins."""
    with connections.reading() as sql:
        return [
            bool(sql.scalar(select(func.count()).where(table.c.user_id == user_id)))
            for table in (memberships, identities, refresh_tokens)
        ]
