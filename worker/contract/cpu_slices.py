"""Turns for long computations: one slice at a time, other greenlets in between."""

import threading
import time
from collections.abc import Iterator, Sequence, Sized
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")

#: To pass over that number of items takes about a millisecond.
MANY = 2_000

_one = threading.Lock()


@contextmanager
def cpu_slice() -> Iterator[None]:
    """Wait for a turn to compute for at most about 0.1 s; the caller must not block within it.

    Between two slices, of however many threads, every other greenlet of the process that is ready
    runs, the lease's too.
    """
    try:
        with _one:
            # Not 0: that is a callback of gevent's, and it runs 50 of those before it looks at its
            # clock, let alone at sockets and timers. And not without the lock: timers that are due
            # together fire on end, too.
            time.sleep(0.001)
            yield
    finally:
        # Wakes a waiting thread before this one can ask for its next slice.
        time.sleep(0)


def breathe(items: Sized) -> None:
    """Let every other greenlet run if there are many items: to pass over them takes its time."""
    if len(items) > MANY:
        with cpu_slice():
            pass


def portions(
    items: Sequence[T], length: int, *, always_in_turn: bool = False
) -> Iterator[Sequence[T]]:
    """Cut what may be long into portions of at most `length`, each to be computed in a slice.

    What is a single portion costs no turn, unless a single item may be long (`always_in_turn`).
    """
    if len(items) <= length and not always_in_turn:
        yield items
        return
    for start in range(0, len(items), length):
        with cpu_slice():
            yield items[start : start + length]
