"""Deliveries to an endpoint that is disabled for a while: that time does not make them older."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Row, update

from arkloop.shared.delivery import deliveries, endpoints
from arkloop.shared.storage.tables.delivery import webhook_endpoints
from tests.shared.delivery.delivering_org import BROKEN, Org
from tests.shared.delivery.test_deliveries_of_orgs import waiting
from tests.stored_runs import ago
from tests.waiting import eventually


def enable(org: Org, endpoint: UUID, *, enabled: bool = True) -> None:
    with org.connections.transaction() as tx:
        endpoints.change(tx, org.id, endpoint, {"enabled": enabled})


def disable(org: Org, endpoint: UUID) -> None:
    enable(org, endpoint, enabled=False)


def refuse(org: Org, endpoint: UUID) -> None:
    """Respond to the next message with 410, which disables the endpoint."""
    org.ended()
    [row] = org.claim(most=1)
    org.tried(row, response_status=410)
    assert not org.shown(endpoint).is_enabled


def passed(org: Org, endpoint: UUID, **time: float) -> None:
    """Let the endpoint be disabled since then."""
    with org.connections.transaction() as tx:
        is_it = update(webhook_endpoints).where(webhook_endpoints.c.id == endpoint)
        tx.sql.execute(is_it.values(disabled_at=ago(**time)))


def failed(org: Org) -> Row[Any]:
    """Store a delivery whose first attempt has failed, and return it."""
    org.ended()
    [row] = org.claim(most=1)
    org.tried(row, **BROKEN)
    return row


def state_after_failure(org: Org, row: Row[Any], *, days: float) -> str:
    """Fail once more, `days` after the first attempt; return the state of the delivery."""
    org.set(row.id, due_at=ago(seconds=1), tried_since=ago(days=days))
    [again] = org.claim()
    org.tried(again, **BROKEN)
    return {one.id: one.state for one in org.listed(row.endpoint_id)}[row.id]


@pytest.mark.parametrize("off", [disable, refuse])
@pytest.mark.parametrize(("days", "state"), [(5.9, "pending"), (8, "dead")])
def test_the_time_in_which_an_endpoint_was_disabled_does_not_count(
    org: Org, off: Callable[[Org, UUID], None], days: float, state: str
) -> None:
    """A delivery is dead three days and the disabled time after its first attempt, not before.

    It does not matter whether an admin or a 410 has disabled the endpoint.
    """
    endpoint = org.endpoint()
    row = failed(org)
    off(org, endpoint)
    passed(org, endpoint, days=3)
    enable(org, endpoint)

    assert state == state_after_failure(org, row, days=days)


def test_each_time_that_an_endpoint_was_disabled_is_added(org: Org) -> None:
    """All of them together are left out, and no more."""
    endpoint = org.endpoint()
    row = failed(org)
    for _ in range(3):
        disable(org, endpoint)
        passed(org, endpoint, days=1)
        enable(org, endpoint)

    assert "pending" == state_after_failure(org, row, days=5.9)
    assert "dead" == state_after_failure(org, row, days=8)


def test_a_switch_alone_gives_no_delivery_more_time(org: Org) -> None:
    """What waits for a dead receiver dies, however often its endpoint is disabled."""
    endpoint = org.endpoint()
    row = failed(org)
    for _ in range(5):
        disable(org, endpoint)
        disable(org, endpoint)
        enable(org, endpoint)
        enable(org, endpoint)

    assert "dead" == state_after_failure(org, row, days=4)


@pytest.mark.parametrize("is_replayed", [False, True])
def test_a_time_before_the_first_attempt_gives_a_delivery_no_more_time(
    org: Org, is_replayed: bool
) -> None:
    """A delivery that is replayed begins anew, with another first attempt."""
    endpoint = org.endpoint()
    row = failed(org) if is_replayed else None
    disable(org, endpoint)
    passed(org, endpoint, days=10)
    enable(org, endpoint)
    if row is None:
        row = failed(org)
    else:
        with org.connections.transaction() as tx:
            assert 1 == deliveries.replay(tx, org.id, endpoint, [row.id])
        [again] = org.claim()
        org.tried(again, **BROKEN)

    assert "dead" == state_after_failure(org, row, days=4)


def test_an_attempt_that_fails_while_its_endpoint_is_disabled_does_not_count_that_time(
    org: Org,
) -> None:
    """It began before, in a process that was frozen meanwhile."""
    endpoint = org.endpoint()
    row = failed(org)
    org.set(row.id, due_at=ago(seconds=1), tried_since=ago(days=5.9))
    [again] = org.claim()
    disable(org, endpoint)
    passed(org, endpoint, days=3)

    org.tried(again, **BROKEN)

    assert ["pending"] == [one.state for one in org.listed(endpoint)]


@pytest.mark.parametrize("is_new_one", [False, True])
def test_a_410_that_waits_for_a_change_of_the_endpoint_disables_its_address_alone(
    org: Org, is_new_one: bool
) -> None:
    """The admin has written another address, and commits it when the 410 of the one before is
    being recorded; where only the description is another, the address is gone.
    """
    endpoint = org.endpoint()
    org.ended()
    [row] = org.claim()
    new = {"url": "https://new.example/hook"} if is_new_one else {"description": "New."}

    with ThreadPoolExecutor(1) as threads:
        with org.connections.transaction() as tx:
            endpoints.change(tx, org.id, endpoint, new)
            recorded = threads.submit(org.tried, row, response_status=410)
            eventually(lambda: recorded.done() or waiting(org.connections) > 0)
        recorded.result(timeout=60)

    found = org.shown(endpoint)
    reason = None if is_new_one else "gone"
    assert (is_new_one, reason) == (found.is_enabled, found.disabled_reason)
    assert is_new_one == (found.disabled_at is None)
    assert found.failing_since is not None
    with org.connections.transaction() as tx:
        endpoints.change(tx, org.id, endpoint, {"enabled": True})
        assert 1 == deliveries.replay(tx, org.id, endpoint)
    [again] = org.claim()
    assert (row.id, new.get("url", row.url)) == (again.id, again.url)


def test_a_delivery_that_an_earlier_release_began_dies_as_it_did_there(org: Org) -> None:
    """Processes of the release before do not store for how long the endpoint was disabled then."""
    endpoint = org.endpoint()
    disable(org, endpoint)
    passed(org, endpoint, days=10)
    enable(org, endpoint)
    row = failed(org)
    org.set(row.id, endpoint_disabled_seconds=None)

    assert "pending" == state_after_failure(org, row, days=2.9)
    assert "dead" == state_after_failure(org, row, days=4)
