"""The lease of this worker process on all the runs that it holds.

One connection of its own renews it and holds a session advisory lock: when the
process dies, the kernel closes the socket and Postgres frees the lock at once.
Only Postgres' clock says when a lease is over; this process lets go earlier, by
its own monotonic clock, when it could not renew.
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

from shared import ids
from shared.config import Settings
from shared.errors import LeaseLost
from shared.postgres import connection_args, leads_to_pooler
from shared.sweep import NO_LOCK
from worker.outcomes import CancelRequested
from worker.stop_signal import StopSignal

log = logging.getLogger(__name__)

_REGISTER = """
INSERT INTO workers (id, hostname, pid, lock_key) VALUES (%s, %s, %s, %s)
ON CONFLICT (id) DO UPDATE SET seen_at = now()
"""
_RENEW = "UPDATE workers SET seen_at = now() WHERE id = %s"
_OWNED = """
SELECT id, cancel_requested_at IS NOT NULL FROM runs WHERE owner = %s AND state = 'executing'
"""
THROUGH_POOLER = (
    "the lease goes through a pooler, where a lock says nothing: if this worker is killed, its "
    "runs wait for the whole lease; let ARKLOOP_DIRECT_DATABASE_URL lead to Postgres itself"
)
#: A part of the lease: who could not renew for so long stops before anybody may take over.
SAFE_PART = 0.75
#: After a renewal that failed.
RETRY_SECONDS = 0.1


class Lease:
    """`held()` gives the stop signals of the runs held now, by run id.

    `on_orphan(run_id)` is called for a run that is this process' in the database
    but that none of its threads holds (its thread let go while the lease was in
    doubt, say): no other process would ever take it from a living owner.
    """

    def __init__(
        self,
        settings: Settings,
        held: Callable[[], dict[UUID, StopSignal]],
        on_orphan: Callable[[UUID], None],
    ) -> None:
        self.worker_id = ids.new_id()
        self._settings = settings
        self._held = held
        self._on_orphan = on_orphan
        self._unheld: set[UUID] = set()
        self._lock_key = secrets.randbits(62)
        self._renewed_at = float("-inf")
        self._connection: psycopg.Connection[tuple[Any, ...]] | None = None
        self._stopped = threading.Event()
        self._stop, self._stopping = socket.socketpair()
        self._first = threading.Event()
        threading.Thread(target=self._renew_forever, name="lease", daemon=True).start()
        threading.Thread(target=self._watch, name="lease-watch", daemon=True).start()

    @property
    def is_valid(self) -> bool:
        """Whether nobody can have taken this process' runs over."""
        safe = self._settings.lease_seconds * SAFE_PART
        return time.monotonic() - self._renewed_at < safe

    def wait_until_valid(self, timeout: float) -> bool:
        """True once the lease was renewed for the first time, False after `timeout` seconds."""
        self._first.wait(timeout)
        return self.is_valid

    def stop(self) -> None:
        """Let the lease run out; the runs were handed over before."""
        self._stopped.set()
        self._stop.close()  # which `_rest` sees

    def _renew_forever(self) -> None:
        while not self._stopped.is_set():
            try:
                self._renew()
                self._first.set()
            except psycopg.Error as error:
                log.warning("the lease was not renewed: %s", error)
                self._disconnect()
            except Exception:
                log.exception("the lease was not renewed")
                self._disconnect()
            self._rest()
        self._disconnect()
        self._stopping.close()

    def _rest(self) -> None:
        """Until the next heartbeat, or the loss of the connection: its lock must be back before
        somebody takes this process for dead.
        """
        if self._connection is None:
            self._stopped.wait(min(RETRY_SECONDS, self._settings.heartbeat_seconds))
        else:
            poll = select.poll()
            for source in (self._connection, self._stopping):
                poll.register(source.fileno(), select.POLLIN)
            poll.poll(self._settings.heartbeat_seconds * 1000)

    def _renew(self) -> None:
        # Taken before the statement: the lease can only be longer than this process thinks.
        before = time.monotonic()
        connection = self._connection or self._connect()
        if connection.execute(_RENEW, [self.worker_id]).rowcount == 0:
            self._register(connection)
        self._renewed_at = before
        owned = dict(connection.execute(_OWNED, [self.worker_id]).fetchall())
        held = self._held()
        for run_id, is_cancelled in owned.items():
            if is_cancelled and run_id in held:
                held[run_id].set(CancelRequested())
        # Twice in a row: a run that ends just now is still among the owned once.
        unheld = owned.keys() - held.keys()
        for run_id in unheld & self._unheld:
            self._on_orphan(run_id)
        self._unheld = unheld

    def _connect(self) -> psycopg.Connection[tuple[Any, ...]]:
        heartbeat = self._settings.heartbeat_seconds
        connection = psycopg.connect(
            **{
                **connection_args(
                    self._settings.direct_database_url or self._settings.database_url
                ),
                "application_name": "arkloop-lease",
                "keepalives_count": 2,
                "tcp_user_timeout": round(heartbeat * 2000),
            },
            autocommit=True,
        )
        if leads_to_pooler(connection):
            # A lock or a setting would be that of a server's session that others use as well.
            connection.prepare_threshold = None
            if self._lock_key != NO_LOCK:
                self._lock_key = NO_LOCK
                log.warning("%s", THROUGH_POOLER)
        else:
            connection.execute(f"SET statement_timeout = {round(heartbeat * 2000)}")
            # Not waited for: after a cut connection the old session may hold it a little longer,
            # and until then the heartbeats alone keep the lease.
            connection.execute("SELECT pg_try_advisory_lock(%s)", [self._lock_key])
        self._register(connection)
        self._connection = connection
        return connection

    def _register(self, connection: psycopg.Connection[tuple[Any, ...]]) -> None:
        connection.execute(
            _REGISTER, [self.worker_id, self._settings.hostname, os.getpid(), self._lock_key]
        )

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _watch(self) -> None:
        while not self._stopped.wait(min(0.5, self._settings.heartbeat_seconds / 4)):
            held = self._held()
            if held and not self.is_valid:
                log.error("the lease could not be renewed: %d runs are let go", len(held))
                for stop in held.values():
                    stop.set(LeaseLost())
