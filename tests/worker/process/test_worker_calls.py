"""Waiting for calls of tool workers when no signal comes."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from uuid import UUID

import pytest
from sqlalchemy import delete, text

from arkloop.shared import ids
from arkloop.shared.errors import Unavailable
from arkloop.shared.runs import worker_calls
from arkloop.shared.runs.states import RunState
from arkloop.shared.runs.worker_calls import Call, Worker
from arkloop.shared.storage.connections import Connections
from arkloop.shared.storage.postgres import RUN_TIMEOUTS
from arkloop.shared.storage.tables.runs import workers
from arkloop.worker.process.worker_calls import LOOK_SECONDS, WorkerCalls
from tests.clients import User
from tests.stored_runs import StoredRuns, ago
from tests.waiting import eventually


@pytest.fixture
def call(alice: User, make_run: Callable[..., UUID]) -> Call:
    """A call of a run that is executed."""
    return Call(
        run_id=make_run(alice, alice.thread(), RunState.EXECUTING, fence=1, owner=ids.new_id()),
        tool_call_id="c",
        org_id=alice.org_id,
        pool="shop",
        tool="pay",
        request={"arguments": {}},
        idempotent=False,
        timeout_seconds=60,
    )


@pytest.fixture
def calls(connections: Connections) -> Iterator[WorkerCalls]:
    made = WorkerCalls(connections)
    yield made
    made.stop()


@pytest.mark.parametrize("has_signal", [True, False])
def test_the_end_of_a_lost_attempt_leaves_the_next_one_waiting(
    connections: Connections, call: Call, calls: WorkerCalls, has_signal: bool
) -> None:
    """Both wait for the same call: the process has claimed its run again before the attempt whose
    claim was lost has noticed.
    """
    worker = Worker(call.org_id, "shop", "w")
    with connections.statement() as tx:
        call_id = worker_calls.add(tx, call, fence=1)
    lost = calls.waiting(call_id, call.run_id)
    lost.__enter__()
    with calls.waiting(call_id, call.run_id) as news:
        lost.__exit__(None, None, None)
        if has_signal:
            calls.wake(call.run_id)
        else:
            with connections.statement() as tx:
                worker_calls.take(tx, worker, ["pay"], limit=1, lease_seconds=60)
            with connections.statement() as tx:
                worker_calls.end(tx, worker, call_id, 1, output="paid", is_error=False)

        assert news.wait(10)


def test_a_result_is_found_without_its_signal(
    connections: Connections, call: Call, calls: WorkerCalls
) -> None:
    """A look at the queue finds the end of a call whose signal was lost."""
    worker = Worker(call.org_id, "shop", "w")
    with connections.statement() as tx:
        call_id = worker_calls.add(tx, call, fence=1)
    with calls.waiting(call_id, call.run_id) as news:
        with connections.statement() as tx:
            worker_calls.take(tx, worker, ["pay"], limit=1, lease_seconds=60)
        with connections.statement() as tx:
            worker_calls.end(tx, worker, call_id, 1, output="paid", is_error=False)

        assert news.wait(60)


def test_a_call_that_is_kept_in_a_silence_of_all_workers_is_looked_at_once_a_second(
    connections: Connections, call: Call, calls: WorkerCalls
) -> None:
    """An expired lease that does not count yet is no reason to look again at once."""
    with connections.transaction() as tx:
        tx.sql.execute(delete(workers))
        call_id = worker_calls.add(tx, call, fence=1)
        worker = Worker(call.org_id, "shop", "w")
        worker_calls.take(tx, worker, ["pay"], limit=1, lease_seconds=-1)

    with calls.waiting(call_id, call.run_id):
        pause = calls._look()

    with connections.reading() as sql:
        assert ("leased", LOOK_SECONDS) == (worker_calls.find(sql, call_id).state, pause)


@pytest.mark.parametrize("mode", ["ACCESS EXCLUSIVE", "SHARE"])
def test_a_worker_has_a_lease_to_come_back_after_an_outage_of_pools_alone(
    stored: StoredRuns, call: Call, mode: str
) -> None:
    """The table is locked, or a pooler is down, while the leases of the service are renewed."""
    timeouts = replace(RUN_TIMEOUTS, lock=0.1)
    settings = replace(stored.connections.settings, lease_seconds=1, heartbeat_seconds=0.3)
    own = replace(stored.connections, settings=settings).with_pool(
        application="tests", size=1, timeouts=timeouts
    )
    with own.transaction() as tx:
        tx.sql.execute(delete(workers))
        call_id = worker_calls.add(tx, call, fence=1)
        worker = Worker(call.org_id, "shop", "w")
        worker_calls.take(tx, worker, ["pay"], limit=1, lease_seconds=-1)
    stored.worker(started_at=ago(seconds=60), seen_at=ago(seconds=-3600))
    calls = WorkerCalls(own)
    calls.stop()

    def state_after_a_look() -> str:
        calls._look()
        with own.reading() as sql:
            return str(worker_calls.find(sql, call_id).state)

    with calls.waiting(call_id, call.run_id):
        with stored.connections.transaction() as tx:
            tx.sql.execute(text(f"LOCK TABLE worker_calls IN {mode} MODE"))
            for _ in range(2):
                with pytest.raises(Unavailable):
                    calls._look()

        assert "leased" == state_after_a_look()
        eventually(lambda: "unknown" == state_after_a_look(), seconds=10)
    own.close_pool()
