"""Queued runs that agent workers execute: their announcement, and the search for them."""

from collections.abc import Iterable
from uuid import UUID

from sqlalchemy import Connection, select, text, union_all
from sqlalchemy.dialects.postgresql import distinct_on

from arkloop.shared.storage.notifications import Enqueue, Notification
from arkloop.shared.storage.signals import Wake
from arkloop.shared.storage.tables.runs import runs

#: Literal text: see `tables.IS_ACTIVE`.
_QUEUED = text("state = 'queued' AND agent IS NOT NULL")


def topic(org_id: UUID, agent: str) -> str:
    """Return the topic of the long polls that wait for runs of this agent."""
    return f"agent:{org_id}:{agent}"


def announce(run_id: UUID, org_id: UUID, agent: str | None) -> Notification:
    """Return the notification of a queued run, for the workers that execute it."""
    return Enqueue(run_id) if agent is None else Wake(topic(org_id, agent), str(run_id))


def find(
    sql: Connection, org_id: UUID, agent: str, worker_id: UUID, limit: int
) -> tuple[list[UUID], list[UUID]]:
    """Return the runs that the worker holds, and at most `limit` to claim, oldest first."""
    held = select(runs.c.id, runs.c.fence).where(
        runs.c.owner == worker_id,
        text("state = 'executing'"),
        runs.c.org_id == org_id,
        runs.c.agent == agent,
    )
    queued = (
        select(runs.c.id, runs.c.fence * 0 - 1)
        .where(
            _QUEUED,
            runs.c.org_id == org_id,
            runs.c.agent == agent,
            runs.c.cancel_requested_at.is_(None),
        )
        .order_by(runs.c.queued_at)
        .limit(limit)
        .subquery()
    )
    rows = sql.execute(union_all(held, select(queued))).all()
    return [r.id for r in rows if r.fence >= 0], [r.id for r in rows if r.fence < 0]


def look(sql: Connection) -> Iterable[tuple[str, str]]:
    """Return topic and run id of one queued run of each agent that has some."""
    waiting = (
        select(runs.c.id, runs.c.org_id, runs.c.agent)
        .ext(distinct_on(runs.c.org_id, runs.c.agent))
        .where(_QUEUED, runs.c.cancel_requested_at.is_(None))
        .order_by(runs.c.org_id, runs.c.agent, runs.c.queued_at)
    )
    return [(topic(row.org_id, row.agent), str(row.id)) for row in sql.execute(waiting)]
