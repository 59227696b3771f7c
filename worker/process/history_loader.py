"""The histories of this process's runs: who may read when, and how much all of them may take.

A long thread costs time and memory, and one org may have many of them. So runs that start
together share only a small, bounded read; the rest of a history is read by its run alone, one
at a time for each org, and the memory of all histories is bounded.
"""

import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol
from uuid import UUID
from weakref import WeakValueDictionary

from arkloop.shared.claim import Claim
from arkloop.shared.storage.connections import Connections
from arkloop.shared.storage.group_commit import GroupCommit
from arkloop.worker.agent.conversation import Entry, History
from arkloop.worker.contract.attachments import parts_of
from arkloop.worker.contract.messages import UserMessage
from arkloop.worker.process import history
from arkloop.worker.process.history import Opening

#: A text is in memory three times while it is sent: as itself, as a part of the request, and in
#: the body that the next prompt is compared with.
COPIES = 3
#: What one org may have of the memory of all.
SHARE_OF_ONE_ORG = 0.5
#: How soon a run that waits for memory tries again.
RETRY_SECONDS = 0.2


class Waiting(Protocol):
    """The run that waits; both raise what stops it."""

    def check(self) -> None:
        """Raise if the run has to stop."""

    def wait_for_memory(self, seconds: float) -> None:
        """Wait, visibly."""


class HistoryMemory:
    """Bytes that histories and the files of requests may take, all together and of one org.

    An org that has no history is always let in with one: a run must not wait for the runs of
    others alone. An org without files is let in with those of a request, since the run that sends
    them keeps its history meanwhile: runs that wait for files wait for model calls, never for
    each other.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._histories: Counter[UUID] = Counter()
        self._files: Counter[UUID] = Counter()

    def take(self, org_id: UUID, size: int, *, for_files: bool = False) -> bool:
        """Take `size` bytes for the org, if they are free; no bytes always are."""
        taken = self._files if for_files else self._histories
        with self._lock:
            own = self._histories[org_id] + self._files[org_id] + size
            total = self._histories.total() + self._files.total() + size
            is_free = total <= self._max_bytes and own <= self._max_bytes * SHARE_OF_ONE_ORG
            if size and taken[org_id] and not is_free:
                return False
            taken[org_id] += size
            return True

    def give_back(self, org_id: UUID, size: int, *, for_files: bool = False) -> None:
        taken = self._files if for_files else self._histories
        with self._lock:
            taken[org_id] -= size
            if not taken[org_id]:
                del taken[org_id]


def of_first_run(claim: Claim) -> History | None:
    """Return the history if the claim has all of it: the question of a thread's first run."""
    if claim.question is None:
        return None
    said = UserMessage(claim.question["content"], parts_of(claim.question["parts"]))
    return History([Entry(1, 1, [said])])


class HistoryLoader:
    """The loader of a process; its methods are called by the threads of many runs."""

    def __init__(self, connections: Connections) -> None:
        settings = connections.settings
        self._connections = connections
        self._opening_of = GroupCommit(self._load_openings)
        self.memory = HistoryMemory(settings.history_memory_mib * 1024 * 1024)
        # Other work of the process needs connections too.
        self._slots = threading.BoundedSemaphore(max(1, settings.database_pool_size // 2))
        self._lock = threading.Lock()
        self._turns: WeakValueDictionary[UUID, threading.Lock] = WeakValueDictionary()

    @contextmanager
    def history_of(
        self, claim: Claim, max_bytes: int, run: Waiting, windows: Iterable[int] = (0,)
    ) -> Iterator[History]:
        """Read the claim's history; its memory is counted until the block ends.

        `windows` are the contexts of the run's models in tokens, 0 where that is not known.
        """
        if (only := of_first_run(claim)) is not None:
            yield only
            return
        opening = self._opening_of(claim)
        if (whole := opening.history(claim)) is not None:
            yield whole
            return
        found, size = self._load(claim, opening, max_bytes, run, windows)
        try:
            yield found
        finally:
            self.memory.give_back(claim.org_id, size)

    def _load(
        self,
        claim: Claim,
        opening: Opening,
        max_bytes: int,
        run: Waiting,
        windows: Iterable[int],
    ) -> tuple[History, int]:
        """Return the history, and the bytes that are taken for it."""
        most = 2 * max_bytes * COPIES  # messages and tool turns, each up to `max_bytes`
        size = 0
        with self._turn_of(claim.org_id, run):
            while not self.memory.take(claim.org_id, most):
                run.wait_for_memory(RETRY_SECONDS)
            try:
                with self._slots, self._connections.reading() as sql:
                    found = history.load(sql, claim, opening, max_bytes, windows)
                size = min(found.size * COPIES, most)
            finally:
                self.memory.give_back(claim.org_id, most - size)
        return found, size

    @contextmanager
    def _turn_of(self, org_id: UUID, run: Waiting) -> Iterator[None]:
        with self._lock:
            turn = self._turns.setdefault(org_id, threading.Lock())
        while not turn.acquire(timeout=RETRY_SECONDS):
            run.check()
        try:
            yield
        finally:
            turn.release()

    def _load_openings(self, claims: Sequence[Claim]) -> list[Opening]:
        with self._connections.reading() as sql:
            return history.load_openings(sql, claims)
