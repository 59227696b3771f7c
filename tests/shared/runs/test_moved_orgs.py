"""Orgs that leave for another cell while an operator adds to what they have here."""

from concurrent.futures import ThreadPoolExecutor
from uuid import UUID

import pytest
from sqlalchemy import select, text, update

from arkloop.shared.errors import Unavailable
from arkloop.shared.ids import new_id
from arkloop.shared.runs import moved_orgs
from arkloop.shared.runs.moved_orgs import OrgMoved
from arkloop.shared.storage import epoch
from arkloop.shared.storage.connections import Connections, Transaction
from arkloop.shared.storage.tables.accounts import orgs
from tests.clients import User
from tests.waiting import eventually

pytestmark = pytest.mark.own_database


def suspend(connections: Connections, org_id: UUID) -> None:
    with connections.transaction() as tx:
        change(tx, org_id, "suspended_at = now()")


def leave(tx: Transaction, org_id: UUID) -> None:
    """Lock and mark the org as `arkloop orgs copy` does."""
    tx.sql.execute(select(orgs.c.id).where(orgs.c.id == org_id).with_for_update())
    change(tx, org_id, f"moved_to = '{new_id()}'")


def change(tx: Transaction, org_id: UUID, values: str) -> None:
    tx.sql.execute(text(f"UPDATE orgs SET {values} WHERE id = :org"), {"org": org_id})


def test_an_org_cannot_leave_until_the_transaction_of_a_check_ends(
    connections: Connections, alice: User
) -> None:
    """Credits that are granted in this transaction are copied, too."""
    suspend(connections, alice.org_id)
    with connections.transaction() as tx:
        moved_orgs.check(tx, alice.org_id)

        with pytest.raises(Unavailable), connections.transaction() as leaving:
            leaving.sql.execute(text("SET LOCAL lock_timeout = 1000"))
            leave(leaving, alice.org_id)

    with connections.transaction() as leaving:
        leave(leaving, alice.org_id)


def test_a_check_waits_for_an_org_that_is_leaving(connections: Connections, alice: User) -> None:
    """It is refused once the org has left."""
    suspend(connections, alice.org_id)

    def check() -> None:
        with connections.transaction() as tx:
            moved_orgs.check(tx, alice.org_id)

    def waits() -> bool:
        query = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        with connections.reading() as sql:
            return bool(sql.scalar(text(f"{query} AND datname = current_database())")))

    with ThreadPoolExecutor(1) as threads:
        with connections.transaction() as leaving:
            leave(leaving, alice.org_id)
            checked = threads.submit(check)
            eventually(lambda: checked.done() or waits())
        error = checked.exception(timeout=60)

    assert isinstance(error, OrgMoved)


def test_a_copy_that_waits_to_be_resumed_may_be_changed(
    connections: Connections, alice: User
) -> None:
    """It names the cell that it is in."""
    suspend(connections, alice.org_id)
    with connections.transaction() as tx:
        tx.sql.execute(update(orgs).where(orgs.c.id == alice.org_id).values(moved_to=epoch.own()))

    with connections.transaction() as tx:
        moved_orgs.check(tx, alice.org_id)
