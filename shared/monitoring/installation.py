"""The installation as its operator sees it: queues, workers, leases and stuck runs of all orgs.

What is read are ids, names of orgs, states and times: no title, message or metadata of an org. Call
these with connections of the service as a whole.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row

from arkloop.shared.config import Settings
from arkloop.shared.runs.live_workers import SILENT_HEARTBEATS
from arkloop.shared.storage.sql_files import statement

#: Rows of a list that has no pages.
MOST = 200

_QUEUES = statement(__package__, "queues_of_orgs")
_WORKERS = statement(__package__, "worker_processes")
_LEASES = statement(__package__, "leases")
_STUCK = statement(__package__, "stuck_runs")
_RETAINED = statement(__package__, "retained")


def queues(sql: Connection, org_id: UUID | None = None) -> Sequence[Row[Any]]:
    """Return the orgs with runs that have not ended, the longest wait for a worker first.

    Suspended orgs come last, those without such a run among them. With `org_id`, this one alone.
    """
    return sql.exec_driver_sql(_QUEUES, {"limit": MOST, "org_id": org_id}).all()


def workers(sql: Connection, settings: Settings) -> Sequence[Row[Any]]:
    """Return the worker processes of the last day, those that are alive first.

    `hostname` of an agent worker, which has an `org_id`, is the name of its agent.
    """
    values = {
        "lease": settings.lease_seconds,
        "silence": settings.heartbeat_seconds * SILENT_HEARTBEATS,
        "limit": MOST,
    }
    return sql.exec_driver_sql(_WORKERS, values).all()


def leases(
    sql: Connection,
    settings: Settings,
    *,
    worker_id: UUID | None,
    limit: int,
    before: tuple[datetime, UUID] | None,
) -> Sequence[Row[Any]]:
    """Return the runs that workers execute, newest first; perhaps those of one worker alone."""
    before_at, before_id = before or (None, None)
    values = {
        "lease": settings.lease_seconds,
        "worker_id": worker_id,
        "limit": limit,
        "before_at": before_at,
        "before_id": before_id,
    }
    return sql.exec_driver_sql(_LEASES, values).all()


def stuck_runs(
    sql: Connection, settings: Settings, *, queued_seconds: int, silent_seconds: int
) -> Sequence[Row[Any]]:
    """Return runs that should have moved on by now, the longest stuck first.

    These are runs that were queued for longer than `queued_seconds`, or have written no event for
    longer than `silent_seconds` while a worker executes them, and what the sweep has left.
    """
    values = {
        "queued": queued_seconds,
        "silent": silent_seconds,
        "lease": settings.lease_seconds,
        "limit": MOST,
    }
    return sql.exec_driver_sql(_STUCK, values).all()


def retained(sql: Connection, retention_days: int) -> Row[Any]:
    """Return numbers of runs: those that are kept, too old, or deleted but for their events."""
    return sql.exec_driver_sql(_RETAINED, {"days": retention_days}).one()
