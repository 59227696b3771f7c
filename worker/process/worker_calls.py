"""Calls that workers of the customer make, as the process whose runs wait for them sees them.

A signal says that one has ended; a look at all of them in one statement, about once a second, finds
those whose signal was lost, and takes calls from workers whose leases have expired.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from uuid import UUID

from arkloop.shared.background_loop import BackgroundLoop
from arkloop.shared.errors import Unavailable
from arkloop.shared.runs import worker_calls
from arkloop.shared.storage.connections import Connections

LOOK_SECONDS = 1.0
#: A lease is looked at this soon after it should have expired.
_PAST_SECONDS = 0.02


@dataclass(slots=True, eq=False)
class _Waiting:
    call_id: UUID
    run_id: UUID
    news: threading.Event = field(default_factory=threading.Event)


class WorkerCalls:
    """The calls for which runs of this process wait."""

    def __init__(self, connections: Connections) -> None:
        self.connections = connections
        #: Twice for a call whose run is executed again before its lost attempt has noticed.
        self._waiting: set[_Waiting] = set()
        #: The leases of the service's workers do not show an outage of pools or of the table alone.
        self._expires_after = float("-inf")
        self._loop = BackgroundLoop("worker calls", self._look, seconds=LOOK_SECONDS)

    def stop(self) -> None:
        """End the look for lost signals and expired leases."""
        self._loop.stop()

    @contextmanager
    def waiting(self, call_id: UUID, run_id: UUID) -> Iterator[threading.Event]:
        """Yield an event that is set whenever the call may have ended."""
        waiting = _Waiting(call_id, run_id)
        self._waiting.add(waiting)
        try:
            yield waiting.news
        finally:
            self._waiting.remove(waiting)

    def wake(self, run_id: UUID) -> None:
        """Let the calls of the run look whether they have ended."""
        for waiting in list(self._waiting):
            if waiting.run_id == run_id:
                waiting.news.set()

    def _look(self) -> float | None:
        all_waiting = list(self._waiting)
        if not all_waiting:
            return None
        call_ids = list({waiting.call_id for waiting in all_waiting})
        try:
            with self.connections.statement() as tx:
                # Of none as well: a table that can be read may be locked against heartbeats.
                worker_calls.expire(tx, call_ids if time.monotonic() > self._expires_after else ())
            with self.connections.reading() as sql:
                states = worker_calls.states(sql, call_ids)
        except Unavailable:
            self._expires_after = time.monotonic() + self.connections.settings.lease_seconds
            raise
        pause, ended = LOOK_SECONDS, set[UUID]()
        for row in states:
            if row.state == "leased":
                if row.lease_left > 0:  # others have expired in a silence of all workers
                    pause = min(pause, float(row.lease_left) + _PAST_SECONDS)
            elif row.state != "queued":
                ended.add(row.id)
        for waiting in all_waiting:
            if waiting.call_id in ended:
                waiting.news.set()
        return pause
