"""The lease of a process: its row, its lock, and how soon both are back."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any
from uuid import UUID

import psycopg
import pytest
from sqlalchemy import make_url, text

from arkloop.cli.dev.embedded_postgres import EmbeddedPostgres
from arkloop.shared import ids
from arkloop.shared.config import Settings
from arkloop.shared.storage.connections import Connections
from arkloop.shared.storage.keys import Keys
from arkloop.worker.contract.stop_signal import StopSignal
from arkloop.worker.process.lease import RETRY_SECONDS, Lease
from chaos.system.fault_proxy import FaultProxy
from tests.stored_runs import StoredRuns
from tests.waiting import eventually

pytestmark = pytest.mark.processes

_SESSIONS = """
SELECT l.pid FROM pg_locks l JOIN workers w
    ON l.classid = (w.lock_key >> 32)::oid AND l.objid = (w.lock_key & 4294967295)::oid
WHERE l.locktype = 'advisory' AND l.granted AND w.id = :id
"""

# Without space, a renewal fails, or only the registration of a new session.
_RENEWALS, _REGISTRATIONS = "NEW.seen_at <> OLD.seen_at", "NEW.lock_key <> OLD.lock_key"
_REFUSE = """
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN RAISE SQLSTATE '{state}'; END $$;
CREATE TRIGGER refuse BEFORE UPDATE ON workers FOR EACH ROW WHEN ({refused})
    EXECUTE FUNCTION refuse()
"""

_WAITING_LEASES = """
SELECT count(*) FROM pg_stat_activity
WHERE application_name = 'arkloop-lease' AND wait_event_type = 'Lock'
    AND datname = current_database()
"""


@pytest.fixture
def lease_with(settings: Settings) -> Iterator[Callable[..., Lease]]:
    """Call it for a lease with other settings."""
    with ExitStack() as stack:

        def new(**changes: Any) -> Lease:
            made = Lease(replace(settings, **changes), Keys(), dict, lambda run_id, fence: None)
            stack.callback(made.stop, 10)
            assert made.wait_until_valid(60)
            return made

        yield new


@pytest.fixture
def lease(lease_with: Callable[..., Lease]) -> Lease:
    """A lease that renews itself every minute."""
    return lease_with(lease_seconds=600, heartbeat_seconds=60)


def sessions(connections: Connections, lease: Lease) -> list[int]:
    """Return the process ids of the sessions that hold the lease's lock."""
    with connections.reading() as sql:
        return list(sql.scalars(text(_SESSIONS), {"id": lease.worker_id}))


def test_a_lease_has_a_lock(connections: Connections, lease: Lease) -> None:
    """The kernel gives it back when the process dies, however it dies."""
    eventually(lambda: len(sessions(connections, lease)) == 1)
    assert lease.is_valid


def test_a_lock_that_was_lost_is_taken_again_at_once(
    connections: Connections, lease: Lease
) -> None:
    """A lost lock is taken again at once, before others take the process for dead at the next
    heartbeat.
    """
    eventually(lambda: len(sessions(connections, lease)) == 1)
    [lost] = sessions(connections, lease)

    with connections.reading() as sql:
        assert sql.scalar(text("SELECT pg_terminate_backend(:pid)"), {"pid": lost})

    eventually(lambda: len(set(sessions(connections, lease)) - {lost}) == 1)
    assert lease.is_valid


def test_a_lock_that_somebody_else_still_holds_is_replaced(
    connections: Connections, lease: Lease, settings: Settings
) -> None:
    """After a cut connection Postgres may keep the old session for a while, with its lock."""
    eventually(lambda: len(sessions(connections, lease)) == 1)
    [lost] = sessions(connections, lease)
    url = settings.database_url.replace("+psycopg", "", 1)
    with psycopg.connect(url, autocommit=True) as holder:
        holder.execute("SET arkloop.orgs = '*'")
        query = "SELECT lock_key FROM workers WHERE id = %s"
        row = holder.execute(query, [lease.worker_id]).fetchone()
        assert row is not None
        # Waits in the queue of the lock, and gets it before the new session of the lease asks.
        holder.execute("SET lock_timeout = '10s'")
        holder.execute("SELECT pg_terminate_backend(%s)", [lost])
        holder.execute("SELECT pg_advisory_lock(%s)", row)

        eventually(lambda: holder.info.backend_pid not in sessions(connections, lease))
        eventually(lambda: len(sessions(connections, lease)) == 1)

    assert lease.is_valid


