"""The time that a model call waits for a provider that responds 429."""

from time import monotonic

#: From the first 429 or pause on, where there is no other route.
ALONE_SECONDS = 600.0
#: Where there is one. All who wait have a pause renewed for each other by every new 429, so that
#: no number of tries of their own would bring them to the next route in time.
BESIDE_ANOTHER_SECONDS = 5.0


class Patience:
    """The patience of one call with one route."""

    def __init__(self, *, has_next: bool) -> None:
        self._seconds = BESIDE_ANOTHER_SECONDS if has_next else ALONE_SECONDS
        self._since: float | None = None

    def start(self) -> None:
        """Begin the time, unless it has begun."""
        if self._since is None:
            self._since = monotonic()

    @property
    def seconds_left(self) -> float:
        """The rest of the time; all of it until it begins."""
        return self._seconds - (0.0 if self._since is None else monotonic() - self._since)

    def outlasts(self, pause: float) -> bool:
        """Return whether the call should wait these seconds; after the first no, always no.

        The first question begins its time.
        """
        self.start()
        if pause > self.seconds_left:
            self._seconds = 0.0
        return self._seconds > 0
