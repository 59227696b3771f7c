"""Processor time that something takes, on a machine that is slow at times."""

import time
from collections.abc import Callable


def is_within(seconds: float, work: Callable[[], object]) -> bool:
    """Return whether one of three attempts takes less time of the processor than this.

    What is much too slow never does, while a processor that others share is slow for a moment.
    """

    def took() -> float:
        began = time.thread_time()
        work()
        return time.thread_time() - began

    return any(took() < seconds for _ in range(3))
