"""The holes that streams of this process have met: lost events of runs, with later ones stored."""

import threading
from collections.abc import Iterable
from uuid import UUID

from arkloop.shared.errors import EventsLost
from arkloop.shared.events import event_log
from arkloop.shared.storage.connections import Connections

MOST_HOLES = 1_000


class Holes:
    """The cursors before the holes, by run; beyond `MOST_HOLES` the oldest runs are forgotten."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self._lock = threading.Lock()
        self._cursors: dict[UUID, frozenset[int]] = {}

    def add(self, run_id: UUID, cursor: int) -> None:
        """Remember that the event after this cursor is missing."""
        with self._lock:
            self._cursors[run_id] = self._cursors.pop(run_id, frozenset()) | {cursor}
            while sum(map(len, self._cursors.values())) > MOST_HOLES:
                del self._cursors[next(iter(self._cursors))]

    def check(self, run_id: UUID, cursor: int) -> None:
        """Check for a hole.

        Raises:
            EventsLost: events after this cursor are still missing.
            Unavailable
        """
        if cursor in self._cursors.get(run_id, ()) and self._first(run_id, [cursor]) is not None:
            raise EventsLost(after_seq=[cursor])

    def first(self, run_id: UUID) -> int | None:
        """Return the cursor before the run's first known hole, None without one.

        Raises:
            Unavailable
        """
        known = self._cursors.get(run_id)
        return None if known is None else self._first(run_id, sorted(known))

    def _first(self, run_id: UUID, cursors: Iterable[int]) -> int | None:
        """Return the first of these holes that is still there, and forget those before it."""
        with self._connections.reading() as sql:
            for cursor in cursors:
                if event_log.is_cut_off(sql, run_id, cursor + 2):
                    return cursor
                self._remove(run_id, cursor)
        return None

    def _remove(self, run_id: UUID, cursor: int) -> None:
        with self._lock:
            if rest := self._cursors.pop(run_id, frozenset()) - {cursor}:
                self._cursors[run_id] = rest
