"""Messages to Redis and the broker that may be lost: sent beside the request, never in its way.

A notification wakes a process up, which otherwise finds the same fact in Postgres a little later.
So a frozen Redis costs a request no time, and nothing is retried.
"""

import logging
import queue
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol
from uuid import UUID

from arkloop.shared import fault_points, metrics
from arkloop.shared.outage_log import OutageLog

log = logging.getLogger(__name__)

#: At most this many are sent together: no other greenlet runs while they are combined.
MAX_GROUP = 20
#: Beyond this many the newest are dropped: their receivers read Postgres anyway.
MAX_PENDING = 10_000


class Notification(Protocol):
    """Data of what has happened. The log of a lost one has its `kind` and its `subject`, an id.

    It is sent by a process' `Connections`, whose module imports this one.
    """

    kind: ClassVar[str]

    @property
    def subject(self) -> object:
        """Return the id of the run, or of what else it is about."""

    @staticmethod
    def send(connections: Any, group: Sequence[Any]) -> None:
        """Send several of one class, in order. Whatever it raises, they are lost."""


@dataclass(frozen=True, slots=True)
class Enqueue:
    """A queued run, for the workers."""

    kind: ClassVar[str] = "enqueue"
    subject: UUID  # the run

    @staticmethod
    def send(connections: Any, group: "Sequence[Enqueue]") -> None:
        """Give the runs to the broker in one round trip."""
        connections.enqueue([one.subject for one in group])


@dataclass(frozen=True, slots=True)
class Discover:
    """An MCP server whose tools a worker is to list, by its config."""

    kind: ClassVar[str] = "discover"
    subject: UUID  # the config

    @staticmethod
    def send(connections: Any, group: "Sequence[Discover]") -> None:
        """Give the configs to the broker in one round trip."""
        connections.enqueue_discovery([one.subject for one in group])


@dataclass(frozen=True, slots=True)
class Recovered:
    """A run that was taken from a lost worker of the service, for the metrics of this process."""

    kind: ClassVar[str] = "recovered"
    subject: UUID  # the run

    @staticmethod
    def send(_connections: Any, group: "Sequence[Recovered]") -> None:
        """Count the runs."""
        metrics.RUNS_RECOVERED.add(len(group))


@dataclass(frozen=True, slots=True)
class Reached:
    """A fault point between a commit and the notifications of it."""

    kind: ClassVar[str] = "fault point"
    subject: str

    @staticmethod
    def send(_connections: Any, group: "Sequence[Reached]") -> None:
        """Let armed faults happen."""
        for one in group:
            fault_points.reach(one.subject)


def send_now(connections: Any, *group: Notification) -> None:
    """Send notifications of one class on the caller's thread; log those that are lost."""
    try:
        group[0].send(connections, group)
    except Exception as error:
        _log_loss(connections, group, error)
    else:
        if (losses := connections.losses.get(group[0].kind)) is not None:
            losses.worked()


def _log_loss(connections: Any, group: Sequence[Notification], cause: object) -> None:
    kind = group[0].kind
    metrics.NOTIFICATIONS_LOST.add(len(group), kind)
    # Of each kind: Redis may be unavailable while the broker works.
    losses = connections.losses.setdefault(kind, OutageLog(log, f"sending notifications of {kind}"))
    ids = ",".join(str(one.subject) for one in group)
    losses.failed("notification failed: kind=%s id=%s: %s", kind, ids, cause)


class NotificationSender:
    """Sends notifications in order from a thread of its own."""

    def __init__(self) -> None:
        self._pending: queue.Queue[tuple[Any, Notification]] = queue.Queue(MAX_PENDING)
        self._next: tuple[Any, Notification] | None = None
        threading.Thread(target=self._run, name="notifications", daemon=True).start()

    def __call__(self, connections: Any, notification: Notification) -> None:
        """Take the notification and return at once; drops it if too many are pending."""
        try:
            self._pending.put_nowait((connections, notification))
        except queue.Full:
            _log_loss(connections, [notification], f"{MAX_PENDING} are pending")

    def _run(self) -> None:
        while True:
            connections, first = self._next or self._pending.get()
            self._next = None
            send_now(connections, first, *self._followers(first))

    def _followers(self, first: Notification) -> list[Notification]:
        """Take those of the same class that come right after it."""
        followers: list[Notification] = []
        while len(followers) < MAX_GROUP - 1 and not self._pending.empty():
            connections, following = self._pending.get()
            if type(following) is not type(first):
                self._next = (connections, following)
                break
            followers.append(following)
        return followers
