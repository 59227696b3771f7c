"""The time limits of agent workers' runs when the clock of Postgres is set back."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from sqlalchemy import update

from arkloop.shared.storage.connections import Connections
from arkloop.shared.storage.tables.runs import runs
from tests.api.endpoints.agent_worker import MakeWorker, start, worker
from tests.clients import User
from tests.stored_runs import ago

pytestmark = pytest.mark.own_database

__all__ = ["start", "worker"]  # fixtures


@pytest.mark.parametrize("column", ["started_at", "waiting_since"])
def test_a_clock_that_is_set_back_neither_shortens_nor_lengthens_the_time_of_a_run(
    column: str,
    alice: User,
    worker: MakeWorker,
    start: Callable[..., str],
    connections: Connections,
) -> None:
    """The run started, or began to wait, while the clock was an hour ahead."""
    run_id = start()
    mine = worker()
    mine.take()
    mine.write("ask", key="q1", question="Which?")
    with connections.transaction() as tx:
        row = update(runs).where(runs.c.id == UUID(run_id))
        tx.sql.execute(row.values({column: ago(seconds=-3600)}))
    assert 200 == alice.post(f"/v1/runs/{run_id}/input", json={"content": "b"}).status_code

    deadline_at = datetime.fromisoformat(mine.take()["deadline_at"])

    left = deadline_at - datetime.now(UTC)
    assert timedelta(seconds=800) < left <= timedelta(seconds=900)
