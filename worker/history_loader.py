"""The histories of this process's runs: who may read when, and how much all of them may take.

A long thread costs time and memory, and one org may have many of them. So runs that start
together share only a small, bounded read; the rest of a history is read by its run alone, one
at a time for each org, and the memory of all histories is bounded.
"""

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from uuid import UUID
from weakref import WeakValueDictionary

from shared.claims import Claim
from shared.connections import Connections
from shared.group_commit import GroupCommit
from worker import history
from worker.history import History, Opening

#: A text is in memory twice while it is sent: as itself, and as a part of the request.
COPIES = 2
#: What one org may have of the memory of all.
SHARE_OF_ONE_ORG = 0.5
#: How soon a run that waits for memory tries again.
RETRY_SECONDS = 0.2


class HistoryMemory:
    """Bytes that the histories of a process may take, all together and of one org.

    An org that has none is always let in: a run must not wait for the runs of others alone.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._taken: Counter[UUID] = Counter()

    def take(self, org_id: UUID, size: int) -> bool:
        """Take `size` bytes for the org, if they are free."""
        with self._lock:
            own, total = self._taken[org_id] + size, self._taken.total() + size
            is_free = total <= self._max_bytes and own <= self._max_bytes * SHARE_OF_ONE_ORG
            if own > size and not is_free:
                return False
            self._taken[org_id] = own
            return True

    def give_back(self, org_id: UUID, size: int) -> None:
        with self._lock:
            self._taken[org_id] -= size
            if not self._taken[org_id]:
                del self._taken[org_id]


class HistoryLoader:
    """One per process; its methods are called by the threads of many runs."""

    def __init__(self, connections: Connections) -> None:
        settings = connections.settings
        self._connections = connections
        self._opening_of = GroupCommit(self._load_openings)
        self._memory = HistoryMemory(settings.history_memory_mib * 1024 * 1024)
        # Other work of the process needs connections too.
        self._slots = threading.BoundedSemaphore(max(1, settings.database_pool_size // 2))
        self._lock = threading.Lock()
        self._turns: WeakValueDictionary[UUID, threading.Lock] = WeakValueDictionary()

    @contextmanager
    def history_of(
        self, claim: Claim, max_bytes: int, wait: Callable[[float], None]
    ) -> Iterator[History]:
        """Read the claim's history; its memory is counted until the block ends.

        `wait` is called with seconds where other histories must go first.
        """
        opening = self._opening_of(claim)
        if (whole := opening.history(claim)) is not None:
            yield whole
            return
        # Messages and tool turns, each up to `max_bytes`.
        size = 2 * max_bytes * COPIES
        while not self._memory.take(claim.org_id, size):
            wait(RETRY_SECONDS)
        try:
            found = self._load(claim, opening, max_bytes)
            actual = min(found.size * COPIES, size)
            self._memory.give_back(claim.org_id, size - actual)
            size = actual
            yield found
        finally:
            self._memory.give_back(claim.org_id, size)

    def _load(self, claim: Claim, opening: Opening, max_bytes: int) -> History:
        with self._lock:
            turn = self._turns.setdefault(claim.org_id, threading.Lock())
        with turn, self._slots, self._connections.reading() as sql:
            return history.load(sql, claim, opening, max_bytes)

    def _load_openings(self, claims: Sequence[Claim]) -> list[Opening]:
        with self._connections.reading() as sql:
            return history.load_openings(sql, claims)
