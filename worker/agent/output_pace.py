"""The pace at which a model's output is taken, far above that at which models write.

Every piece is stored, published and sent to followers, so an endpoint of a customer that writes
large ones without end would take the processors, Redis and the database from the runs of others.
"""

import time
from collections.abc import Callable

#: Some 250,000 tokens a second, where models write a few thousand at most.
CHARACTERS_PER_SECOND = 1024 * 1024
#: What a turn may say before its pace is looked at. A long text in one piece never waits.
FREE_CHARACTERS = 512 * 1024


class OutputPace:
    """The pace of one model turn, from the piece with which it exceeds `FREE_CHARACTERS`."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._at = clock()
        self._owed = 0.0  # characters beyond what the pace has allowed until `_at`

    def take(self, characters: int) -> float:
        """Count a piece of output; returns the seconds to wait for those before it."""
        now = self._clock()
        allowed = (now - self._at) * CHARACTERS_PER_SECOND
        self._at, owed = now, max(0.0, self._owed - allowed)
        self._owed = owed + characters
        return owed / CHARACTERS_PER_SECOND
