"""Deliveries to an endpoint that responds again after it has failed for a while."""

from collections.abc import Iterator

import pytest
from sqlalchemy import text

from arkloop.shared.storage.connections import Connections
from tests import stored_deliveries
from tests.shared.delivery.test_deliveries import BROKEN, OK, Org
from tests.stored_runs import StoredRuns, ago


@pytest.fixture
def org(connections: Connections, stored: StoredRuns) -> Iterator[Org]:
    """The claims are those of everybody's deliveries."""
    yield Org(connections, stored)
    stored_deliveries.delete_all(connections)


@pytest.mark.parametrize(("began", "is_due"), [(600, False), (80, True), (30, True)])
def test_a_message_that_was_refused_before_an_outage_keeps_its_pause(
    org: Org, began: float, is_due: bool
) -> None:
    """What was attempted for the first time in the outage, or just before it was noticed, is due
    when the endpoint responds again.
    """
    endpoint = org.endpoint()
    org.ended()
    [failed] = org.claim()
    org.tried(failed, **BROKEN)
    org.set(failed.id, tried_since=ago(seconds=began))
    with org.connections.transaction() as tx:
        failing = "UPDATE webhook_endpoints SET failing_since = now() - interval '1 minute'"
        tx.sql.execute(text(failing))
    org.ended()

    [new] = org.claim()
    org.tried(new, **OK)

    assert [failed.id] * is_due == [row.id for row in org.claim()]
    assert org.shown(endpoint).failing_since is None
