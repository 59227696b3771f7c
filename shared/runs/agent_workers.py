"""Agent workers: processes of customers that execute runs, each a row of `workers` with a lease."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, func, select

from arkloop.shared.errors import InvalidRequest
from arkloop.shared.runs.states import RunState
from arkloop.shared.storage.connections import Transaction
from arkloop.shared.storage.tables.runs import runs, workers

# A lock key of 0: no lock says whether it lives, only its lease.
_RENEW = """
INSERT INTO workers (id, hostname, pid, lock_key, org_id)
VALUES (%(id)s, %(agent)s, 0, 0, %(org_id)s)
ON CONFLICT (id) DO UPDATE SET seen_at = now() WHERE workers.org_id = excluded.org_id
RETURNING seen_at
"""


@dataclass(frozen=True, slots=True)
class AgentWorker:
    """A process that executes runs of `agent`; it has chosen its `id` itself."""

    id: UUID
    org_id: UUID
    agent: str


def news_topic(worker_id: UUID) -> str:
    """Return the topic of the heartbeats that wait for news of the worker's runs."""
    return f"agent-worker:{worker_id}"


def renew(tx: Transaction, worker: AgentWorker) -> datetime:
    """Renew the worker's lease on all its runs; returns the time from which it counts.

    Raises:
        InvalidRequest: the id is that of another process.
    """
    values = {"id": worker.id, "agent": worker.agent, "org_id": worker.org_id}
    seen_at: datetime | None = tx.sql.exec_driver_sql(_RENEW, values).scalar()
    if seen_at is None:
        raise InvalidRequest(worker_id=["is the id of another worker"])
    return seen_at


def is_silent(sql: Connection, worker: AgentWorker, lease_seconds: float) -> bool:
    """Return whether the worker has not renewed its lease in time."""
    lease = func.make_interval(0, 0, 0, 0, 0, 0, lease_seconds)
    heard = select(workers.c.id).where(
        workers.c.id == worker.id, workers.c.seen_at > func.now() - lease
    )
    return sql.scalar(heard) is None


def statuses(
    sql: Connection, worker: AgentWorker, fences: Mapping[UUID, int]
) -> dict[UUID, dict[str, Any]]:
    """Return whether the worker still holds each run under this fence, and has to cancel it."""
    rows = sql.execute(
        select(runs.c.id, runs.c.fence, runs.c.state, runs.c.cancel_requested_at).where(
            runs.c.id.in_(list(fences)), runs.c.org_id == worker.org_id
        )
    )
    found = {row.id: row for row in rows}
    shown: dict[UUID, dict[str, Any]] = {}
    for run_id, fence in fences.items():
        row = found.get(run_id)
        is_held = row is not None and row.fence == fence and row.state == RunState.EXECUTING
        shown[run_id] = {
            "is_held": is_held,
            "cancel_requested": bool(is_held and row is not None and row.cancel_requested_at),
        }
    return shown
