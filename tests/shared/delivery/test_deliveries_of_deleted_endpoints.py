"""Deliveries that are left behind when their endpoint is deleted."""

from uuid import UUID

import pytest
from sqlalchemy import select

from arkloop.shared.delivery import deliveries, endpoints
from arkloop.shared.ids import new_id
from arkloop.shared.runs import retention
from arkloop.shared.storage.tables.delivery import webhook_deliveries
from tests import stored_deliveries
from tests.shared.delivery.delivering_org import OK, Org
from tests.stored_runs import ago


def delete(org: Org, endpoint_id: UUID) -> None:
    with org.connections.transaction() as tx:
        endpoints.remove(tx, org.id, endpoint_id)


def left(org: Org) -> list[tuple[UUID, str]]:
    """List endpoint and state of all deliveries there are."""
    columns = webhook_deliveries.c
    with org.connections.reading() as sql:
        found = sql.execute(select(columns.endpoint_id, columns.state))
        return sorted((row.endpoint_id, row.state) for row in found)


def test_what_waits_for_a_deleted_endpoint_is_deleted(org: Org) -> None:
    """Each claim would look for its endpoint, for as long as deliveries are kept. Those that are
    over cost no claim anything, and an endpoint that is disabled may be enabled again.
    """
    deleted, disabled, enabled = (org.endpoint() for _ in range(3))
    org.ended()
    [done] = [row for row in org.claim() if row.endpoint_id == deleted]
    org.tried(done, **OK)
    org.ended()
    [in_progress] = [row for row in org.claim() if row.endpoint_id == deleted]
    org.ended()
    with org.connections.transaction() as tx:
        endpoints.change(tx, org.id, disabled, {"enabled": False})
    delete(org, deleted)

    assert not retention.forget(org.connections)

    kept = [(deleted, "delivered"), *[(disabled, "pending"), (enabled, "pending")] * 3]
    assert sorted(kept) == left(org)
    org.tried(in_progress, **OK)
    assert sorted(kept) == left(org)


def test_very_many_are_deleted_bit_by_bit(org: Org, monkeypatch: pytest.MonkeyPatch) -> None:
    """A transaction has a limit, whether one endpoint has all of them or each has one."""
    monkeypatch.setattr(deliveries, "FORGOTTEN_AT_ONCE", 4)
    monkeypatch.setattr(retention, "BITS_OF_A_PASS", 2)
    with org.connections.transaction() as tx:
        for endpoint_id in [new_id()] * 6 + [new_id() for _ in range(6)]:
            stored_deliveries.deliveries(tx, org.id, endpoint_id, ago(seconds=1))

    assert retention.forget(org.connections)
    assert 4 == len(left(org))
    assert not retention.forget(org.connections)
    assert [] == left(org)
