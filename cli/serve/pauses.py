"""The pauses between polls of a worker of the customer that fail."""

import logging
import secrets
import threading

from arkloop.cli.client.client import Refused
from arkloop.cli.serve.service import Unreachable, is_final, is_suspended

log = logging.getLogger(__name__)

FIRST_PAUSE_SECONDS = 0.1
MAX_PAUSE_SECONDS = 5.0


class Pauses:
    """Pauses that grow up to the longest, which is also that of a suspended org.

    A suspension may take months: it is in the log once, and so is its end.
    """

    def __init__(self, stopping: threading.Event) -> None:
        self._stopping = stopping
        self._next = FIRST_PAUSE_SECONDS
        self._is_suspended = False
        self._has_polled = False

    def failure(self, error: Unreachable | Refused) -> Refused | None:
        """Return the refusal that ends the worker, such as one of its key; None: poll again.

        A response that is not the service's is that of a wrong URL only until a poll has succeeded.
        """
        found = error if isinstance(error, Refused) else error.refusal
        if found is None or not is_final(found) or (found is not error and self._has_polled):
            return None
        return found

    def after(self, error: Unreachable | Refused) -> None:
        """Wait before the next poll, or until the worker is stopping."""
        if self._stopping.is_set():
            return
        if is_suspended(error):
            self._next = MAX_PAUSE_SECONDS
            if not self._is_suspended:
                log.warning("polling continues once the organization is resumed: %s", error)
            self._is_suspended = True
        else:
            log.warning("polling failed, next attempt in %.1f s: %s", self._next, error)
        self._stopping.wait(self._next * (0.5 + secrets.randbelow(1000) / 1000))
        self._next = min(2 * self._next, MAX_PAUSE_SECONDS)

    def end(self) -> None:
        """Begin with the first pause again: a poll has succeeded."""
        if self._is_suspended:
            log.warning("polling continues: the organization has been resumed")
        self._is_suspended = False
        self._has_polled = True
        self._next = FIRST_PAUSE_SECONDS
