"""An org that has endpoints of webhooks, for the tests of their deliveries."""

import json
from typing import Any
from uuid import UUID

from sqlalchemy import Row, update

from arkloop.shared.delivery import deliveries, endpoints
from arkloop.shared.delivery.deliveries import Attempt
from arkloop.shared.storage.connections import Connections
from arkloop.shared.storage.tables.delivery import webhook_deliveries
from tests.stored_runs import StoredRuns

#: Results of attempts.
OK, BROKEN = {"response_status": 200}, {"response_status": 500}


class Org:
    """An org with endpoints, and its view of the deliveries."""

    def __init__(self, connections: Connections, stored: StoredRuns) -> None:
        self.connections, self.stored = connections, stored
        self.id = stored.actor.org_id

    def endpoint(self, *event_types: str) -> UUID:
        with self.connections.transaction() as tx:
            row, _ = endpoints.create(
                tx,
                self.id,
                url="https://shop.example/hook",
                description="",
                event_types=event_types or endpoints.EVENT_TYPES,
            )
        return UUID(str(row.id))

    def ended(self, **how: Any) -> UUID:
        """End a run of the org."""
        claim = self.stored.claimed()
        assert self.stored.finish(claim, **how)
        return claim.run_id

    def listed(self, endpoint_id: UUID, state: str | None = None) -> list[Row[Any]]:
        with self.connections.reading() as sql:
            rows = deliveries.list_(sql, self.id, endpoint_id, limit=50, before=None, state=state)
        return rows[::-1]

    def states(self, endpoint_id: UUID) -> list[tuple[str, str]]:
        return [(row.type, row.state) for row in self.listed(endpoint_id)]

    def data(self, endpoint_id: UUID) -> list[dict[str, Any]]:
        with self.connections.reading() as sql:
            found = [
                deliveries.find(sql, self.id, endpoint_id, row.id)
                for row in self.listed(endpoint_id)
            ]
        return [json.loads(row.data) for row in found]

    def claim(self, *, most: int = 50) -> list[Row[Any]]:
        with self.connections.statement() as tx:
            return list(deliveries.claim(tx, capacity=50, most_per_endpoint=most, busy={}))

    def tried(self, row: Row[Any], **result: Any) -> None:
        """Record the result of an attempt."""
        with self.connections.statement() as tx:
            deliveries.record(tx, [Attempt(row.id, row.attempts, row.url, **result)])

    def set(self, delivery_id: UUID, **columns: Any) -> None:
        with self.connections.transaction() as tx:
            of_it = webhook_deliveries.c.id == delivery_id
            tx.sql.execute(update(webhook_deliveries).where(of_it).values(**columns))

    def shown(self, endpoint_id: UUID) -> Row[Any]:
        with self.connections.reading() as sql:
            return endpoints.find(sql, self.id, endpoint_id)
