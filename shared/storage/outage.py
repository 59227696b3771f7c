"""A server that does not answer is asked by one caller at a time; the others are told at once.

Without this every caller would find out for itself, each after its own time-out.
"""

import threading
import time


class Outage:
    """What a process knows of one server: nothing bad, or that it was silent a moment ago."""

    def __init__(self, pause_seconds: float) -> None:
        """While it lasts, one caller in `pause_seconds` may try."""
        self._pause = pause_seconds
        self._lock = threading.Lock()
        self._try_at: float | None = None
        self._tried_by: int | None = None  # the thread

    @property
    def is_on(self) -> bool:
        """Whether the last that was heard of the server is that it did not answer."""
        return self._try_at is not None

    @property
    def began_meanwhile(self) -> bool:
        """Whether it began after the calling thread was told that it may try."""
        return self.is_on and self._tried_by != threading.get_ident()

    def may_try(self) -> bool:
        """Whether the caller should ask the server; who does must report what came of it."""
        if self._try_at is None:
            return True
        with self._lock:
            now = time.monotonic()
            if self._try_at is not None and now < self._try_at:
                return False
            self._try_at = now + self._pause
            self._tried_by = threading.get_ident()
            return True

    def failed(self) -> None:
        """The server did not answer."""
        with self._lock:
            self._try_at = time.monotonic() + self._pause
            self._tried_by = None

    def answered(self) -> None:
        """The server answered, whatever it said."""
        if self._try_at is not None:
            self._try_at = None
