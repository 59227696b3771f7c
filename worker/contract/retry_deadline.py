"""The time for which a model call waits for a provider that responds with HTTP 429."""

from time import monotonic

#: From the first 429 or pause on, on the last route of the chain.
LAST_ROUTE_SECONDS = 600.0
#: On a route with another one after it. Every new 429 renews the pause for all calls that wait for
#: the route, so that no number of tries would bring them to the next route in time.
OTHER_ROUTE_SECONDS = 5.0


class RetryDeadline:
    """The deadline of one call on one route."""

    def __init__(self, *, has_next: bool) -> None:
        self._seconds = OTHER_ROUTE_SECONDS if has_next else LAST_ROUTE_SECONDS
        self._since: float | None = None

    def start(self) -> None:
        """Start the time, unless it has started."""
        if self._since is None:
            self._since = monotonic()

    @property
    def seconds_left(self) -> float:
        """The rest of the time; all of it until it starts."""
        return self._seconds - (0.0 if self._since is None else monotonic() - self._since)

    def allows(self, pause: float) -> bool:
        """Start the time and return whether the call may wait for these seconds.

        Once it may not, it never may.
        """
        self.start()
        if pause > self.seconds_left:
            self._seconds = 0.0
        return self._seconds > 0
