"""Usage that tests of its reports store."""

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from sqlalchemy import insert

from arkloop.shared.ids import new_id
from arkloop.shared.storage.connections import Connections
from arkloop.shared.storage.tables.billing import run_usage
from tests.clients import User

NOTHING = {
    "runs": 0,
    "input_tokens": 0,
    "output_tokens": 0,
    "cache_read_tokens": 0,
    "cache_write_tokens": 0,
    "reasoning_tokens": 0,
    "cost_usd": 0,
}


def used(
    connections: Connections, user: User, ended_at: datetime, *costs: str, **columns: Any
) -> None:
    """Store a run that ended then, with a route of its own for each cost."""
    run_id = new_id()
    with connections.transaction() as tx:
        for number, cost in enumerate(costs):
            values = {
                "run_id": run_id,
                "route_id": f"route-{number}",
                "org_id": user.org_id,
                "user_id": user.id,
                "persona_key": "assistant",
                "model": f"model-{number}",
                "input_tokens": 100,
                "output_tokens": 10,
                "cache_read_tokens": 5,
                "cache_write_tokens": 4,
                "reasoning_tokens": 3,
                "usage_source": "reported",
                "cost_usd": Decimal(cost),
                "ended_at": ended_at,
                "month": ended_at.date().replace(day=1),
            }
            tx.sql.execute(insert(run_usage).values({**values, **columns}))


def at(day: int, hour: int = 12) -> datetime:
    return datetime(2026, 3, day, hour, tzinfo=UTC)


MARCH = "from=2026-03-01&to=2026-04-01"


def usage(user: User, query: str = MARCH) -> dict[str, Any]:
    response = user.get(f"/v1/me/usage?{query}")
    assert 200 == response.status_code, response.text
    return dict(response.json or {})
