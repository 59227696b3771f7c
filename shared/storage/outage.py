"""An outage: one caller at a time tries a silent server, and the others fail at once.

Without this every caller would find out for itself, each after its own time-out.
"""

import threading
import time


class Outage:
    """The state of one server as a process sees it: available, or silent a moment ago."""

    def __init__(self, pause_seconds: float) -> None:
        """Let one caller per `pause_seconds` try while the outage lasts."""
        self._pause = pause_seconds
        self._lock = threading.Lock()
        self._try_at: float | None = None
        self._failed_at: float | None = None
        self._tried_by: int | None = None  # the thread
        #: Why the server was unavailable the last time, for the lines of those that may not try.
        self.reason = ""

    @property
    def is_on(self) -> bool:
        """True if the server did not respond when it was last used."""
        return self._try_at is not None

    @property
    def began_meanwhile(self) -> bool:
        """True if it began after `may_try` let the calling thread try."""
        return self.is_on and self._tried_by != threading.get_ident()

    def was_within(self, seconds: float) -> bool:
        """Return whether the server did not respond at some time within these seconds."""
        return self._failed_at is not None and time.monotonic() - self._failed_at < seconds

    def may_try(self) -> bool:
        """Return whether the caller should use the server; if so, it must report the result."""
        if self._try_at is None:
            return True
        with self._lock:
            now = time.monotonic()
            if self._try_at is not None and now < self._try_at:
                return False
            self._try_at = now + self._pause
            self._tried_by = threading.get_ident()
            return True

    def failed(self, reason: str = "") -> None:
        """Record that the server did not respond, and why."""
        with self._lock:
            self.reason = reason
            self._failed_at = time.monotonic()
            self._try_at = self._failed_at + self._pause
            self._tried_by = None

    def answered(self) -> None:
        """Record that the server responded, with whatever result."""
        if self._try_at is not None:
            self._try_at = None
