"""Deliveries that wait for an earlier one of their run."""

from collections import defaultdict
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Row, text

from arkloop.shared.delivery import deliveries
from arkloop.shared.delivery.deliveries import Attempt
from arkloop.shared.ids import new_id
from tests import stored_deliveries
from tests.query_plans import noted
from tests.shared.delivery.delivering_org import BROKEN, OK, Org
from tests.stored_runs import ago


def waiting(org: Org, endpoint: UUID, *, runs: int, events: int) -> list[UUID]:
    """Store the events of runs, all of them due."""
    run_ids = [new_id() for _ in range(runs)]
    with org.connections.transaction() as tx:
        for run_id in run_ids:
            due_at = [ago(seconds=events - n) for n in range(events)]
            stored_deliveries.deliveries(tx, org.id, endpoint, *due_at, run_id=run_id)
    return run_ids


def claimed(org: Org) -> list[Row[Any]]:
    """Claim all that is due, of an endpoint that fails one after the other."""
    found: list[Row[Any]] = []
    while rows := org.claim():
        found += rows
    return found


def rows_read(org: Org) -> int:
    """Claim, and count the deliveries that Postgres looked at for it."""
    with noted(org.connections) as statements:
        org.claim()
    [(claim, values)] = statements
    with org.connections.transaction() as tx:
        explained = "EXPLAIN (ANALYZE, FORMAT JSON) " + claim
        [plan] = tx.sql.exec_driver_sql(explained, values).scalar_one()
        tx.sql.rollback()
    return sum(map(_rows, _scans(plan["Plan"])))


def _scans(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if plan.get("Relation Name") == "webhook_deliveries" and "Scan" in plan["Node Type"]:
        yield plan
    for child in plan.get("Plans", ()):
        yield from _scans(child)


def _rows(scan: dict[str, Any]) -> int:
    removed = scan.get("Rows Removed by Filter", 0)
    return round((scan["Actual Rows"] + removed) * scan["Actual Loops"])


def test_a_claim_reads_none_that_wait_for_an_earlier_one(org: Org) -> None:
    """However many events of each run come after the one that the receiver has failed to take."""
    endpoint = org.endpoint()
    waiting(org, endpoint, runs=40, events=5)
    for row in claimed(org):
        org.tried(row, **BROKEN)

    assert rows_read(org) < 10


@pytest.mark.owner
def test_many_that_wait_are_not_read_for_each_other(org: Org) -> None:
    """Statistics of before an outage do not lead Postgres to the index of all that is pending."""
    endpoint = org.endpoint()
    waiting(org, endpoint, runs=1000, events=1)
    with org.connections.transaction() as tx:
        tx.sql.execute(text("UPDATE webhook_deliveries SET state = 'delivered'"))
        tx.sql.execute(text("ANALYZE webhook_deliveries"))
    waiting(org, endpoint, runs=100, events=2)

    assert rows_read(org) < 1000


def test_everything_is_delivered_in_order_after_an_outage(org: Org) -> None:
    """A receiver that responds again gets the events of each run in turn, and those that came
    meanwhile.
    """
    endpoint = org.endpoint()
    run_ids = waiting(org, endpoint, runs=3, events=4)
    claim = org.stored.claimed()
    org.stored.park(claim, new_id())
    for _ in range(2):
        for row in claimed(org):
            org.tried(row, **BROKEN)
            org.set(row.id, due_at=ago(seconds=1))
    failed = claimed(org)
    org.stored.cancel(claim.run_id)
    for row in failed[1:]:
        org.tried(row, **BROKEN)
    assert [] == org.claim()
    with org.connections.transaction() as tx:
        failing = "UPDATE webhook_endpoints SET failing_since = now() - interval '1 minute'"
        tx.sql.execute(text(failing))

    sent, due = [], failed[:1]
    while due:
        for row in due:
            org.tried(row, **OK)
        sent += [row.id for row in due]
        due = org.claim()

    rows = {row.id: row for row in org.listed(endpoint)}
    order = defaultdict(list)
    for delivery_id in sent:
        order[rows[delivery_id].run_id].append(rows[delivery_id].seq)
    assert {*run_ids, claim.run_id} == {*order}
    assert [[1, 2, 3, 4]] * 3 == [order[run_id] for run_id in run_ids]
    assert 2 == len(order[claim.run_id]) and sorted(seqs := order[claim.run_id]) == seqs
    assert {"delivered"} == {row.state for row in rows.values()}


def test_a_long_outage_ends_at_once(org: Org, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each success makes the next ones due where more wait than one statement changes; endpoints
    that respond again together share these.
    """
    monkeypatch.setattr(deliveries, "HASTENED_AT_ONCE", 4)
    several = [org.endpoint(), org.endpoint()]
    for endpoint in several:
        waiting(org, endpoint, runs=7, events=1)
    for row in claimed(org):
        org.tried(row, **BROKEN)
    with org.connections.transaction() as tx:
        failing = "UPDATE webhook_endpoints SET failing_since = now() - interval '1 minute'"
        tx.sql.execute(text(failing))
    org.ended()

    counts = []
    while due := org.claim():
        with org.connections.statement() as tx:
            deliveries.record(tx, [Attempt(row.id, row.attempts, row.url, 200) for row in due])
        with org.connections.reading() as sql:
            counts.append(sql.scalar(text(_DUE)))

    assert [4, 6, 8] == counts[:3]
    for endpoint in several:
        assert ["delivered"] * 8 == [state for _, state in org.states(endpoint)]
        assert org.shown(endpoint).failing_since is None


_DUE = "SELECT count(*) FROM webhook_deliveries WHERE state = 'pending' AND due_at <= now()"


def test_what_waits_for_a_replayed_delivery_is_due_when_that_is_delivered(org: Org) -> None:
    """A pending delivery that is replayed is sent at once, and so is the next one of its run."""
    endpoint = org.endpoint()
    waiting(org, endpoint, runs=1, events=3)
    [first] = org.claim()
    org.tried(first, **BROKEN)
    with org.connections.transaction() as tx:
        deliveries.replay(tx, org.id, endpoint, [first.id])

    for expected in org.listed(endpoint):
        [row] = org.claim()
        assert expected.id == row.id
        org.tried(row, **OK)


def test_a_late_success_makes_the_next_one_due(org: Org) -> None:
    """An attempt may succeed after another one has failed, whose pause does not count any more."""
    endpoint = org.endpoint()
    waiting(org, endpoint, runs=1, events=2)
    [slow] = org.claim()
    org.set(slow.id, leased_until=ago(seconds=1))
    [again] = org.claim()
    org.tried(again, **BROKEN)
    assert [] == org.claim()

    org.tried(slow, **OK)

    [following] = org.claim()
    assert org.listed(endpoint)[-1].id == following.id
