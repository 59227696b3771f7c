"""How long a model call waits for a provider that takes no calls: it answers 429."""

from time import monotonic

#: From the first 429 or pause on, where there is no other route.
ALONE_SECONDS = 600.0
#: Where there is one. All who wait have a pause renewed for each other by every new 429, so that
#: no number of tries of their own would bring them to the next route in time.
BESIDE_ANOTHER_SECONDS = 5.0


class Patience:
    """Of one call with one route."""

    def __init__(self, *, has_next: bool) -> None:
        self._seconds = BESIDE_ANOTHER_SECONDS if has_next else ALONE_SECONDS
        self._since: float | None = None

    def outlasts(self, pause: float) -> bool:
        """Whether the call should wait for these seconds; once it should not, it never should.

        The first question begins its time.
        """
        now = monotonic()
        if self._since is None:
            self._since = now
        if now - self._since + pause > self._seconds:
            self._seconds = 0.0
        return self._seconds > 0
