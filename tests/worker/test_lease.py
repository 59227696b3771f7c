"""The lease of a process: its row, its lock, and how soon both are back."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
from sqlalchemy import text

from shared.config import Settings
from shared.connections import Connections
from tests.waiting import eventually
from worker.lease import Lease

_SESSIONS = """
SELECT l.pid FROM pg_locks l JOIN workers w
    ON l.classid = (w.lock_key >> 32)::oid AND l.objid = (w.lock_key & 4294967295)::oid
WHERE l.locktype = 'advisory' AND l.granted AND w.id = :id
"""


@pytest.fixture
def lease(settings: Settings) -> Iterator[Lease]:
    """One that renews itself every minute."""
    slow = replace(settings, lease_seconds=600, heartbeat_seconds=60)
    made = Lease(slow, dict, lambda run_id: None)
    assert made.wait_until_valid(10)
    yield made
    made.stop()


def sessions(connections: Connections, lease: Lease) -> list[int]:
    """The process ids of the sessions that hold the lease's lock."""
    with connections.reading() as sql:
        return list(sql.scalars(text(_SESSIONS), {"id": lease.worker_id}))


def test_a_lease_has_a_lock(connections: Connections, lease: Lease) -> None:
    """The kernel gives it back when the process dies, however it dies."""
    eventually(lambda: len(sessions(connections, lease)) == 1)
    assert lease.is_valid


def test_a_lock_that_was_lost_is_taken_again_at_once(
    connections: Connections, lease: Lease
) -> None:
    """Not at the next heartbeat: by then others might take the process for dead."""
    eventually(lambda: len(sessions(connections, lease)) == 1)
    [lost] = sessions(connections, lease)

    with connections.reading() as sql:
        assert sql.scalar(text("SELECT pg_terminate_backend(:pid)"), {"pid": lost})

    eventually(lambda: len(set(sessions(connections, lease)) - {lost}) == 1)
    assert lease.is_valid
