"""Several heartbeats of one agent worker, each of which names some of its runs."""

import socket
import threading
from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest
from flask import Flask
from sqlalchemy import select, text

from arkloop.shared.runs import agent_workers, recovery
from arkloop.shared.storage.connections import Connections
from arkloop.shared.storage.tables.runs import workers
from tests.api.endpoints.agent_worker import MakeWorker, settings, start, worker
from tests.waiting import eventually

pytestmark = pytest.mark.own_database

__all__ = ["settings", "start", "worker"]  # fixtures


def test_a_closed_connection_hands_over_what_its_heartbeat_has_named(
    worker: MakeWorker, start: Callable[..., str], connections: Connections
) -> None:
    """A run for which another heartbeat waits stays with its worker, and so does its lease."""
    first, second = start(), start()
    mine = worker()
    [_, mine.run] = mine.poll(max_runs=2)
    with connections.reading() as sql:
        seen_at = sql.scalar(select(workers.c.seen_at).where(workers.c.id == UUID(mine.id)))
    assert seen_at is not None

    recovery.recover_from(connections, UUID(mine.id), seen_at, [UUID(first)])

    assert [(first, 2)] == [(run["run_id"], run["attempt"]) for run in worker().poll(max_runs=2)]
    with connections.reading() as sql:
        kept = sql.scalar(select(workers.c.seen_at).where(workers.c.id == UUID(mine.id)))
    assert seen_at == kept
    assert (second, True) == (mine.run["run_id"], mine.beat()[0]["is_held"])


def test_a_heartbeat_that_waits_reports_what_a_later_one_has_lost(
    app: Flask, worker: MakeWorker, start: Callable[..., str], connections: Connections
) -> None:
    """Both named the run, and the connection of the later one was closed."""
    run_id, mine, reported = start(), worker(), list[dict[str, Any]]()
    held = {"run_id": run_id, "fence": mine.take()["fence"]}

    def beat() -> None:
        response = mine.post("heartbeat", worker_id=mine.id, wait_seconds=30, runs=[held])
        reported.extend(response.json["runs"])

    waiting = threading.Thread(target=beat)
    waiting.start()
    hub, topic = app.extensions["arkloop.polls"], agent_workers.news_topic(UUID(mine.id))
    eventually(lambda: topic in hub._waiting and hub._is_listening)
    mine.beat()
    with connections.reading() as sql:
        seen_at = sql.scalar(select(workers.c.seen_at).where(workers.c.id == UUID(mine.id)))
    assert seen_at is not None

    recovery.recover_from(connections, UUID(mine.id), seen_at, [UUID(run_id)])
    waiting.join(60)

    assert [(run_id, False)] == [(run["run_id"], run["is_held"]) for run in reported]


def test_a_lost_heartbeat_takes_no_runs_while_postgres_is_unavailable(
    app: Flask, worker: MakeWorker, start: Callable[..., str], connections: Connections
) -> None:
    """The runs are lost when the lease ends, and nothing is logged as a bug."""
    run_id, mine, found = start(), worker(), list[Any]()
    held = {"run_id": run_id, "fence": mine.take()["fence"]}
    ours, theirs = socket.socketpair()

    def beat() -> None:
        body = {"worker_id": mine.id, "wait_seconds": 30, "runs": [held]}
        path, environ = "/v1/agent-workers/mine:heartbeat", {"gunicorn.socket": ours}
        found.append(mine.user.post(path, json=body, environ_overrides=environ).json)

    waiting = threading.Thread(target=beat)
    waiting.start()
    hub, topic = app.extensions["arkloop.polls"], agent_workers.news_topic(UUID(mine.id))
    eventually(lambda: topic in hub._waiting)
    with ours, theirs, connections.transaction() as tx:
        tx.sql.execute(text("LOCK TABLE workers IN ACCESS EXCLUSIVE MODE"))
        theirs.close()
        waiting.join(60)

    [response] = found
    assert [(run_id, True)] == [(run["run_id"], run["is_held"]) for run in response["runs"]]
