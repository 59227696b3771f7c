"""Requests that a vendor has refused one after the other, since they can never fit, by org.

A vendor refuses what is larger than its limit per minute at once, and the run fails at once. An org
that repeats such runs as fast as they fail would take the processors from the runs of others, and
from a shared route the vendor's requests per minute: vendors count those that they refuse.
"""

import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from uuid import UUID

#: The pause after the second refusal in a row, doubled by each further one up to the longest.
FIRST_PAUSE_SECONDS = 0.25
MAX_PAUSE_SECONDS = 5.0
#: The least part of a pause that a run waits, so that those which wait do not go on together.
LEAST_PART = 0.25
#: Of an org's runs on a route in one process; beyond it they do not wait, since each takes a slot.
MAX_WAITING = 8
#: Refusals that are older count no longer.
FORGET_SECONDS = 60.0


class Refusals:
    """The refusals of a worker process since each org's last successful run on a route."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._waiting: Counter[tuple[str, UUID]] = Counter()
        self._seen: dict[tuple[str, UUID], tuple[int, float]] = {}  # their number, until when

    def add(self, route_id: str, org_id: UUID) -> None:
        """Count a refusal."""
        now = self._clock()
        self._seen = {key: seen for key, seen in self._seen.items() if seen[1] > now}
        number, _ = self._seen.get((route_id, org_id), (0, 0.0))
        self._seen[route_id, org_id] = number + 1, now + FORGET_SECONDS

    def clear(self, route_id: str, org_id: UUID) -> None:
        """Forget the org's refusals on the route: a run has succeeded."""
        if self._seen:
            self._seen.pop((route_id, org_id), None)

    @contextmanager
    def waiting(self, route_id: str, org_id: UUID) -> Iterator[float]:
        """Count the run that executes the block as one that waits; gives the seconds to wait."""
        key = (route_id, org_id)
        seconds = self.pause(route_id, org_id) if self._waiting[key] < MAX_WAITING else 0.0
        self._waiting[key] += 1
        try:
            yield seconds
        finally:
            self._waiting[key] -= 1
            if not self._waiting[key]:
                del self._waiting[key]

    def pause(self, route_id: str, org_id: UUID) -> float:
        """Return the seconds that the org's next run on the route waits before its first call."""
        number, until = self._seen.get((route_id, org_id), (0, 0.0))
        if number < 2 or until <= self._clock():
            return 0.0
        longest = min(FIRST_PAUSE_SECONDS * 2.0 ** min(number - 2, 16), MAX_PAUSE_SECONDS)
        return longest * random.uniform(LEAST_PART, 1.0)
