"""Heartbeats of workers while Postgres is slow."""

import time
from collections.abc import Callable
from typing import Any
from uuid import UUID

from sqlalchemy import Select, select, text

from arkloop.shared import ids
from arkloop.shared.storage.connections import Connections
from arkloop.shared.storage.tables.runs import worker_calls, workers
from tests.api.endpoints.test_tool_workers import call, queued
from tests.clients import User
from tests.shared.runs.test_queries import beside
from tests.shared_app import patient_connections
from tests.tool_worker import PAY

__all__ = ["call", "patient_connections", "queued"]  # fixtures

#: The time for which Postgres is slow, and that a heartbeat waits: together they would be twice it.
SECONDS = 3


def seconds_behind(connections: Connections, locked: Select[Any], beat: Callable[[], Any]) -> float:
    """Return for how long a heartbeat takes that first waits for a row that is locked."""
    took: list[float] = []

    def timed() -> None:
        began = time.monotonic()
        assert 200 == beat().status_code
        took.append(time.monotonic() - began)

    with connections.transaction() as tx:
        assert 1 == len(tx.sql.execute(locked.with_for_update()).all())
        join = beside(connections, timed)
        tx.sql.execute(text("SELECT pg_sleep(:seconds)"), {"seconds": SECONDS})
    join()
    return took[0]


def test_an_agent_worker_s_wait_begins_with_its_request(
    connections: Connections, alice: User
) -> None:
    """A slow renewal of the lease does not delay the response, which the worker would give up."""
    worker = alice.api_key("agents.work")
    body = {"worker_id": str(ids.new_id()), "runs": []}

    def beat(wait_seconds: int) -> Any:
        path = "/v1/agent-workers/mine:heartbeat"
        return worker.post(path, json={**body, "wait_seconds": wait_seconds})

    beat(0)
    row = select(workers.c.id).where(workers.c.id == UUID(str(body["worker_id"])))

    took = seconds_behind(connections, row, lambda: beat(SECONDS))
    assert SECONDS <= took < 2 * SECONDS


def test_a_tool_worker_s_wait_begins_with_its_request(
    connections: Connections, alice: User, queued: UUID
) -> None:
    """A slow extension of the leases does not delay the response."""
    worker, pool = alice.api_key("tools.work"), "/v1/tool-workers/shop"
    polled = worker.post(f"{pool}:poll", json={"worker_id": "w", "wait_seconds": 0, "tools": [PAY]})
    assert polled.json is not None
    held = [{"call_id": call["call_id"], "fence": call["fence"]} for call in polled.json["calls"]]
    body = {"worker_id": "w", "calls": held, "wait_seconds": SECONDS}
    row = select(worker_calls.c.id).where(worker_calls.c.id == queued)

    took = seconds_behind(connections, row, lambda: worker.post(f"{pool}:heartbeat", json=body))
    assert SECONDS <= took < 2 * SECONDS
