"""Work that a thread of the process repeats until it is stopped."""

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from arkloop.shared.errors import Unavailable
from arkloop.shared.outage_log import OutageLog, reason_of

log = logging.getLogger(__name__)


@dataclass(kw_only=True, eq=False)
class BackgroundLoop:
    """A daemon thread that repeats one step: after a pause, again and again.

    `step` returns the seconds until its next call, None for `seconds`; the first call comes after
    `first_seconds`. A step that fails is logged and comes again, after the usual pause; once the
    loop is stopped, a failure is no error. `before` and `after` run in the same thread. `stopped`
    ends the loop; without one, `stop` does.
    """

    name: str = field(kw_only=False)
    step: Callable[[], float | None] = field(kw_only=False)
    seconds: float
    first_seconds: float | None = None
    stopped: threading.Event = field(default_factory=threading.Event)
    before: Callable[[threading.Event], None] = lambda stopped: None
    after: Callable[[], None] = lambda: None
    _outage: OutageLog = field(init=False)

    def __post_init__(self) -> None:
        """Start the thread."""
        self._outage = OutageLog(log, f"the background loop {self.name!r}")
        threading.Thread(target=self._run, name=self.name, daemon=True).start()

    def stop(self) -> None:
        """End the loop before its next step."""
        self.stopped.set()

    def _run(self) -> None:
        self.before(self.stopped)
        pause = self.first_seconds
        while not self.stopped.wait(self.seconds if pause is None else pause):
            pause = None
            try:
                pause = self.step()
                self._outage.worked()
            except Unavailable as error:
                self._outage.failed("%s skipped: %s", self.name, reason_of(error))
            except Exception as error:
                if self.stopped.is_set():
                    # A process closes its connections at its end, also under a step.
                    log.info("%s stopped in the middle of a step: %r", self.name, error)
                else:
                    log.exception("%s failed", self.name)
        self.after()
