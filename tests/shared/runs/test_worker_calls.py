"""The queue of calls: its rows, as attempts of a run and their processes change them."""

from collections.abc import Callable
from dataclasses import replace
from uuid import UUID

import pytest

from arkloop.shared import ids
from arkloop.shared.errors import LeaseLost
from arkloop.shared.runs import worker_calls
from arkloop.shared.runs.states import RunState
from arkloop.shared.runs.worker_calls import MAX_HANDOUTS, Call, Worker
from arkloop.shared.storage.connections import Connections
from tests.clients import User


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
