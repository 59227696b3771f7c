"""Work that a thread of the process repeats until it is stopped."""

import logging
import threading
from collections.abc import Callable

from shared.errors import Unavailable

log = logging.getLogger(__name__)


class BackgroundLoop:
    """A daemon thread that repeats one step: after a pause, again and again.

    A step that fails is logged and comes again, after the usual pause.
    """

    def __init__(
        self,
        name: str,
        step: Callable[[], float | None],
        *,
        seconds: float,
        first_seconds: float | None = None,
        stopped: threading.Event | None = None,
        before: Callable[[threading.Event], None] = lambda stopped: None,
        after: Callable[[], None] = lambda: None,
    ) -> None:
        """Start the thread.

        `step` returns the seconds until its next call, None for `seconds`; the first call comes
        after `first_seconds`. `before` and `after` run in the same thread. `stopped` ends the
        loop; without one, `stop` does.
        """
        self._name = name
        self._step = step
        self._seconds = seconds
        self._first_seconds = seconds if first_seconds is None else first_seconds
        self._stopped = stopped or threading.Event()
        self._before = before
        self._after = after
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def stop(self) -> None:
        """End the loop before its next step."""
        self._stopped.set()

    def _run(self) -> None:
        self._before(self._stopped)
        pause: float | None = self._first_seconds
        while not self._stopped.wait(self._seconds if pause is None else pause):
            pause = None
            try:
                pause = self._step()
            except Unavailable as error:
                log.warning("%s skipped: %s", self._name, error.__cause__)
            except Exception:
                log.exception("%s failed", self._name)
        self._after()
