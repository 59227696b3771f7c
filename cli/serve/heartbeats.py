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
#: The part of a heartbeat's wait that passes before another one names more. As only two wait at a
#: time, new work is named within half of a wait, by at most twice as many heartbeats.
RENEWAL_PART = 0.5

Work = TypeVar("Work")


class _Line:
    """A connection, with a thread that sends its heartbeats."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.is_waiting = False
        self.has_failed = False  # the last one


class Heartbeats(Generic[Work]):
    """Heartbeats on two connections; each one names all work that is in progress when it is sent.

    Work that begins while one waits is named by another one, on the other connection. The first
    ends when its time is over, and a third one is sent only then. None is broken off: the service
    need not have read the newer one, and would take what the older one has named.
    """

    def __init__(
        self,
        server: ServerAddress,
        path: str,
        changed: threading.Condition,
        work: Callable[[], Collection[Work]],
        send: Callable[[Service, Sequence[Work]], None],
        wait_seconds: Callable[[], float],
        max_pause_seconds: float,
    ) -> None:
        """Use `send` for heartbeats: it gets the pieces of work to be named, and raises as
        `Service.post`. It takes `wait_seconds` where there is no news. `changed` is notified when
        there is more `work`.
        """
        self._changed, self._work, self._send = changed, work, send
        self._wait_seconds, self._max_pause_seconds = wait_seconds, max_pause_seconds
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
                line.is_waiting = True
            failure: Unreachable | Refused | None = None
            try:
                self._send(line.service, named)
            except (Unreachable, Refused) as error:
                failure = error
            with self._changed:
                line.is_waiting, line.has_failed = False, failure is not None
                if failure is not None and not line.service.is_aborted:
                    # The service need not have read the newer one, and takes what this one named.
                    self._current = line
                elif failure is None and (self._current.has_failed or not self._current.is_waiting):
                    self._current = line  # the other one may not get through
                is_current = self._current is line
                self._changed.notify_all()
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
                left = self._sent_at + RENEWAL_PART * self._wait_seconds() - time.monotonic()
            time.sleep(max(LASTING_SECONDS, left))
            with self._changed:
                self._changed.wait_for(lambda: not all(line.is_waiting for line in self._lines))
                if self._current.is_waiting and new & self._unnamed():
                    [self._current] = [line for line in self._lines if not line.is_waiting]
                    self._changed.notify_all()

    def _unnamed(self) -> set[Work]:
        return set(self._work()) - self._named
