"""Deliveries of one org beside those of others."""

import threading
from uuid import UUID

from sqlalchemy import insert, text

from arkloop.shared.claim import Claim
from arkloop.shared.delivery import deliveries, endpoints
from arkloop.shared.events.types import RunCompleted
from arkloop.shared.ids import new_id
from arkloop.shared.runs.endings import Ending, Outcome, RunEnder
from arkloop.shared.runs.states import RunState
from arkloop.shared.storage.connections import Connections
from arkloop.shared.storage.tables.delivery import webhook_deliveries
from tests.clients import Register
from tests.shared.delivery.delivering_org import Org
from tests.stored_runs import USED, StoredRuns, numbered
from tests.waiting import eventually


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


def test_no_run_waits_for_the_deliveries_of_another_org(
    connections: Connections, org: Org, register: Register
) -> None:
    """An end is stored for each endpoint once more; with many of them it is written alone."""
    quiet = StoredRuns.of(connections, register())
    several_endpoints = [org.endpoint() for _ in range(endpoints.MAX_ENDPOINTS)]
    with connections.reading() as sql:
        counts = endpoints.counts(sql)
    assert counts is not None
    end = RunEnder(connections, lambda org_id: counts.get(org_id, 0))
    noisy, claim = [org.stored.claimed() for _ in range(2)], quiet.claimed()

    def ended(claim: Claim) -> Outcome:
        last = numbered(claim.last_seq, RunCompleted(None, USED.usage, USED.cost_usd, "stop"))
        return end(Ending(claim=claim, state=RunState.COMPLETED, stored=last, totals=USED))

    several = [threading.Thread(target=ended, args=(one,)) for one in noisy]
    with connections.transaction() as tx:
        for one in noisy:  # until the end of this transaction it is open whose delivery is stored
            tx.sql.execute(
                insert(webhook_deliveries).values(
                    id=new_id(),
                    endpoint_id=several_endpoints[0],
                    org_id=org.id,
                    type="run.completed",
                    run_id=one.run_id,
                    ordered_by=one.run_id,
                    seq=one.last_seq + 1,
                    data="{}",
                )
            )
        for thread in several:
            thread.start()
        eventually(lambda: waiting(connections) > 0)
        outcome, are_waiting = ended(claim), waiting(connections)
    for thread in several:
        thread.join()

    assert Outcome.ENDED == outcome
    assert are_waiting > 0


def waiting(connections: Connections) -> int:
    """Count the sessions that wait for a lock."""
    query = text(
        """
        SELECT count(*) FROM pg_stat_activity
        WHERE datname = current_database() AND wait_event_type = 'Lock'
        """
    )
    with connections.reading() as sql:
        return int(sql.scalar(query) or 0)
