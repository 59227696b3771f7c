"""Waiting for calls of tool workers when no signal comes."""

from collections.abc import Callable
from uuid import UUID

from arkloop.shared import ids
from arkloop.shared.runs import worker_calls
from arkloop.shared.runs.states import RunState
from arkloop.shared.runs.worker_calls import Call, Worker
from arkloop.shared.storage.connections import Connections
from arkloop.worker.process.worker_calls import WorkerCalls
from tests.clients import User


def test_a_result_is_found_without_its_signal(
    connections: Connections, alice: User, make_run: Callable[..., UUID]
) -> None:
    """A look at the queue finds the end of a call whose signal was lost."""
    run_id = make_run(alice, alice.thread(), RunState.EXECUTING, fence=1, owner=ids.new_id())
    call = Call(
        run_id=run_id,
        tool_call_id="c",
        org_id=alice.org_id,
        pool="shop",
        tool="pay",
        request={"arguments": {}},
        idempotent=False,
        timeout_seconds=60,
    )
    worker = Worker(alice.org_id, "shop", "w")
    calls = WorkerCalls(connections)
    try:
        with connections.statement() as tx:
            call_id = worker_calls.add(tx, call, fence=1)
        with calls.waiting(call_id, run_id) as news:
            with connections.statement() as tx:
                worker_calls.take(tx, worker, ["pay"], limit=1, lease_seconds=60)
            with connections.statement() as tx:
                worker_calls.end(tx, worker, call_id, 1, output="paid", is_error=False)

            assert news.wait(60)
    finally:
        calls.stop()
