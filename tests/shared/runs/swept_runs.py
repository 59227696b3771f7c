"""Runs and workers that the sweep finds, and a lease that is over within seconds."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text

from arkloop.shared.claim import Claim
from arkloop.shared.storage.connections import Connections
from tests.stored_runs import StoredRuns, ago
from tests.waiting import eventually

#: Beyond the lease of these tests.
SILENT = ago(seconds=4)


@pytest.fixture(scope="module")
def connections(connections: Connections) -> Connections:
    """A short lease: nobody waits for long until Postgres has been up for one.

    They were opened for a long one: in a part of it transactions must end, on a busy machine too.
    """
    short = replace(connections.settings, lease_seconds=3, heartbeat_seconds=1)
    return replace(connections, settings=short)


@pytest.fixture(autouse=True, scope="module")
def postgres_is_up_for_longer_than_a_lease(connections: Connections) -> None:
    """Else its start would excuse who was silent; some leases are of 14 seconds."""

    def is_up() -> bool:
        query = text("SELECT pg_postmaster_start_time() < now() - interval '15 seconds'")
        with connections.reading() as sql:
            return bool(sql.scalar(query))

    eventually(is_up)


@pytest.fixture(autouse=True)
def nothing_left_over(connections: Connections) -> Iterator[None]:
    """The sweep looks at everybody's runs and workers: none of another test's is active."""
    yield
    with connections.transaction() as tx:
        tx.sql.execute(text("UPDATE runs SET state = 'cancelled', ended_at = now()"))
        tx.sql.execute(text("DELETE FROM workers"))


@pytest.fixture
def witness(stored: StoredRuns) -> UUID:
    """Another worker, which is heard all the time."""
    return stored.worker(started_at=ago(seconds=60), seen_at=ago(seconds=-3600))


def lost(stored: StoredRuns, **columns: Any) -> Claim:
    """Return the claim of a worker that has been silent for too long."""
    claim = stored.claimed(seen_at=SILENT)
    if columns:
        stored.set(claim.run_id, **columns)
    stored.sent.clear()
    return claim


def with_lease(stored: StoredRuns, *, lease: float, heartbeat: float) -> Connections:
    settings = replace(
        stored.connections.settings, lease_seconds=lease, heartbeat_seconds=heartbeat
    )
    return replace(stored.connections, settings=settings)