def test_a_lock_that_was_lost_with_its_session_intact_is_taken_again(
    connections: Connections, lease_with: Callable[..., Lease]
) -> None:
    """A pooler may reset the session, or give the lock's session up, and tell nobody."""
    lease = lease_with(lease_seconds=600, heartbeat_seconds=0.2)
    eventually(lambda: len(sessions(connections, lease)) == 1)

    assert lease._connection is not None
    [before] = sessions(connections, lease)
    # A plain cursor: it may come within a heartbeat's pipeline, but must not open one of its own.
    psycopg.Cursor(lease._connection).execute("SELECT pg_advisory_unlock_all()")

    # In a session of its own: the lock may be back before anybody looks.
    eventually(lambda: sessions(connections, lease) not in ([], [before]))
    assert lease.is_valid


def test_a_connection_that_is_half_open_is_replaced(
    connections: Connections,
    postgres: EmbeddedPostgres,
    settings: Settings,
    lease_with: Callable[..., Lease],
) -> None:
    """A half-open connection is replaced, although neither end is notified."""
    with FaultProxy(postgres.sockets / ".s.PGSQL.5432") as proxy:
        database = make_url(settings.database_url).database
        url = f"postgresql+psycopg://postgres@127.0.0.1:{proxy.port}/{database}"
        lease = lease_with(database_url=url, lease_seconds=600, heartbeat_seconds=0.2)
        eventually(lambda: len(sessions(connections, lease)) == 1)
        [lost] = sessions(connections, lease)

        proxy.abandon()

        eventually(lambda: sessions(connections, lease) not in ([], [lost]))
        lease.stop(10)


