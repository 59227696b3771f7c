"""The lease of this worker process on all the runs that it holds.

A dedicated connection renews it and holds a session advisory lock: when the
process dies, the kernel closes the socket and Postgres releases the lock at once.
Only Postgres' clock decides when a lease has expired; this process abandons its
runs earlier, by its own monotonic clock, when it could not renew.
"""

import logging
import os
import secrets
import select
import socket
import threading
import time
from collections.abc import Callable
from typing import Any
from uuid import UUID

import psycopg

from arkloop.shared import ids, metrics
from arkloop.shared.background_loop import BackgroundLoop
from arkloop.shared.config import Settings
from arkloop.shared.errors import LeaseLost
from arkloop.shared.outage_log import OutageLog
from arkloop.shared.runs.claims import SAFE_PART
from arkloop.shared.runs.sweep import NO_LOCK
from arkloop.shared.storage import epoch, hosts
from arkloop.shared.storage.keys import Keys
from arkloop.shared.storage.postgres import (
    OUT_OF_RESOURCES,
    SERVICE,
    BoundedConnection,
    connection_args,
    leads_to_pooler,
)
from arkloop.worker.contract.outcomes import CancelRequested
from arkloop.worker.contract.stop_signal import StopSignal

log = logging.getLogger(__name__)

#: After a pause of this many heartbeats a worker is recorded as back from a silence.
SILENT_HEARTBEATS = 1.5
#: A heartbeat without a response is given up after this many heartbeats, whatever TCP thinks.
ANSWER_HEARTBEATS = 2.0
#: Postgres gives up waiting for the lock of a row or a table before that.
LOCK_HEARTBEATS = 1.0

_REGISTER = """
INSERT INTO workers (id, hostname, pid, lock_key)
VALUES (%(id)s, %(hostname)s, %(pid)s, %(lock_key)s)
ON CONFLICT (id) DO UPDATE SET lock_key = excluded.lock_key
"""
# `back_at` tells the sweep that this worker was silent too, and may not have been the only one.
_RENEW = """
UPDATE workers SET seen_at = now(),
    back_at = CASE WHEN seen_at < now() - make_interval(secs => %(silent)s)
        THEN now() ELSE back_at END
WHERE id = %(id)s
"""
_LIMIT_LOCKS = "SELECT set_config('lock_timeout', %s, true)"
_LOCK = "SELECT pg_advisory_lock(%(lock_key)s)"
_HAS_LOCK = """
SELECT EXISTS (
    SELECT FROM pg_locks
    WHERE locktype = 'advisory' AND granted AND objsubid = 1
    AND classid = (%(lock_key)s::bigint >> 32)::oid
    AND objid = (%(lock_key)s::bigint & 4294967295)::oid
)
"""
# A run that could not be handed over is found by the sweep, which must know whose it was.
_DEREGISTER = """
DELETE FROM workers WHERE id = %(id)s
AND NOT EXISTS (SELECT FROM runs WHERE owner = %(id)s AND state = 'executing')
"""
_OWNED = """
SELECT id, fence, cancel_requested_at IS NOT NULL FROM runs
WHERE owner = %(id)s AND state = 'executing'
"""
THROUGH_POOLER = (
    "the lease connection goes through a pooler, where session locks do not work: if"
    " this worker is killed, its runs wait for the whole lease; point"
    " ARKLOOP_DIRECT_DATABASE_URL to Postgres itself"
)
#: After a renewal that failed.
RETRY_SECONDS = 0.1


class _LeaseConnection(BoundedConnection):
    """A connection whose statements wait for the lock of a row or a table for `lock_seconds`.

    A commit that waits for a standby keeps the lock of a worker's row, also after its client has
    left, and a table that is altered may be locked for as long: each try to renew would leave a
    process of Postgres' that waits for it, without a limit. A statement takes locks of tables
    before it is executed, and a pooler would pass a limit of the session on to others.
    """

    lock_seconds: float

    def execute_for_orgs(self, execute: Callable[[], object]) -> None:
        """Execute a statement as usual, with the limit right before it."""

        def limited() -> None:
            milliseconds = str(round(self.lock_seconds * 1000))
            psycopg.Cursor(self).execute(_LIMIT_LOCKS, [milliseconds])
            execute()

        super().execute_for_orgs(limited)


