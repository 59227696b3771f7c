"""The queue of calls: its rows, as attempts of a run and their processes change them."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import delete, func, text, update

from arkloop.shared import ids
from arkloop.shared.errors import LeaseLost
from arkloop.shared.runs import sweep, worker_calls
from arkloop.shared.runs.states import RunState
from arkloop.shared.runs.worker_calls import MAX_HANDOUTS, Call, Worker
from arkloop.shared.storage.connections import Connections
from arkloop.shared.storage.tables import runs as tables
from tests.clients import User
from tests.shared.runs.swept_runs import with_lease
from tests.stored_runs import StoredRuns, ago
from tests.waiting import eventually


@pytest.fixture
def call(alice: User, make_run: Callable[..., UUID]) -> Call:
    """A call of a run that its second attempt executes."""
    fields = {"fence": 2, "owner": ids.new_id()}
    return Call(
        run_id=make_run(alice, alice.thread(), RunState.EXECUTING, **fields),
        tool_call_id="c",
        org_id=alice.org_id,
        pool="shop",
        tool="pay",
        request={"arguments": {}},
        idempotent=True,
        timeout_seconds=60,
    )


@pytest.fixture
def service_worker(stored: StoredRuns) -> UUID:
    """The one worker of the service, which is heard since before the calls of the test."""
    with stored.connections.transaction() as tx:
        tx.sql.execute(delete(tables.workers))
    return stored.worker()


def state_of(connections: Connections, call_id: UUID) -> tuple[str, int]:
    with connections.reading() as sql:
        row = worker_calls.find(sql, call_id)
    return row.state, row.fence


def test_a_call_is_queued_once(connections: Connections, call: Call) -> None:
    """The attempt that takes a run over finds the call of the one before."""
    with connections.statement() as tx:
        first = worker_calls.add(tx, call, fence=2)
    with connections.statement() as tx:
        assert first == worker_calls.add(tx, call, fence=2)


def test_an_outdated_attempt_changes_nothing(connections: Connections, call: Call) -> None:
    """It queues no call, and withdraws none for which a later attempt waits."""
    with pytest.raises(LeaseLost):
        with connections.statement() as tx:
            worker_calls.add(tx, call, fence=1)
    with connections.statement() as tx:
        call_id = worker_calls.add(tx, call, fence=2)

    with connections.statement() as tx:
        worker_calls.withdraw(tx, call_id, run_id=call.run_id, fence=1)
    assert ("queued", 0) == state_of(connections, call_id)
    with connections.statement() as tx:
        worker_calls.withdraw(tx, call_id, run_id=call.run_id, fence=2)
    assert ("withdrawn", 0) == state_of(connections, call_id)


@pytest.mark.usefixtures("service_worker")
def test_a_call_that_kills_its_workers_is_given_up(connections: Connections, call: Call) -> None:
    """A call that may be repeated is handed out a few times, not for ever."""
    with connections.statement() as tx:
        call_id = worker_calls.add(tx, call, fence=2)
    for _ in range(MAX_HANDOUTS):
        with connections.statement() as tx:
            worker = Worker(call.org_id, "shop", "w")
            assert worker_calls.take(tx, worker, ["pay"], limit=1, lease_seconds=-1)
        with connections.statement() as tx:
            worker_calls.expire(tx, [call_id])

    assert ("unknown", MAX_HANDOUTS) == state_of(connections, call_id)


def test_a_silence_of_all_workers_loses_no_call(
    stored: StoredRuns, call: Call, service_worker: UUID
) -> None:
    """After an outage of Postgres a worker that is alive has a lease to come back."""
    connections = with_lease(stored, lease=3, heartbeat=1)
    with connections.statement() as tx:
        call_id = worker_calls.add(tx, replace(call, idempotent=False), fence=2)
    with connections.statement() as tx:
        worker = Worker(call.org_id, "shop", "w")
        worker_calls.take(tx, worker, ["pay"], limit=1, lease_seconds=-1)

    def expired(**columns: Any) -> str:
        stored.set_worker(service_worker, **columns)
        with connections.statement() as tx:
            worker_calls.expire(tx, [call_id])
        return state_of(connections, call_id)[0]

    with connections.statement() as tx:  # it was handed out a minute ago
        handed_out = update(tables.worker_calls).where(tables.worker_calls.c.id == call_id)
        tx.sql.execute(handed_out.values(deadline=func.now()))
    assert "leased" == expired(seen_at=ago(seconds=60)), "nobody is heard"
    assert "leased" == expired(seen_at=ago(seconds=-3600), back_at=func.now()), "it is just back"
    assert "unknown" == expired(started_at=ago(seconds=3), back_at=ago(seconds=3))


def test_a_worker_that_has_just_started_keeps_no_expired_call(
    stored: StoredRuns, call: Call, service_worker: UUID
) -> None:
    """Another one of the service was heard all the time: there was no silence of all of them."""
    connections = with_lease(stored, lease=3, heartbeat=1)
    with connections.statement() as tx:
        call_id = worker_calls.add(tx, replace(call, idempotent=False), fence=2)
    with connections.statement() as tx:
        worker = Worker(call.org_id, "shop", "w")
        worker_calls.take(tx, worker, ["pay"], limit=1, lease_seconds=-1)
    stored.set_worker(service_worker, started_at=ago(seconds=60))
    stored.worker()

    with connections.statement() as tx:
        worker_calls.expire(tx, [call_id])

    assert "unknown" == state_of(connections, call_id)[0]


def test_a_clock_that_was_set_back_keeps_no_expired_call(
    stored: StoredRuns, call: Call, service_worker: UUID
) -> None:
    """Workers that were started by a clock that was ahead count as heard for a lease after that."""
    connections = with_lease(stored, lease=0.5, heartbeat=0.2)
    with connections.statement() as tx:
        call_id = worker_calls.add(tx, replace(call, idempotent=False), fence=2)
    with connections.statement() as tx:
        worker = Worker(call.org_id, "shop", "w")
        worker_calls.take(tx, worker, ["pay"], limit=1, lease_seconds=-60)
    stored.set_worker(service_worker, started_at=ago(seconds=-3600))
    with stored.connections.transaction() as tx:
        tx.sql.execute(text("UPDATE sweep_turn SET swept_at = NULL"))

    assert sweep.take_turn(connections)

    def is_lost() -> bool:
        stored.set_worker(service_worker, seen_at=func.now())
        with connections.statement() as tx:
            worker_calls.expire(tx, [call_id])
        return state_of(connections, call_id)[0] == "unknown"

    eventually(is_lost, seconds=10)


def test_a_lease_that_has_not_expired_is_kept(connections: Connections, call: Call) -> None:
    """A worker keeps its call until its lease expires, or its heartbeat breaks off."""
    worker = Worker(call.org_id, "shop", "w")
    with connections.statement() as tx:
        call_id = worker_calls.add(tx, call, fence=2)
    with connections.statement() as tx:
        worker_calls.take(tx, worker, ["pay"], limit=1, lease_seconds=60)
    with connections.statement() as tx:
        first = worker_calls.extend(tx, worker, {call_id: 1}, lease_seconds=60)
    with connections.statement() as tx:
        second = worker_calls.extend(tx, worker, {call_id: 1}, lease_seconds=60)

    with connections.statement() as tx:
        worker_calls.expire(tx, [call_id])
    with connections.statement() as tx:
        worker_calls.lose(tx, first)
    assert ("leased", 1) == state_of(connections, call_id)
    with connections.statement() as tx:
        worker_calls.lose(tx, second)
    assert ("queued", 1) == state_of(connections, call_id)


def test_a_heartbeat_that_breaks_off_loses_what_it_has_named(
    connections: Connections, call: Call
) -> None:
    """Other calls of the worker are kept: another heartbeat names them, or they are new."""
    worker, ids = Worker(call.org_id, "shop", "w"), {}
    for name in ("ended", "beating", "new"):
        with connections.statement() as tx:
            ids[name] = worker_calls.add(tx, replace(call, tool_call_id=name), fence=2)
        with connections.statement() as tx:
            worker_calls.take(tx, worker, ["pay"], limit=1, lease_seconds=60)
    with connections.statement() as tx:
        worker_calls.extend(tx, worker, {ids["beating"]: 1}, lease_seconds=60)
    with connections.statement() as tx:
        broken_off = worker_calls.extend(tx, worker, {ids["ended"]: 1}, lease_seconds=60)

    with connections.statement() as tx:
        worker_calls.lose(tx, broken_off)

    states = {name: state_of(connections, call_id)[0] for name, call_id in ids.items()}
    assert {"ended": "queued", "beating": "leased", "new": "leased"} == states


@pytest.mark.usefixtures("service_worker")
def test_a_call_that_was_handed_out_again_is_not_lost_with_the_heartbeat_before(
    connections: Connections, call: Call
) -> None:
    """It has another worker, no heartbeat of which has named it yet."""
    with connections.statement() as tx:
        call_id = worker_calls.add(tx, call, fence=2)
    frozen, other = (Worker(call.org_id, "shop", name) for name in ("frozen", "other"))
    with connections.statement() as tx:
        worker_calls.take(tx, frozen, ["pay"], limit=1, lease_seconds=60)
    with connections.statement() as tx:
        broken_off = worker_calls.extend(tx, frozen, {call_id: 1}, lease_seconds=-1)
    with connections.statement() as tx:
        worker_calls.expire(tx, [call_id])
    with connections.statement() as tx:
        worker_calls.take(tx, other, ["pay"], limit=1, lease_seconds=60)

    with connections.statement() as tx:
        worker_calls.lose(tx, broken_off)

    assert ("leased", 2) == state_of(connections, call_id)


def test_a_cancelled_call_is_lost_with_its_lease(connections: Connections, call: Call) -> None:
    """A worker that was frozen for longer is to stop it: nobody waits for it any more."""
    worker = Worker(call.org_id, "shop", "w")
    with connections.statement() as tx:
        call_id = worker_calls.add(tx, call, fence=2)
    with connections.statement() as tx:
        worker_calls.take(tx, worker, ["pay"], limit=1, lease_seconds=60)
    with connections.statement() as tx:
        worker_calls.extend(tx, worker, {call_id: 1}, lease_seconds=-1)
    with connections.reading() as sql:
        assert {call_id} == worker_calls.held(sql, worker, {call_id: 1})

    with connections.statement() as tx:
        worker_calls.withdraw(tx, call_id, run_id=call.run_id, fence=2)
    with connections.statement() as tx:
        assert {} == worker_calls.extend(tx, worker, {call_id: 1}, lease_seconds=60)

    with connections.reading() as sql:
        assert set() == worker_calls.held(sql, worker, {call_id: 1})
