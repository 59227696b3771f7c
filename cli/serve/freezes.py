"""Freezes of a worker's process: by SIGSTOP, or while its machine sleeps."""

import time

#: Where the system has it, a clock that goes while the machine sleeps.
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class Freezes:
    """Knows of freezes because one thread calls `look` all the time, unless all are frozen."""

    def __init__(self) -> None:
        self._looked_at = self._ended_at = self.now()
        #: The least that counts, in seconds.
        self.least_seconds = 5.0

    def now(self) -> float:
        return time.clock_gettime(_CLOCK)

    def look(self) -> None:
        """Note that the process works."""
        now = self.now()
        if now - self._looked_at > self.least_seconds:
            self._ended_at = now
        self._looked_at = now

    def since(self, began: float) -> bool:
        """Return whether a freeze has ended since this time of `now`."""
        looked_at = self._looked_at  # before the other one: `look` sets it last
        return self.now() - looked_at > self.least_seconds or self._ended_at > began