def test_an_outage_is_not_logged_by_each_renewal(
    postgres: EmbeddedPostgres,
    settings: Settings,
    lease_with: Callable[..., Lease],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The first renewal that fails has a line, and the first that succeeds afterwards."""
    caplog.set_level(logging.INFO)
    with FaultProxy(postgres.sockets / ".s.PGSQL.5432") as proxy:
        database = make_url(settings.database_url).database
        url = f"postgresql+psycopg://postgres@127.0.0.1:{proxy.port}/{database}"
        lease = lease_with(database_url=url, lease_seconds=600, heartbeat_seconds=0.2)

        proxy.refuse()
        eventually(lambda: lines(caplog))
        time.sleep(5 * RETRY_SECONDS)
        proxy.pass_on()
        eventually(lambda: len(lines(caplog)) > 1)
        lease.stop(10)

    first, over = lines(caplog)
    assert first.startswith("renewing the lease failed: ")
    assert over.startswith("renewing the lease works again after ")


def test_a_lease_is_not_renewed_on_a_former_primary(
    connections: Connections, lease_with: Callable[..., Lease], caplog: pytest.LogCaptureFixture
) -> None:
    """A process whose runs are on the server that took over holds none on the former one."""
    lease = lease_with(lease_seconds=600, heartbeat_seconds=60)
    timelines = lease._keys.timelines
    [(cluster, timeline)] = timelines.items()
    [session] = sessions(connections, lease)

    timelines[cluster] = timeline + 1
    with connections.reading() as sql:
        assert sql.scalar(text("SELECT pg_terminate_backend(:pid)"), {"pid": session})

    eventually(lambda: "a former primary accepts writes" in caplog.text)
    assert [] == sessions(connections, lease)
    timelines[cluster] = timeline
    eventually(lambda: len(sessions(connections, lease)) == 1)


def test_a_row_that_stays_locked_takes_one_connection(
    connections: Connections, settings: Settings, lease_with: Callable[..., Lease]
) -> None:
    """A commit that waits for a standby keeps its locks; each try ends in Postgres, too."""
    lease = lease_with(lease_seconds=600, heartbeat_seconds=0.5)
    url = settings.database_url.replace("+psycopg", "", 1)
    with psycopg.connect(url) as holder:
        holder.execute("SET arkloop.orgs = '*'")
        holder.execute("SELECT FROM workers WHERE id = %s FOR UPDATE", [lease.worker_id])
        eventually(lambda: lease._outage._failures > 4)
        with connections.reading() as sql:
            assert 1 >= (sql.scalar(text(_WAITING_LEASES)) or 0)

    eventually(lambda: not lease._outage.is_on)


@pytest.mark.parametrize("table", ["runs", "workers"])
def test_a_table_that_stays_locked_takes_one_connection(
    connections: Connections, settings: Settings, lease_with: Callable[..., Lease], table: str
) -> None:
    """A table that is altered behind a long dump is locked before a statement begins."""
    lease = lease_with(lease_seconds=600, heartbeat_seconds=0.5)
    url = settings.database_url.replace("+psycopg", "", 1)
    with psycopg.connect(url) as holder:
        holder.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE".encode())
        eventually(lambda: lease._outage._failures > 4)
        with connections.reading() as sql:
            assert 1 >= (sql.scalar(text(_WAITING_LEASES)) or 0)

    eventually(lambda: not lease._outage.is_on)


@contextmanager
def refusing(settings: Settings, state: str, refused: str) -> Iterator[None]:
    """Let Postgres refuse such changes of the workers' rows with this SQLSTATE."""
    url = settings.database_url.replace("+psycopg", "", 1)
    with psycopg.connect(url, autocommit=True) as sql:
        sql.execute(_REFUSE.format(state=state, refused=refused))
        try:
            yield
        finally:
            sql.execute("DROP FUNCTION refuse CASCADE")


@pytest.mark.owner
@pytest.mark.parametrize("state", ["53100", "58030"])
def test_a_renewal_without_space_keeps_the_lock(
    state: str, connections: Connections, settings: Settings, lease_with: Callable[..., Lease]
) -> None:
    """There may be no new session before the disk has space, and the lock ends with the session."""
    lease = lease_with(lease_seconds=600, heartbeat_seconds=0.5)
    eventually(lambda: len(sessions(connections, lease)) == 1)
    before = sessions(connections, lease)

    with refusing(settings, state, _RENEWALS):
        eventually(lambda: lease._outage._failures > 4)
        assert before == sessions(connections, lease)

    eventually(lambda: not lease._outage.is_on)
    assert before == sessions(connections, lease)


@pytest.mark.owner
def test_a_session_that_was_not_registered_for_lack_of_space_is_replaced(
    connections: Connections, settings: Settings, lease_with: Callable[..., Lease]
) -> None:
    """Its lock is not the one that the row names, so others would take the process for dead."""
    lease = lease_with(lease_seconds=600, heartbeat_seconds=0.5)
    eventually(lambda: len(sessions(connections, lease)) == 1)
    [lost] = sessions(connections, lease)

    with refusing(settings, "53100", _REGISTRATIONS):
        with connections.reading() as sql:
            assert sql.scalar(text("SELECT pg_terminate_backend(:pid)"), {"pid": lost})
        eventually(lambda: lease._outage._failures > 1)

    eventually(lambda: sessions(connections, lease) not in ([], [lost]))
    assert lease.is_valid


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what was logged about renewals."""
    found = [record.getMessage() for record in caplog.records]
    return [line for line in found if line.startswith("renewing the lease")]


def test_a_lease_that_comes_back_says_so(
    connections: Connections, lease_with: Callable[..., Lease]
) -> None:
    """The sweep then knows that more than one worker was silent."""
    lease = lease_with(lease_seconds=600, heartbeat_seconds=1)
    eventually(lambda: len(sessions(connections, lease)) == 1)
    assert row_of(connections, lease.worker_id)["back_at"] is None
    with connections.transaction() as tx:
        silent = text("UPDATE workers SET seen_at = now() - interval '1 minute' WHERE id = :id")
        tx.sql.execute(silent, {"id": lease.worker_id})

    eventually(lambda: row_of(connections, lease.worker_id)["back_at"] is not None)


def test_a_worker_that_is_stopped_leaves_no_row(
    connections: Connections, lease_with: Callable[..., Lease]
) -> None:
    """A deploy must not look like a death."""
    lease = lease_with(lease_seconds=600, heartbeat_seconds=60)

    lease.stop(10)

    assert {} == row_of(connections, lease.worker_id)


def test_a_worker_that_leaves_runs_behind_keeps_its_row(
    stored: StoredRuns, lease_with: Callable[..., Lease]
) -> None:
    """The sweep finds them by it."""
    lease = lease_with(lease_seconds=600, heartbeat_seconds=60)
    stored.claimed(lease.worker_id)

    lease.stop(10)

    assert {} != row_of(stored.connections, lease.worker_id)


def test_a_run_that_is_abandoned_counts_once(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    """A run that takes a while to end is not abandoned again by each look at the lease."""
    held = {ids.new_id(): StopSignal()}
    slow = replace(settings, lease_seconds=600, heartbeat_seconds=60)
    lease = Lease(slow, Keys(), lambda: dict(held), lambda run_id, fence: None)
    try:
        assert lease.wait_until_valid(60)

        lease._renewed_at = float("-inf")
        eventually(lambda: all(stop.lease_lost for stop in held.values()))
        held[ids.new_id()] = StopSignal()
        eventually(lambda: all(stop.lease_lost for stop in held.values()))
    finally:
        lease.stop(10)

    found = [record.getMessage() for record in caplog.records]
    assert ["lease lost: abandoning 1 runs"] * 2 == [
        line for line in found if line.startswith("lease lost")
    ]


def row_of(connections: Connections, worker_id: UUID) -> dict[str, Any]:
    with connections.reading() as sql:
        found = sql.execute(text("SELECT * FROM workers WHERE id = :id"), {"id": worker_id})
        return dict(found.mappings().one_or_none() or {})
