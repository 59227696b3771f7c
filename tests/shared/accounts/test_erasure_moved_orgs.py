"""Erasures in a cell that an org has left: nothing ends the runs that it has left behind."""

from decimal import Decimal
from uuid import uuid4

import pytest
from sqlalchemy import func, insert, select, update

from arkloop.shared.accounts import erasure
from arkloop.shared.billing import budget_limits, budgets, credits, spending
from arkloop.shared.billing.spending import ORG
from arkloop.shared.claim import Claim
from arkloop.shared.errors import LastOwner
from arkloop.shared.ids import new_id
from arkloop.shared.runs import sweep
from arkloop.shared.storage import epoch
from arkloop.shared.storage.tables.accounts import memberships, orgs, users
from arkloop.shared.storage.tables.billing import ledger_entries, reservations
from arkloop.shared.storage.tables.runs import runs
from arkloop.shared.storage.tables.threads import threads
from tests.clients import Register, User
from tests.end_users import ANN
from tests.stored_runs import StoredRuns, ago


@pytest.fixture(autouse=True)
def short_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits for processes that are over at once."""
    monkeypatch.setattr(erasure, "ACCESS_ENDS_SECONDS", 0)
    monkeypatch.setattr(erasure, "ALONE_AFTER_SECONDS", 0)
    monkeypatch.setattr(erasure, "_POLL_ALONE_SECONDS", 0.1)
    monkeypatch.setattr(erasure, "RUNS_END_SECONDS", 1)


def waiting(stored: StoredRuns) -> Claim:
    """Let a run wait for a person."""
    claim = stored.claimed()
    stored.park(claim, new_id())
    return claim


def leave(stored: StoredRuns, to: object, **columns: object) -> None:
    left = update(orgs).where(orgs.c.id == stored.actor.org_id)
    with stored.connections.transaction() as tx:
        tx.sql.execute(left.values(suspended_at=ago(days=3), moved_to=to, **columns))


def set_threads(stored: StoredRuns, **columns: object) -> None:
    of_org = update(threads).where(threads.c.org_id == stored.actor.org_id)
    with stored.connections.transaction() as tx:
        tx.sql.execute(of_org.values(**columns))


def count_runs(stored: StoredRuns) -> int:
    with stored.connections.reading() as sql:
        of_org = select(func.count()).where(runs.c.org_id == stored.actor.org_id)
        return sql.scalar(of_org) or 0


def test_a_user_is_erased_in_all_orgs(stored: StoredRuns, register: Register) -> None:
    """Private threads of the org that has left go, and those of one that is here."""
    other, user_id = register(), stored.actor.user_id
    waiting(stored)
    set_threads(stored, is_private=True)
    with stored.connections.transaction() as tx:
        here = {"org_id": other.org_id, "created_by_user_id": user_id, "is_private": True}
        tx.sql.execute(insert(threads).values(id=new_id(), title="diary", **here))
        member = {"user_id": user_id, "org_id": other.org_id, "role": "member"}
        tx.sql.execute(insert(memberships).values(**member))
    leave(stored, uuid4())

    record = erasure.erase_user(stored.connections, user_id)

    assert [2, 1] == [record["threads"], record["runs"]]
    with stored.connections.reading() as sql:
        login = sql.scalar(select(users.c.login).where(users.c.id == user_id))
    assert f"@erased-{user_id}" == login


def test_the_only_owner_of_an_org_that_has_left_is_erased(
    stored: StoredRuns, alice: User, register: Register
) -> None:
    """No member becomes an owner here; while the copy is not complete, the org is still here."""
    register(org_of=alice, role="member")
    leave(stored, uuid4(), copy_began_at=func.now())
    with pytest.raises(LastOwner):
        erasure.erase_user(stored.connections, alice.id)
    leave(stored, uuid4(), copy_began_at=None)

    erasure.erase_user(stored.connections, alice.id)

    with stored.connections.reading() as sql:
        left = select(memberships.c.role).where(memberships.c.org_id == alice.org_id)
        assert ["member"] == sql.scalars(left).all()


@pytest.mark.parametrize("in_own_thread", [True, False], ids=["own thread", "another's thread"])
def test_an_end_user_is_erased(stored: StoredRuns, in_own_thread: bool) -> None:
    """With runs in threads of others, too; a run of somebody else is left as it is."""
    claim, other = waiting(stored), waiting(stored)
    stored.set(claim.run_id, end_user_id=ANN)
    if in_own_thread:
        with stored.connections.transaction() as tx:
            own = update(threads).where(threads.c.id == claim.thread_id)
            tx.sql.execute(own.values(end_user_id=ANN))
    leave(stored, uuid4())

    record = erasure.erase_end_user(stored.connections, stored.actor.org_id, ANN)

    assert 1 == record["runs"]
    assert 1 == count_runs(stored)
    assert stored.row(other.run_id)["cancel_requested_at"] is None


def test_runs_that_were_left_behind_are_not_charged(stored: StoredRuns) -> None:
    """The cell that has the org charges them; here what they have reserved is free again."""
    org_id = stored.actor.org_id
    with stored.connections.transaction() as tx:
        credits.grant(tx, org_id, 1_000_000)
        budget_limits.set_(tx, org_id, ORG, max_cost_usd=None, max_cost_usd_per_month=Decimal(9))
    claim = stored.claimed()
    persona = stored.catalog().persona(org_id, None)
    with stored.connections.transaction() as tx:
        found = budgets.limits(tx.sql, claim, persona)
        budgets.reserve(tx, claim, found, Decimal("0.25"), Decimal("0.5"))
    stored.park(claim, new_id())
    set_threads(stored, end_user_id=ANN)
    leave(stored, uuid4())

    erasure.erase_end_user(stored.connections, org_id, ANN)
    sweep.sweep(stored.connections)

    with stored.connections.reading() as sql:
        assert sql.scalar(select(reservations.c.run_id)) is None
        [row] = spending.now(sql, org_id, [ORG])
        assert (0, 0) == (row.spent_usd, row.held_usd)
        has = credits.balance(sql, org_id)
        assert (1_000_000, 0) == (has.balance, has.held)
        charged = select(ledger_entries.c.id).where(ledger_entries.c.run_id == claim.run_id)
        assert sql.scalar(charged) is None


def test_runs_of_a_copy_that_waits_to_be_resumed_end(stored: StoredRuns) -> None:
    """It is in this cell: here, and nowhere else, its runs are charged."""
    claim = waiting(stored)
    set_threads(stored, end_user_id=ANN)
    with stored.connections.reading() as sql:
        own = sql.scalar(select(epoch.own()))
    leave(stored, own)

    record = erasure.erase_end_user(stored.connections, stored.actor.org_id, ANN)

    assert 1 == record["runs"]
    types = [event.type for event in stored.published(claim.run_id)]
    assert "run.cancelled" in types
