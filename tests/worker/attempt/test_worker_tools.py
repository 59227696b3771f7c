"""Tools of the customer's workers, as a run gets them."""

from typing import Any

from arkloop.shared.catalog import worker_tools as stored_tools
from arkloop.shared.catalog.worker_tools import Definition
from arkloop.worker.attempt import worker_tools
from arkloop.worker.attempt.claimed_run import ClaimedRun
from arkloop.worker.process.process import WorkerProcess
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
