"""The heartbeats of a worker of the customer, of which one that waits names all work in progress.

The service takes from a worker whose connections are closed only what its heartbeats have named.
What no heartbeat has named is taken when the lease ends, which may be minutes later.
"""

import logging
import threading
import time
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Generic, TypeVar

from arkloop.cli.client.client import Refused
from arkloop.cli.client.server_address import ServerAddress
from arkloop.cli.serve.pauses import FIRST_PAUSE_SECONDS
from arkloop.cli.serve.service import Service, Unreachable, is_suspended

log = logging.getLogger(__name__)

#: Work that ends sooner causes no heartbeat while another one waits.
LASTING_SECONDS = 0.5
#: The least time from a heartbeat to the next one that names more. The service has the first one
#: by then, or within the time for which it keeps what a closed connection has named.
RENEWAL_SECONDS = 1.0

Work = TypeVar("Work")


class _Line:
    """A connection, with a thread that sends its heartbeats."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.is_waiting = self.is_broken_off = False


class Heartbeats(Generic[Work]):
    """Heartbeats on two connections; each one names all work that is in progress when it is sent.

    Work that begins while one waits is named by another one, on the other connection. The first
    ends when its time is over. It is broken off only where a third one is due: the second has named
    all that is left of its work, so that the service takes nothing.
    """

    def __init__(
        self,
        server: ServerAddress,
        path: str,
        changed: threading.Condition,
        work: Callable[[], Collection[Work]],
        send: Callable[[Service, Sequence[Work]], None],
        max_pause_seconds: float,
    ) -> None:
        """Use `send` for heartbeats: it gets the pieces of work to be named, and raises as
        `Service.post`. `changed` is notified when there is more `work`.
        """
        self._changed, self._work, self._send = changed, work, send
        self._max_pause_seconds = max_pause_seconds
        self._lines = [_Line(Service(server, path)) for _ in range(2)]
        self._current = self._lines[0]  # the one that sends the next heartbeat
        self._named: set[Work] = set()  # by the newest heartbeat
        self._sent_at = 0.0

    @property
    def tasks(self) -> list[Callable[[], None]]:
        """Return what has to be executed in threads until `abort`."""
        return [*(partial(self._beat, line) for line in self._lines), self._renew]

    def abort(self) -> None:
        """Break the connections off: the worker has ended its work."""
        for line in self._lines:
            line.service.abort()

    def _beat(self, line: _Line) -> None:
        """Send one heartbeat after the other, while this connection is the current one."""
        pause = FIRST_PAUSE_SECONDS
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._current is line and bool(self._work()))
                named = list(self._work())
                self._named, self._sent_at = set(named), time.monotonic()
                line.is_waiting, line.is_broken_off = True, False
            failure: Unreachable | Refused | None = None
            try:
                self._send(line.service, named)
            except (Unreachable, Refused) as error:
                failure = error
            with self._changed:
                line.is_waiting = False
                is_current = self._current is line and not line.is_broken_off
            if line.service.is_aborted:
                return
            if failure is None or not is_current:
                pause = FIRST_PAUSE_SECONDS
                continue
            if not is_suspended(failure):
                log.warning("a heartbeat failed, next attempt in %.1f s: %s", pause, failure)
            time.sleep(pause)
            pause = min(2 * pause, self._max_pause_seconds)

    def _renew(self) -> None:
        """Let the other connection send a heartbeat when one waits that does not name all work."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._unnamed()))
                new = self._unnamed()
                left = self._sent_at + RENEWAL_SECONDS - time.monotonic()
            time.sleep(max(LASTING_SECONDS, left))
            with self._changed:
                if self._current.is_waiting and new & self._unnamed():
                    self._hand_over()

    def _unnamed(self) -> set[Work]:
        return set(self._work()) - self._named

    def _hand_over(self) -> None:
        [other] = [line for line in self._lines if line is not self._current]
        self._current = other
        if other.is_waiting:
            other.is_broken_off = True
            other.service.interrupt()
        self._changed.notify_all()
