"""Computing long enough for other runs to feel it: a piece at a time, never two on end."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

_one = threading.Lock()


@contextmanager
def cpu_slice() -> Iterator[None]:
    """Wait for the turn of this piece, of a tenth of a second or so; do not wait within it.

    However many threads have pieces to do, between two of them every other greenlet of the
    process that has something to do runs, the lease's too.
    """
    try:
        with _one:
            # Not 0: that is a callback of gevent's, and it runs 50 of those before it looks at its
            # clock, let alone at sockets and timers. And not without the lock: timers that are due
            # together fire on end, too.
            time.sleep(0.001)
            yield
    finally:
        # Wake a waiting thread before this one can ask for its next piece.
        time.sleep(0)
