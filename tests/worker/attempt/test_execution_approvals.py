"""Approvals of calls whose tool is another one, or has another name, by the time of the reply."""

from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import select

from arkloop.shared.catalog import http_tools, mcp_configs, published_personas, worker_tools
from arkloop.shared.catalog.worker_tools import Definition
from arkloop.shared.events import types
from arkloop.shared.events.event_log import data_of
from arkloop.shared.runs.states import RunState
from arkloop.shared.storage.tables.runs import worker_calls
from arkloop.worker.attempt import execution
from arkloop.worker.mcp.descriptions import describe
from arkloop.worker.process.process import WorkerProcess
from tests.stored_runs import StoredRuns
from tests.worker.attempt.executed_runs import scripted

SHIP = {"tool": "ship", "args": {"order": "A1"}}
SCHEMA = {"type": "object", "properties": {"order": {"type": "string"}}}


@pytest.fixture(autouse=True)
def without_lingering(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execution, "LINGER_SECONDS", 0.0)  # nobody answers meanwhile


def register(stored: StoredRuns, pool: str) -> None:
    ship = Definition(name="ship", description=pool, parameters=SCHEMA, timeout_seconds=0.1)
    with stored.connections.transaction() as tx:
        worker_tools.register(tx, stored.actor.org_id, pool, [ship])


def add_http_tool(stored: StoredRuns) -> UUID:
    with stored.connections.transaction() as tx:
        made, _ = http_tools.create(
            tx,
            stored.actor.org_id,
            name="ship",
            description="Ship an order.",
            parameters=SCHEMA,
            url="https://shop.example/tools",
            idempotent=False,
            timeout_seconds=1,
        )
    return UUID(str(made.id))


def waiting(stored: StoredRuns, process: WorkerProcess, **persona: Any) -> UUID:
    """Execute a run up to the question about its call of `ship`."""
    with stored.connections.transaction() as tx:
        fields = {"require_approval": ["ship"], **persona}
        published_personas.publish(tx, stored.actor, "shipper", "1", fields)
    run_id = scripted(stored, SHIP, {"say": "ok"}, persona_id="shipper@1")
    execution.execute(process, run_id)
    assert RunState.WAITING == stored.state(run_id)
    return run_id


def add_mcp_tool(stored: StoredRuns) -> UUID:
    """Store a server whose tools are listed, but that nobody can reach."""
    org_id, url = stored.actor.org_id, "https://shop.example/mcp"
    with stored.connections.transaction() as tx:
        made = mcp_configs.create(tx, org_id, name="shop", transport="streamable_http", url=url)
        mcp_configs.record(tx, made.id, [describe("ship", "Ship.", SCHEMA)], as_of=None)
    return UUID(str(made.id))


def approved(stored: StoredRuns, process: WorkerProcess, run_id: UUID, answer: str = "yes") -> str:
    """Answer, execute the run with tools as they are now; return the call's result."""
    process.catalog = stored.catalog()
    stored.answer(run_id, answer)
    execution.execute(process, run_id)
    [result] = [one for one in stored.events(run_id) if one.type == types.ToolResult.type]
    return str(data_of(result.payload)["output"])


def pools_called(stored: StoredRuns, run_id: UUID) -> list[str]:
    with stored.connections.reading() as sql:
        query = select(worker_calls.c.pool).where(worker_calls.c.run_id == run_id)
        return list(sql.scalars(query))


def test_an_approved_call_reaches_its_pool_under_a_new_name(
    stored: StoredRuns, process: WorkerProcess
) -> None:
    """Another pool gets a tool of the same name meanwhile: the model reads `east_ship` now."""
    register(stored, "east")
    run_id = waiting(stored, process, tool_workers=["east", "west"])
    asked = stored.row(run_id)["pending_input"]
    assert {"pool": "east", "name": "ship"} == asked["worker_tool"]

    register(stored, "west")

    assert "No worker of pool 'east' is connected" in approved(stored, process, run_id)
    assert ["east"] == pools_called(stored, run_id)


def test_an_approval_is_not_valid_for_another_pool(
    stored: StoredRuns, process: WorkerProcess
) -> None:
    """Its tool has the name by the time of the reply."""
    register(stored, "east")
    run_id = waiting(stored, process, tool_workers=["east", "west"])

    with stored.connections.transaction() as tx:
        worker_tools.remove(tx, stored.actor.org_id, "east", "ship")
    register(stored, "west")

    assert "has changed since it was approved" in approved(stored, process, run_id)
    assert [] == pools_called(stored, run_id)


@pytest.mark.parametrize("has_another", [False, True])
def test_an_approval_is_valid_for_one_http_tool(
    stored: StoredRuns, process: WorkerProcess, has_another: bool
) -> None:
    """Another tool that was created under its name since is not called."""
    tool_id = add_http_tool(stored)
    run_id = waiting(stored, process, tools=["ship"])
    assert {"tool_id": str(tool_id)} == stored.row(run_id)["pending_input"]["http_tool"]

    with stored.connections.transaction() as tx:
        http_tools.remove(tx, stored.actor.org_id, tool_id)
    if has_another:
        add_http_tool(stored)

    why = "has changed since it was approved" if has_another else "is no longer available"
    assert why in approved(stored, process, run_id)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("yes", "Not executed: tool 'ship' is no longer available."),
        ("Which carrier?", "Not executed: tool 'ship' is no longer available."),
        ('{"decision": "deny", "reason": "Sold out."}', "The call was denied: Sold out."),
    ],
)
def test_a_reply_about_a_server_that_was_deleted_ends_the_call(
    stored: StoredRuns, process: WorkerProcess, answer: str, expected: str
) -> None:
    """The model reads that the tool is gone, or why the call was denied, and the run completes."""
    config_id = add_mcp_tool(stored)
    run_id = waiting(stored, process, mcp=["shop"])
    assert str(config_id) == stored.row(run_id)["pending_input"]["mcp_tool"]["config_id"]
    with stored.connections.transaction() as tx:
        mcp_configs.remove(tx, stored.actor.org_id, config_id)

    assert expected == approved(stored, process, run_id, answer)
    assert RunState.COMPLETED == stored.state(run_id)


def test_a_run_that_asks_about_a_server_that_was_deleted_is_cancelled_at_once(
    stored: StoredRuns, process: WorkerProcess
) -> None:
    """It needs neither its tools nor a worker for that."""
    config_id = add_mcp_tool(stored)
    run_id = waiting(stored, process, mcp=["shop"])
    with stored.connections.transaction() as tx:
        mcp_configs.remove(tx, stored.actor.org_id, config_id)

    stored.cancel(run_id)

    assert RunState.CANCELLED == stored.state(run_id)
