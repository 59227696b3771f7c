"""The connections of a pool, handed out in the order of arrival; under load nobody waits long.

With a fixed time limit, every caller waits for all of it as soon as more come than the pool can
serve, and those that are served have waited almost as long. Here a queue that was not empty for a
while is a standing one: later callers wait briefly ("controlled delay"), so it stays short.

After a standstill of the process, for a collection of garbage or without a processor, gevent ends
the waits whose time is over before connections are passed on from one caller to the next. So these
callers wait once more. Standstills that follow soon have no second wait: a process that has too
much to do stands still all the time, and longer queues would not help it.
"""

import math
import threading
import time
from collections import deque
from dataclasses import dataclass

from arkloop.shared import metrics

#: A wait that ends this much too late does so because the process stood still.
LATE_SECONDS = 0.05
#: For how long after a standstill with a second wait others have none.
ONCE_IN_SECONDS = 5.0


class NoneFree(Exception):
    """All connections stayed in use for as long as the caller was to wait."""


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds that a caller waits for a connection: usually, and in a standing queue."""

    usual: float
    standing: float


class Checkouts:
    """The right to use one of `size` connections, for the length of a `with` block."""

    def __init__(self, size: int, patience: Patience, *, is_measured: bool = False) -> None:
        """Create it; `is_measured`: count it in the pool metrics, as for a connection pool."""
        self._free = size
        self._patience = patience
        self._is_measured = is_measured
        self._lock = threading.Lock()
        self._queue: deque[threading.Lock] = deque()
        self._was_free_at = time.monotonic()
        self._stood_still_at = -math.inf  # of the last standstill with a second wait

    def __enter__(self) -> None:
        """Take a checkout. Raises: NoneFree."""
        with self._lock:
            if self._free:
                self._free -= 1
                self._count(metrics.POOL_IN_USE, 1)
                self._was_free_at = time.monotonic()
                return
            is_standing = time.monotonic() - self._was_free_at > self._patience.usual
            turn = threading.Lock()
            turn.acquire()
            self._queue.append(turn)
        seconds = self._patience.standing if is_standing else self._patience.usual
        began = time.monotonic()
        if turn.acquire(timeout=seconds):
            return
        if self._may_wait_again(began, began + seconds) and turn.acquire(timeout=seconds):
            return
        with self._lock:
            if turn in self._queue:
                self._queue.remove(turn)
                self._count(metrics.POOL_TIMEOUTS, 1)
                raise NoneFree(f"no database connection became free within {seconds:g} s")
        # It was handed over at the last moment.

    def _may_wait_again(self, began: float, due: float) -> bool:
        """Return whether a wait has ended late because the process stood still, which is rare."""
        now = time.monotonic()
        if now < due + LATE_SECONDS:
            return False
        with self._lock:
            if now > self._stood_still_at + ONCE_IN_SECONDS:
                self._stood_still_at = now
            # The first caller that notices a standstill notes the time for all that waited then.
            return began < self._stood_still_at

    def __exit__(self, *_error: object) -> None:
        with self._lock:
            if self._queue:
                self._queue.popleft().release()
            else:
                self._free += 1
                self._count(metrics.POOL_IN_USE, -1)
                self._was_free_at = time.monotonic()

    def _count(self, metric: metrics.Metric, amount: int) -> None:
        if self._is_measured:
            metric.add(amount)
