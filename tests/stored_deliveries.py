"""Deliveries of webhooks as they stand in a real Postgres."""

from typing import Any
from uuid import UUID

from sqlalchemy import insert, text, update

from arkloop.shared.delivery import endpoints
from arkloop.shared.ids import new_id
from arkloop.shared.storage.connections import Connections, Transaction
from arkloop.shared.storage.tables.accounts import orgs
from arkloop.shared.storage.tables.delivery import webhook_deliveries
from tests.clients import User


def endpoint(tx: Transaction, org_id: UUID) -> UUID:
    url, types = "https://shop.example/hook", endpoints.EVENT_TYPES
    row, _ = endpoints.create(tx, org_id, url=url, description="", event_types=types)
    return UUID(str(row.id))


def deliveries(
    tx: Transaction, org_id: UUID, endpoint_id: UUID, *due_at: Any, run_id: UUID | None = None
) -> None:
    """Store pending deliveries of one run, of which each waits for the one before it."""
    run_id = run_id or new_id()
    of_run = {"org_id": org_id, "endpoint_id": endpoint_id, "run_id": run_id, "ordered_by": run_id}
    for seq, due in enumerate(due_at, 1):
        row = {"id": new_id(), "seq": seq, "type": "run.completed", "data": "{}", "due_at": due}
        tx.sql.execute(insert(webhook_deliveries).values(**of_run, **row))


def unclaimed(connections: Connections, user: User, moved: User, due_at: Any, later: Any) -> None:
    """Store deliveries that were due at `due_at` and that no worker claims.

    Their endpoints are disabled or deleted, the org has moved, or they wait for one that is due
    `later`.
    """
    with connections.transaction() as tx:
        disabled, deleted, enabled = (endpoint(tx, user.org_id) for _ in range(3))
        for endpoint_id in (disabled, deleted):
            deliveries(tx, user.org_id, endpoint_id, due_at)
        deliveries(tx, user.org_id, enabled, later, due_at)
        endpoints.change(tx, user.org_id, disabled, {"enabled": False})
        endpoints.remove(tx, user.org_id, deleted)
        deliveries(tx, moved.org_id, endpoint(tx, moved.org_id), due_at)
        is_it = orgs.c.id == moved.org_id
        away = {"suspended_at": due_at, "suspension_reason": "moved", "moved_to": new_id()}
        tx.sql.execute(update(orgs).where(is_it).values(**away))


def delete_all(connections: Connections) -> None:
    with connections.transaction() as tx:
        tx.sql.execute(text("TRUNCATE webhook_deliveries, webhook_endpoints"))
