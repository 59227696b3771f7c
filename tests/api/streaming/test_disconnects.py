"""Requests of workers whose connection is closed before they wait."""

import socket
from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import select

from arkloop.shared.storage.connections import Connections
from arkloop.shared.storage.tables.runs import worker_calls, workers
from tests.api.endpoints.agent_worker import MakeWorker, start, worker
from tests.api.endpoints.test_tool_workers import call, post, queued
from tests.clients import User
from tests.shared.runs.test_queries import beside
from tests.shared_app import patient_connections
from tests.tool_worker import PAY

__all__ = ["call", "patient_connections", "queued", "start", "worker"]  # fixtures

TOOL_WORKER = {"worker_id": "w", "wait_seconds": 5}


@pytest.fixture
def left() -> Iterator[dict[str, Any]]:
    """The environment of a request whose client has closed the connection."""
    ours, theirs = socket.socketpair()
    theirs.close()
    with ours:
        yield {"gunicorn.socket": ours}


def test_a_late_heartbeat_of_an_agent_worker_has_no_effect(
    worker: MakeWorker, start: Callable[..., str], connections: Connections, left: dict[str, Any]
) -> None:
    """A heartbeat read after its client has left takes no run from a worker that is alive."""
    start()
    mine = worker()
    mine.take()
    mine.beat()
    seen_at = select(workers.c.seen_at).where(workers.c.id == UUID(mine.id))
    with connections.reading() as sql:
        before = sql.scalar(seen_at)

    held = {"run_id": mine.run["run_id"], "fence": mine.run["fence"]}
    body = {"worker_id": mine.id, "wait_seconds": 5, "runs": [held]}
    late = mine.user.post("/v1/agent-workers/mine:heartbeat", json=body, environ_overrides=left)

    assert 200 == late.status_code, late.text
    with connections.reading() as sql:
        assert before == sql.scalar(seen_at)
    assert mine.beat()[0]["is_held"]


def test_a_heartbeat_whose_client_leaves_during_its_renewal_takes_no_run(
    worker: MakeWorker, start: Callable[..., str], connections: Connections
) -> None:
    """A heartbeat given up while Postgres was slow takes no run: a newer one may wait elsewhere."""
    start()
    mine = worker()
    mine.take()
    held = {"run_id": mine.run["run_id"], "fence": mine.run["fence"]}
    body = {"worker_id": mine.id, "wait_seconds": 5, "runs": [held]}
    ours, theirs = socket.socketpair()

    def beat() -> None:
        path, environ = "/v1/agent-workers/mine:heartbeat", {"gunicorn.socket": ours}
        response = mine.user.post(path, json=body, environ_overrides=environ)
        assert 200 == response.status_code, response.text

    row = select(workers.c.id).where(workers.c.id == UUID(mine.id))
    with ours, theirs:
        with connections.transaction() as tx:
            tx.sql.execute(row.with_for_update())
            join = beside(connections, beat)
            theirs.close()
        join()

    assert mine.beat()[0]["is_held"]


def test_a_late_heartbeat_of_a_tool_worker_has_no_effect(
    alice: User, queued: UUID, connections: Connections, left: dict[str, Any]
) -> None:
    """A heartbeat read after its client has left takes no call from a worker that is alive."""
    key = alice.api_key("tools.work")
    post(key, "poll", **TOOL_WORKER, tools=[PAY])
    row = select(worker_calls).where(worker_calls.c.id == queued)
    with connections.reading() as sql:
        before = sql.execute(row).one()

    body = {**TOOL_WORKER, "calls": [{"call_id": str(queued), "fence": before.fence}]}
    late = key.post("/v1/tool-workers/shop:heartbeat", json=body, environ_overrides=left)

    assert 200 == late.status_code, late.text
    assert "leased" == before.state
    with connections.reading() as sql:
        assert before == sql.execute(row).one()


def test_a_late_poll_of_an_agent_worker_gets_no_run(
    worker: MakeWorker, start: Callable[..., str], left: dict[str, Any]
) -> None:
    """A run that waits is left for the next poll when a client has left before its poll is read."""
    run_id = start()
    mine = worker()

    body = {"worker_id": mine.id, "wait_seconds": 5}
    late = mine.user.post("/v1/agent-workers/mine:poll", json=body, environ_overrides=left)

    assert late.json is not None
    assert (200, []) == (late.status_code, late.json["runs"])
    run = worker().take()
    assert (run_id, 1) == (run["run_id"], run["attempt"])


def test_a_late_poll_of_a_tool_worker_gets_no_call(
    alice: User, queued: UUID, left: dict[str, Any]
) -> None:
    """A call that must not be repeated is not handed to a client that has left."""
    key = alice.api_key("tools.work")

    body = {**TOOL_WORKER, "tools": [PAY]}
    late = key.post("/v1/tool-workers/shop:poll", json=body, environ_overrides=left)

    assert late.json is not None
    assert (200, []) == (late.status_code, late.json["calls"])
    (call,) = post(key, "poll", **TOOL_WORKER, tools=[PAY]).json["calls"]
    assert (str(queued), 1) == (call["call_id"], call["fence"])
