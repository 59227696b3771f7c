"""Deliveries to an endpoint that responds again after it has failed for a while."""

from datetime import timedelta

import pytest
from sqlalchemy import func, text

from arkloop.shared.delivery.deliveries import JITTER
from tests.shared.delivery.delivering_org import BROKEN, OK, Org
from tests.stored_runs import ago


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


@pytest.mark.parametrize(("began", "pause"), [(600, 300), (30, 120)])
def test_an_attempt_that_fails_when_its_endpoint_responds_again_is_repeated_soon(
    org: Org, began: float, pause: float
) -> None:
    """What was attempted for the first time in the outage does not wait for hours because another
    process was attempting it when the endpoint responded again.
    """
    endpoint = org.endpoint()
    org.ended()
    [first] = org.claim()
    org.tried(first, **BROKEN)
    org.set(first.id, due_at=ago(seconds=1), tried_since=ago(seconds=began))
    org.ended()
    [in_progress], [other] = org.claim(), org.claim()
    assert first.id == in_progress.id
    with org.connections.transaction() as tx:
        failing = "UPDATE webhook_endpoints SET failing_since = now() - interval '1 minute'"
        tx.sql.execute(text(failing))

    org.tried(other, **OK)
    assert [] == org.claim()
    org.tried(in_progress, **BROKEN)

    [failed] = [row for row in org.listed(endpoint) if row.id == first.id]
    waits = (failed.due_at - failed.tried_at).total_seconds()
    assert pause <= waits <= pause * (1 + JITTER)
    assert org.shown(endpoint).failing_since == failed.tried_at


def test_an_attempt_is_hastened_by_the_outage_that_it_was_made_in_alone(org: Org) -> None:
    """The next failure of the same message is followed by the pause of its number again."""
    endpoint = org.endpoint()
    org.ended()
    [first] = org.claim()
    org.tried(first, **BROKEN)
    org.set(first.id, due_at=ago(seconds=1))
    [second] = org.claim()
    org.set(first.id, due_at=func.now())
    org.tried(second, **BROKEN)
    org.set(first.id, due_at=ago(seconds=1))

    [third] = org.claim()
    org.tried(third, **BROKEN)

    [failed] = org.listed(endpoint)
    assert failed.due_at - failed.tried_at >= timedelta(seconds=1800)
