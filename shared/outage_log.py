"""Lines of the log about outages: why, how often, and the end."""

import logging
import threading
import time

from arkloop.shared.errors import LeaseLost, Unavailable


def reason_of(error: BaseException) -> str:
    """Return why something is unavailable, for logs and operators: clients get the same text for
    every outage.
    """
    while isinstance(error, LeaseLost | Unavailable) and error.__cause__ is not None:
        error = error.__cause__
    # SQLAlchemy's errors quote the statement, with thousands of characters, behind the driver's.
    error = getattr(error, "orig", None) or error
    return str(error) or type(error).__name__


#: How often at most the line of a failure is repeated.
LINE_SECONDS = 30.0


class OutageLog:
    """The lines about something that fails again and again while a server is unavailable.

    The first failure is logged at once, then one in `LINE_SECONDS` with the number of those
    between, and the end. A failure that comes and goes has one such pair of lines in that time.
    """

    def __init__(self, log: logging.Logger, name: str) -> None:
        """`name` is what works again at the end."""
        self.is_on = False
        self._log = log
        self._name = name
        self._lock = threading.Lock()  # of failures and ends; what works takes none
        self._is_known = False  # whether the log has a line of this outage
        self._next_line_at = float("-inf")
        self._unlogged = 0  # failures since the last line
        self._failures = 0
        self._began_at = self._failed_at = 0.0
        self._worked_at: float | None = None  # for the first time after `_failed_at`

    def failed(self, line: str, *args: object) -> None:
        """Record a failure, and log it as a warning if its line is due."""
        with self._lock:
            now = time.monotonic()
            if not self.is_on:
                self.is_on, self._began_at, self._failures = True, now, 0
            self._failed_at, self._worked_at = now, None
            self._failures += 1
            if now < self._next_line_at:
                self._unlogged += 1
                return
            unlogged, self._unlogged = self._unlogged, 0
            self._is_known, self._next_line_at = True, now + LINE_SECONDS
        if unlogged:
            line, args = f"{line} (%d more failures since the last such line)", (*args, unlogged)
        self._log.warning(line, *args)

    def worked(self) -> None:
        """Record a success; log it where it ends an outage."""
        if not self.is_on:
            return
        with self._lock:
            now = time.monotonic()
            if self._worked_at is None:
                self._worked_at = now
            if not self.is_on or (not self._is_known and now < self._next_line_at):
                return
            self.is_on = self._is_known = False
            self._unlogged = 0
            lasted, since = self._worked_at - self._began_at, self._worked_at - self._failed_at
        self._log.info(
            "%s works again after %.1f s (failures: %d, the last %.1f s before)",
            *(self._name, lasted, self._failures, since),
        )
