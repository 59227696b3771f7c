"""Tools of the customer's workers, as a run gets them."""

from typing import Any

import pytest

from arkloop.shared.catalog import worker_tools as stored_tools
from arkloop.shared.catalog.worker_tools import Definition
from arkloop.shared.runs import worker_calls
from arkloop.shared.runs.worker_calls import Worker
from arkloop.worker.attempt import worker_tools
from arkloop.worker.attempt.claimed_run import ClaimedRun
from arkloop.worker.attempt.preparation import identity_of
from arkloop.worker.contract.outcomes import StopRun, TimeToLand
from arkloop.worker.process.process import WorkerProcess
from arkloop.worker.tools import CallInfo, ToolFailed
from tests.stored_runs import StoredRuns

TEXT = {"text": {"type": "string"}}


def test_each_schema_is_one_of_an_object(
    process: WorkerProcess, stored: StoredRuns, attempt: ClaimedRun
) -> None:
    """A missing type is filled in; a tool stored with another one is left out.

    Vendors refuse a whole request for one such tool.
    """
    schemas: dict[str, dict[str, Any]] = {
        "full": {"type": "object", "properties": TEXT},
        "empty": {},
        "untyped": {"properties": TEXT, "required": ["text"]},
        "array": {"type": "array"},
        "nullable": {"type": ["object", "null"]},
    }
    tools = [Definition(name=n, description="A tool.", parameters=p) for n, p in schemas.items()]
    with stored.connections.transaction() as tx:
        stored_tools.register(tx, stored.actor.org_id, "shop", tools)
    with stored.connections.reading() as sql:
        rows = stored_tools.of_pools(sql, stored.actor.org_id, ["shop"])

    found, also_named = worker_tools.tools_of(process.worker_calls, attempt, rows, ())

    assert {
        "full": schemas["full"],
        "empty": {"type": "object", "properties": {}},
        "untyped": {"type": "object", "properties": TEXT, "required": ["text"]},
    } == {name: tool.spec.parameters for name, tool in found.items()}
    assert found.keys() == also_named.keys()


@pytest.mark.parametrize("is_fetched", [False, True])
def test_a_call_that_nobody_fetched_before_the_run_s_time_is_over_was_not_made(
    process: WorkerProcess, stored: StoredRuns, attempt: ClaimedRun, is_fetched: bool
) -> None:
    """The run's last call reads that it has had no effect; of one in progress nobody knows."""
    org_id, claim = stored.actor.org_id, attempt.claim
    with stored.connections.transaction() as tx:
        pay = Definition(name="pay", description="Pay.", parameters={})
        stored_tools.register(tx, org_id, "till", [pay])
    with stored.connections.reading() as sql:
        rows = stored_tools.of_pools(sql, org_id, ["till"])
    found, _ = worker_tools.tools_of(process.worker_calls, attempt, rows, ())
    info = CallInfo.of(identity_of(claim), "c")
    if is_fetched:
        call = worker_calls.Call(
            run_id=claim.run_id,
            tool_call_id="c",
            org_id=org_id,
            pool="till",
            tool="pay",
            request={},
            idempotent=False,
            timeout_seconds=60,
        )
        with stored.connections.statement() as tx:
            worker_calls.add(tx, call, fence=claim.fence)
        with stored.connections.statement() as tx:
            worker = Worker(org_id, "till", "w")
            assert worker_calls.take(tx, worker, ["pay"], limit=1, lease_seconds=60)
    attempt.stop.can_land = True
    attempt.stop.set(TimeToLand())

    with pytest.raises(StopRun if is_fetched else ToolFailed) as ended:
        found["pay"](attempt, info, {})

    assert is_fetched or "Not executed" in str(ended.value)
