"""Time limits on blocks of code, which one thread of the process watches.

A `threading.Timer` would be a thread for each block: where threads are greenlets, as much work as
an HTTP request over a connection that is open.
"""

import logging
import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

log = logging.getLogger(__name__)


class _Watch:
    """The blocks that are being executed, and the thread that calls for those that are late."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._blocks: dict[object, tuple[float, Callable[[], None]]] = {}
        self._looks_at = math.inf  # when the thread looks next
        self._has_thread = False

    def add(self, block: object, late_at: float, call: Callable[[], None]) -> None:
        with self._changed:
            self._blocks[block] = (late_at, call)
            if not self._has_thread:
                threading.Thread(target=self._run, name="time-limits", daemon=True).start()
                self._has_thread = True
            if late_at < self._looks_at:
                self._changed.notify()

    def remove(self, block: object) -> None:
        with self._changed:
            self._blocks.pop(block, None)

    def _run(self) -> None:
        while True:
            for call in self._late():
                try:
                    call()
                except Exception:
                    log.exception("giving up an overdue request failed")

    def _late(self) -> list[Callable[[], None]]:
        """Wait until blocks are late; return their calls."""
        with self._changed:
            while True:
                now = time.monotonic()
                late = [block for block, (late_at, _) in self._blocks.items() if late_at <= now]
                if late:
                    return [self._blocks.pop(block)[1] for block in late]
                self._looks_at = min((at for at, _ in self._blocks.values()), default=math.inf)
                idle = self._looks_at == math.inf
                self._changed.wait(None if idle else self._looks_at - now)


_watch = _Watch()


def _begin_in_child() -> None:
    """Leave the blocks and the thread to the parent."""
    global _watch
    _watch = _Watch()


os.register_at_fork(after_in_child=_begin_in_child)


@contextmanager
def limited(seconds: float, call: Callable[[], None]) -> Iterator[None]:
    """Call `call` in another thread if the block takes longer than `seconds`.

    It may still be executed at the end of the block, and must not wait: other blocks wait for it.
    """
    block, watch = object(), _watch
    watch.add(block, time.monotonic() + seconds, call)
    try:
        yield
    finally:
        watch.remove(block)
