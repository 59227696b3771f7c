"""Deliveries of one org beside those of others."""

from collections.abc import Iterator
from uuid import UUID

import pytest
from sqlalchemy import text

from arkloop.shared.delivery import deliveries
from arkloop.shared.storage.connections import Connections
from tests.clients import Register
from tests.shared.delivery.test_deliveries import Org
from tests.stored_runs import StoredRuns


@pytest.fixture
def org(connections: Connections, stored: StoredRuns) -> Iterator[Org]:
    """The claims are those of everybody's deliveries."""
    yield Org(connections, stored)
    with connections.transaction() as tx:
        tx.sql.execute(text("TRUNCATE webhook_deliveries, webhook_endpoints"))


def test_an_org_with_many_deliveries_leaves_room_for_others(
    connections: Connections, org: Org, register: Register
) -> None:
    """However many endpoints it has, and however long they take, it has half of what is free."""
    quiet = Org(connections, StoredRuns.of(connections, register()))
    noisy = [org.endpoint(), org.endpoint()]
    for _ in range(6):
        org.ended()
    asked = quiet.endpoint()
    quiet.ended()

    def claimed(capacity: int, busy: dict[UUID, int]) -> tuple[int, int]:
        with connections.transaction() as tx:
            rows = deliveries.claim(tx, capacity=capacity, most_per_endpoint=8, busy=busy)
            tx.sql.rollback()
        found = [row.endpoint_id for row in rows]
        return sum(map(found.count, noisy)), found.count(asked)

    assert (4, 1) == claimed(8, {})
    assert (1, 1) == claimed(2, {})
    assert (0, 1) == claimed(1, dict.fromkeys(noisy, 2))
    assert (2, 1) == claimed(8, dict.fromkeys(noisy, 2))
