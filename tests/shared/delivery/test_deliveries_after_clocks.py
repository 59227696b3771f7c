"""Deliveries after Postgres' clock was set back."""

from typing import Any

import pytest
from sqlalchemy import Row, func, text, update

from arkloop.shared.delivery import deliveries
from arkloop.shared.ids import new_id
from arkloop.shared.runs import sweep
from arkloop.shared.storage.tables.delivery import webhook_deliveries
from tests import stored_deliveries
from tests.shared.delivery.delivering_org import BROKEN, OK, Org
from tests.stored_runs import ago

HOUR = text("interval '1 hour'")


def set_back(org: Org) -> None:
    """Move all times of deliveries into the future, as a clock that is set back does."""
    times = ("created_at", "due_at", "leased_until", "tried_since", "tried_at", "delivered_at")
    with org.connections.transaction() as tx:
        moved: Any = {name: webhook_deliveries.c[name] + HOUR for name in times}
        tx.sql.execute(update(webhook_deliveries).values(**moved))
    sweep_is_due(org)


def sweep_is_due(org: Org) -> None:
    with org.connections.transaction() as tx:
        tx.sql.execute(text("UPDATE sweep_turn SET swept_at = NULL"))


def times(org: Org) -> list[Row[Any]]:
    query = "SELECT id, due_at, leased_until, tried_at FROM webhook_deliveries ORDER BY seq"
    with org.connections.reading() as sql:
        return list(sql.execute(text(query)))


def test_a_message_that_was_due_is_sent_after_the_next_sweep(org: Org) -> None:
    """It does not wait until the clock has caught up."""
    org.endpoint()
    org.ended()
    set_back(org)
    assert [] == org.claim()

    assert sweep.take_turn(org.connections)

    assert ["run.completed"] == [row.type for row in org.claim()]


def test_an_attempt_of_a_process_that_died_is_repeated_after_a_lease(org: Org) -> None:
    """Its lease begins with the sweep, for the process may be alive."""
    endpoint = org.endpoint()
    org.ended()
    [lost] = org.claim()
    set_back(org)

    assert sweep.take_turn(org.connections)

    assert [] == org.claim()
    with org.connections.transaction() as tx:
        query = "SELECT extract(epoch FROM leased_until - now())::float8 FROM webhook_deliveries"
        left = tx.sql.scalar(text(query))
        assert 0 < left <= deliveries._lease(org.connections.settings)
        tx.sql.execute(text("UPDATE webhook_deliveries SET leased_until = now()"))
    assert [lost.id] == [row.id for row in org.claim()]
    assert [("run.completed", "pending")] == org.states(endpoint)


def test_a_pause_after_a_failure_is_not_longer(org: Org) -> None:
    """What was attempted in the future was attempted just now."""
    endpoint = org.endpoint()
    org.ended()
    [failed] = org.claim()
    org.tried(failed, **BROKEN)
    [pause] = [row.due_at - row.tried_at for row in org.listed(endpoint)]
    set_back(org)

    assert sweep.take_turn(org.connections)

    [row] = org.listed(endpoint)
    assert pause == row.due_at - row.tried_at
    with org.connections.reading() as sql:
        assert row.tried_at <= sql.scalar(text("SELECT now()"))


def test_a_replay_is_sent_after_the_next_sweep(org: Org) -> None:
    """Its former attempt was in the future, too, and it has no pause."""
    endpoint = org.endpoint()
    org.ended()
    [row] = org.claim()
    org.tried(row, **OK)
    org.set(row.id, created_at=ago(minutes=50), tried_at=ago(minutes=50))
    with org.connections.transaction() as tx:
        deliveries.replay(tx, org.id, endpoint, [row.id])
    set_back(org)

    assert sweep.take_turn(org.connections)

    assert [row.id] == [one.id for one in org.claim()]


@pytest.mark.parametrize("dies", [True, False])
def test_a_second_attempt_is_in_progress_since_the_sweep(org: Org, dies: bool) -> None:
    """It is repeated after its lease if its process dies, and after its own pause if it fails."""
    endpoint = org.endpoint()
    org.ended()
    [row] = org.claim()
    org.tried(row, **BROKEN)
    org.set(row.id, created_at=ago(minutes=41), tried_at=ago(minutes=40), due_at=ago(minutes=10))
    [second] = org.claim()
    set_back(org)

    assert sweep.take_turn(org.connections)

    if dies:
        org.set(row.id, leased_until=func.now())
        assert [row.id] == [one.id for one in org.claim()]
    else:
        org.tried(second, **BROKEN)
        [row] = org.listed(endpoint)
        first_pause, second_pause, *_ = org.connections.settings.webhook_retry_seconds
        assert (row.due_at - row.tried_at).total_seconds() >= second_pause > 2 * first_pause


def test_what_waits_for_an_earlier_one_keeps_its_pause(org: Org) -> None:
    """Claims would read it in vain until then."""
    endpoint = org.endpoint()
    with org.connections.transaction() as tx:
        due_at = [ago(seconds=1)] * 3
        stored_deliveries.deliveries(tx, org.id, endpoint, *due_at, run_id=new_id())
    [failed] = org.claim()
    org.tried(failed, **BROKEN)
    set_back(org)

    assert sweep.take_turn(org.connections)

    [earlier, *later] = times(org)
    assert earlier.id == failed.id
    assert all(row.due_at >= earlier.due_at for row in later)
    org.tried(failed, **OK)
    assert [later[0].id] == [row.id for row in org.claim()]


@pytest.mark.parametrize("is_tried", [False, True])
def test_a_sweep_leaves_other_times_as_they_are(org: Org, is_tried: bool) -> None:
    """A pause and a lease end when they should, without a step of the clock or after the sweep that
    corrects it.
    """
    org.endpoint()
    org.ended()
    [row] = org.claim()
    if is_tried:
        org.tried(row, **BROKEN)
    for steps in (False, True):
        if steps:
            set_back(org)
            assert sweep.take_turn(org.connections)
        before = times(org)
        sweep_is_due(org)

        assert sweep.take_turn(org.connections)

        assert before == times(org)
