"""The workers that are alive, as far as Postgres has heard from them."""

from uuid import UUID

from sqlalchemy import Connection, func, select

from arkloop.shared.storage.tables.runs import workers

#: A worker of the service that missed this number of heartbeats counts as away.
SILENT_HEARTBEATS = 3


def of_service(sql: Connection, heartbeat_seconds: float, *, but: UUID | None = None) -> int:
    """Return how many worker processes of the service are alive, perhaps without one of them."""
    recent = workers.c.seen_at > _ago(heartbeat_seconds * SILENT_HEARTBEATS)
    if but is not None:
        recent &= workers.c.id != but
    return sql.scalar(select(func.count()).where(recent, workers.c.org_id.is_(None))) or 0


def of_agent(sql: Connection, org_id: UUID, agent: str, lease_seconds: float) -> int:
    """Return how many agent workers of the org that execute this agent hold a lease."""
    recent = workers.c.seen_at > _ago(lease_seconds)
    is_one = (workers.c.org_id == org_id) & (workers.c.hostname == agent)
    return sql.scalar(select(func.count()).where(recent, is_one)) or 0


def _ago(seconds: float) -> object:
    return func.now() - func.make_interval(0, 0, 0, 0, 0, 0, seconds)