class Lease:
    """`held()` gives the stop signals of the runs held now, by run id.

    `on_orphan(run_id, fence)` is called for a claim of a run that is this process' in
    the database but that none of its threads holds (its thread let go while the lease
    was in doubt, say): no other process would ever take it from a living owner. It is
    called again with each heartbeat until the claim has ended.
    """

    def __init__(
        self,
        settings: Settings,
        keys: Keys,
        held: Callable[[], dict[UUID, StopSignal]],
        on_orphan: Callable[[UUID, int], None],
    ) -> None:
        self.worker_id = ids.new_id()
        self._settings = settings
        self._keys = keys
        self._held = held
        self._on_orphan = on_orphan
        self._unheld: set[tuple[UUID, int]] = set()
        self._lock_key: int | None = None
        self._renewed_at = float("-inf")
        self._connection: psycopg.Connection[tuple[Any, ...]] | None = None
        self._is_registered = False  # the connection's lock is the one that the row names
        self._stopped = threading.Event()
        self._stop, self._stopping = socket.socketpair()
        self._first = threading.Event()
        self._outage = OutageLog(log, "renewing the lease")
        self._thread = threading.Thread(target=self._renew_forever, name="lease", daemon=True)
        self._thread.start()
        BackgroundLoop(
            "watching the lease",
            self._watch,
            seconds=min(0.5, settings.heartbeat_seconds / 4),
            stopped=self._stopped,
        )

    @property
    def is_valid(self) -> bool:
        """True if no other process can have taken over this process' runs."""
        safe = self._settings.lease_seconds * SAFE_PART
        return time.monotonic() - self._renewed_at < safe

    def wait_until_valid(self, timeout: float) -> bool:
        """Wait for the first renewal: True once it happened, False after `timeout` seconds."""
        self._first.wait(timeout)
        return self.is_valid

    def stop(self, timeout: float = 0.0) -> None:
        """End the lease; the runs were handed over before.

        Waits up to `timeout` seconds until its row is gone, so that nobody takes a worker that
        was stopped for one that died.
        """
        self._stopped.set()
        self._stop.close()  # which `_rest` sees
        if timeout:
            self._thread.join(timeout)

    def _renew_forever(self) -> None:
        heartbeat = self._settings.heartbeat_seconds
        while not self._stopped.is_set():
            pause = min(RETRY_SECONDS, heartbeat)
            try:
                self._renew()
                self._first.set()
                self._outage.worked()
                pause = heartbeat
            except psycopg.Error as error:
                self._outage.failed("renewing the lease failed: %s", error)
                if not self._has_session_after(error):
                    self._disconnect()
            except Exception:
                log.exception("renewing the lease failed")
                self._disconnect()
            self._rest(pause)
        self._deregister()
        self._disconnect()
        self._stopping.close()

    def _has_session_after(self, error: psycopg.Error) -> bool:
        """Return whether to keep the session: there may be no new one until the disk has space."""
        lacks_resources = (error.sqlstate or "").startswith(OUT_OF_RESOURCES)
        connection = self._connection if self._is_registered and lacks_resources else None
        return connection is not None and not connection.closed

    def _deregister(self) -> None:
        try:
            if self._connection is not None:
                self._connection.execute(_DEREGISTER, self._parameters())
        except psycopg.Error as error:
            log.warning("deregistering this worker failed; its row expires in a day: %s", error)

    def _rest(self, seconds: float) -> None:
        """Rest for these seconds, or until the loss of the connection, whose lock must be restored
        before another process takes this one for dead.
        """
        if self._connection is None:
            self._stopped.wait(seconds)
        else:
            poll = select.poll()
            for source in (self._connection, self._stopping):
                poll.register(source.fileno(), select.POLLIN)
            poll.poll(seconds * 1000)

    def _renew(self) -> None:
        # Read before the statement: the lease can only last longer than this process thinks.
        before = time.monotonic()
        connection = self._connection or self._connect()
        renewed = connection.execute(_RENEW, self._parameters()).rowcount
        if not renewed or not self._has_lock(connection):
            # Its row is gone, or its lock: a pooler may have given the lock's session up.
            self._disconnect()
            connection = self._connect()
        self._renewed_at = before
        owned = connection.execute(_OWNED, self._parameters()).fetchall()
        held = self._held()
        for run_id, _, is_cancelled in owned:
            if is_cancelled and run_id in held:
                held[run_id].set(CancelRequested())
        # Twice in a row: a run that ends just now is still among the owned once.
        unheld = {(run_id, fence) for run_id, fence, _ in owned if run_id not in held}
        for run_id, fence in unheld & self._unheld:
            self._on_orphan(run_id, fence)
        self._unheld = unheld

    def _connect(self) -> psycopg.Connection[tuple[Any, ...]]:
        heartbeat = self._settings.heartbeat_seconds
        connection = self._open(
            {
                **connection_args(
                    self._settings.direct_database_url or self._settings.database_url
                ),
                "application_name": "arkloop-lease",
                "keepalives_count": 2,
                "tcp_user_timeout": round(heartbeat * ANSWER_HEARTBEATS * 1000),
            }
        )
        connection.work_for(SERVICE)
        if leads_to_pooler(connection):
            # A lock would be that of a server's session that others use as well.
            if self._lock_key != NO_LOCK:
                log.warning("%s", THROUGH_POOLER)
            self._lock_key = NO_LOCK
        else:
            # A new key for each session: after a cut connection the old one may hold its lock a
            # little longer. The row names the new lock only once it is held.
            self._lock_key = secrets.randbits(62)
            connection.execute(_LOCK, self._parameters())
        connection.execute(_REGISTER, self._parameters())
        connection.execute(_RENEW, self._parameters())
        self._is_registered = True
        return connection

    def _open(self, args: dict[str, Any]) -> _LeaseConnection:
        # A pooler may run each statement in another session: none is prepared.
        connection = _LeaseConnection.connect(**args, autocommit=True, prepare_threshold=None)
        self._connection = connection
        # A proxy in between acknowledges for a server that is gone: TCP notices nothing.
        connection.answer_seconds = self._settings.heartbeat_seconds * ANSWER_HEARTBEATS
        connection.lock_seconds = self._settings.heartbeat_seconds * LOCK_HEARTBEATS
        try:
            epoch.learn(self._keys, connection)
        except epoch.FormerPrimary:
            others = hosts.without(args, connection.info)
            if others is None:
                raise
            self._disconnect()
            return self._open(others)
        return connection

    def _has_lock(self, connection: psycopg.Connection[tuple[Any, ...]]) -> bool:
        if self._lock_key == NO_LOCK:
            return True
        return connection.execute(_HAS_LOCK, self._parameters()).fetchone() == (True,)

    def _parameters(self) -> dict[str, Any]:
        return {
            "id": self.worker_id,
            "hostname": self._settings.hostname,
            "pid": os.getpid(),
            "lock_key": self._lock_key,
            "silent": self._settings.heartbeat_seconds * SILENT_HEARTBEATS,
        }

    def _disconnect(self) -> None:
        self._is_registered = False
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _watch(self) -> None:
        held = [stop for stop in self._held().values() if not stop.lease_lost]
        if held and not self.is_valid:
            log.error("lease lost: abandoning %d runs", len(held))
            metrics.LEASES_LOST.add(len(held))
            for stop in held:
                stop.set(LeaseLost())
