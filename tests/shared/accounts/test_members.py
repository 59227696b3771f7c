"""Members who leave an org, and what is left of them that only they could see."""

from collections.abc import Iterator
from dataclasses import replace
from uuid import UUID

import pytest
from sqlalchemy import Connection, func, text

from arkloop.shared.accounts import members
from arkloop.shared.actors import Actor
from arkloop.shared.catalog import mcp_access, mcp_configs
from arkloop.shared.config import Settings
from arkloop.shared.ids import new_id
from arkloop.shared.runs import revocations, sweep
from arkloop.shared.runs.states import RunState
from arkloop.shared.storage.connections import Connections
from arkloop.shared.threads import threads
from tests.clients import PASSWORD, Register, User
from tests.query_plans import Plans, noted
from tests.shared.runs.busy_thread import LATER, BusyThread
from tests.stored_runs import StoredRuns


@pytest.fixture(scope="module")
def settings(settings: Settings) -> Settings:
    return replace(settings, public_url="https://runs.example.com")


@pytest.fixture(autouse=True)
def nothing_left_over(connections: Connections) -> Iterator[None]:
    """The sweep looks at everybody's runs: no active run of another test is left."""
    yield
    with connections.transaction() as tx:
        tx.sql.execute(text("UPDATE runs SET state = 'cancelled', ended_at = now()"))


@pytest.fixture
def member(register: Register, alice: User) -> User:
    return register(org_of=alice, role="member")


@pytest.fixture
def owner(connections: Connections, stored: StoredRuns, alice: User) -> Actor:
    """Alice, by an access token."""
    found = alice.client.post("/v1/auth/login", json={"login": alice.login, "password": PASSWORD})
    assert 200 == found.status_code
    with connections.reading() as sql:
        family = text("SELECT family_id FROM refresh_tokens WHERE user_id = :id LIMIT 1")
        return replace(stored.actor, session_id=sql.scalar(family, {"id": alice.id}))


def thread_of(connections: Connections, user: User, *, is_private: bool) -> BusyThread:
    """Return a new thread of the user's."""
    thread = BusyThread(StoredRuns.of(connections, user))
    if is_private:
        with connections.transaction() as tx:
            threads.change(tx, thread.stored.actor, thread.id, is_private=True)
    return thread


def remove(connections: Connections, owner: Actor, user: User) -> None:
    with connections.transaction() as tx:
        members.remove(tx, owner, user.id)


def due(stored: StoredRuns, *run_ids: UUID) -> None:
    """Let the time of scheduled runs come."""
    for run_id in run_ids:
        stored.set(run_id, not_before=func.now())
    sweep.sweep(stored.connections)


def test_runs_in_private_threads_of_a_former_member_end(
    connections: Connections, owner: Actor, member: User
) -> None:
    """Nobody else could see or cancel them: executing and waiting ones, and scheduled ones."""
    busy, planned, asking = (thread_of(connections, member, is_private=True) for _ in range(3))
    executing = busy.claim(busy.say("a").run_id)
    pending, scheduled = busy.say("b").run_id, planned.say("c", not_before=LATER).run_id
    waiting = asking.claim(asking.say("d").run_id)
    assert asking.stored.park(waiting, waiting.run_id)

    remove(connections, owner, member)
    sweep.sweep(connections)

    states = [busy.stored.state(id_) for id_ in (pending, scheduled, waiting.run_id)]
    assert ["cancelled"] * 3 == states
    row = busy.stored.row(executing.run_id)
    assert owner.user_id == row["cancel_requested_by"]
    assert connections.redis.get(connections.keys.cancel(executing.run_id)) is not None


def test_runs_that_others_see_go_on(
    connections: Connections, owner: Actor, member: User, alice: User
) -> None:
    """Runs that the member has started or scheduled in shared threads stay, as do all others."""
    shared = thread_of(connections, member, is_private=False)
    private = thread_of(connections, alice, is_private=True)
    scheduled = [one.say("a", not_before=LATER).run_id for one in (shared, private)]
    executing = [one.claim(one.say("b").run_id) for one in (shared, private)]

    remove(connections, owner, member)
    due(shared.stored, *scheduled)

    assert ["pending", "pending"] == [shared.stored.state(run_id) for run_id in scheduled]
    requested = [shared.stored.row(one.run_id)["cancel_requested_at"] for one in executing]
    assert [None, None] == requested


def test_runs_beyond_a_batch_neither_start_nor_go_on(
    connections: Connections, owner: Actor, member: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same holds for runs of a member whom an earlier release has removed, and for those that
    an access token creates in the seconds after.
    """
    monkeypatch.setattr(revocations, "BATCH", 0)
    busy, planned = (thread_of(connections, member, is_private=True) for _ in range(2))
    executing, pending = busy.claim(busy.say("a").run_id), busy.say("b").run_id
    scheduled = planned.say("c", not_before=LATER).run_id

    remove(connections, owner, member)
    due(busy.stored, scheduled)

    assert "cancelled" == busy.stored.state(scheduled)
    assert busy.stored.row(executing.run_id)["cancel_requested_at"] is not None
    busy.stored.finish(executing, with_followers=True, state=RunState.CANCELLED)
    assert "cancelled" == busy.stored.state(pending)


def test_access_that_a_former_member_has_granted_ends(
    connections: Connections, owner: Actor, member: User, alice: User, register: Register
) -> None:
    """Their scheduled runs in shared threads have none; grants of others, and elsewhere, stay."""
    other = register()
    of_members = [(alice, member), (alice, alice), (other, member)]
    for org, user in of_members:
        _grant(connections, org, user)

    remove(connections, owner, member)

    assert [False, True, True] == [_has_grant(connections, *one) for one in of_members]


def test_the_sweep_reads_the_few_runs_that_are_executed(connections: Connections) -> None:
    """It looks for those of former members among them alone, and the removal reads an index."""
    with noted(connections) as statements:
        with connections.transaction() as tx:
            ids = {name: new_id() for name in ("org_id", "user_id", "by_user_id")}
            revocations.cancel_private_runs(tx, **ids)
            revocations.cancel_runs_of_former_members(tx)

    of_member, of_sweep = (Plans(connections, statement) for statement in statements)
    assert of_member.indexes() <= {
        "ix_runs_unended_org_id_state",
        "ix_runs_visible_to_state_created_at_id",
        "pk_runs",
    }
    assert {"ix_runs_owner", "pk_runs", "pk_threads", "pk_memberships"} == of_sweep.indexes()


def _grant(connections: Connections, org: User, user: User) -> None:
    """Let a user grant the server of an org access, which is made with the first grant."""
    with connections.transaction() as tx:
        config_id = (
            _config_id(tx.sql, org)
            or mcp_configs.create(
                *(tx, org.org_id),
                name="v",
                transport="streamable_http",
                url="https://a.b/",
                oauth={},
            ).id
        )
        of = (tx, org.org_id, config_id, mcp_access.owner_of(None, user.id))
        mcp_access.expect_grant(*of)
        mcp_access.store_grant(*of, {"id": "1", "obtained_at": 1_000_000.0, "client": None})


def _has_grant(connections: Connections, org: User, user: User) -> bool:
    with connections.reading() as sql:
        of = (org.org_id, _config_id(sql, org), mcp_access.owner_of(None, user.id))
        return mcp_access.grant_of(sql, connections.settings, *of) is not None


def _config_id(sql: Connection, org: User) -> UUID | None:
    of_org = text("SELECT id FROM mcp_configs WHERE org_id = :org_id")
    return sql.scalar(of_org, {"org_id": org.org_id})
