"""Messages to Redis and the broker that may be lost: sent beside the request, never in its way.

A hint wakes somebody up. Who misses it finds the same fact in Postgres a
little later, so a frozen Redis costs a request no time and nothing is retried.
"""

import logging
import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

log = logging.getLogger(__name__)

Notification = Callable[[], object]


@dataclass(frozen=True, slots=True)
class GroupedNotification:
    """A hint that goes together with those that come right after it and have the same `send`."""

    send: Callable[[Sequence[Any]], object]  # takes the `what` of each, in order
    what: Any

    def __call__(self) -> None:
        self.send([self.what])


#: At most this many are sent together: no other greenlet runs while they are combined.
MAX_GROUP = 20
#: Beyond this many the newest are dropped: their receivers read Postgres anyway.
MAX_PENDING = 10_000


def send_now(hint: Notification) -> None:
    """Send on the caller's thread: for a process whose caller has nothing better to do."""
    try:
        hint()
    except Exception as error:
        log.warning("notification failed: %s", error)


class NotificationSender:
    """Sends hints in order from a thread of its own."""

    def __init__(self) -> None:
        self._pending: queue.Queue[Notification] = queue.Queue(MAX_PENDING)
        self._next: Notification | None = None
        threading.Thread(target=self._run, name="hints", daemon=True).start()

    def __call__(self, hint: Notification) -> None:
        """Take the hint and return at once; drops it if too many are pending."""
        try:
            self._pending.put_nowait(hint)
        except queue.Full:
            log.warning("notification dropped: %d are pending", MAX_PENDING)

    def _run(self) -> None:
        while True:
            hint = self._next or self._pending.get()
            self._next = None
            send_now(self._with_followers(hint) if isinstance(hint, GroupedNotification) else hint)

    def _with_followers(self, first: GroupedNotification) -> Notification:
        group = [first.what]
        while len(group) < MAX_GROUP and not self._pending.empty():
            following = self._pending.get()
            if not isinstance(following, GroupedNotification) or following.send != first.send:
                self._next = following
                break
            group.append(following.what)
        return lambda: first.send(group)
