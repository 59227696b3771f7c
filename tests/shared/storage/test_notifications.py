"""Notifications leave in order, beside the request, and those of one class together."""

import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import pytest

from arkloop.shared.ids import new_id
from arkloop.shared.storage.connections import Connections
from arkloop.shared.storage.notifications import (
    Enqueue,
    Notification,
    NotificationSender,
    send_now,
)
from tests.waiting import eventually


@dataclass(frozen=True, slots=True)
class Held:
    """A notification whose sending is held up, so that those after it gather."""

    kind: ClassVar[str] = "held"
    got: ClassVar[list[list[int]]]
    go: ClassVar[threading.Event]
    subject: int

    @classmethod
    def send(cls, _connections: Connections, group: Sequence["Held"]) -> None:
        """Keep what came, and wait."""
        cls.got.append([one.subject for one in group])
        cls.go.wait(60)


class First(Held):
    """A class of notifications."""


class Second(Held):
    """A second class of them."""


@pytest.fixture(autouse=True)
def receivers(connections: Connections) -> None:
    """Forget what earlier tests have sent, and lost."""
    connections.losses.clear()
    for kind in (First, Second):
        kind.got, kind.go = [], threading.Event()


def test_notifications_of_one_class_that_follow_each_other_go_together(
    connections: Connections,
) -> None:
    """Notifications that arrive while the first is sent are grouped, and all stay in order."""
    send = NotificationSender()
    send(connections, First(0))
    eventually(lambda: First.got == [[0]])
    rest: list[Notification] = [First(1), First(2), First(3), Second(4), First(5), Second(6)]
    for notification in rest:
        send(connections, notification)

    First.go.set()
    eventually(lambda: Second.got == [[4]])
    assert [[0], [1, 2, 3]] == First.got
    Second.go.set()

    eventually(lambda: Second.got == [[4], [6]])
    assert [[0], [1, 2, 3], [5]] == First.got


def test_a_lost_notification_is_logged_and_does_not_harm_the_next(
    connections: Connections, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The log names its kind and the run, so that its run can be looked up."""
    lost, run_id = threading.Event(), new_id()

    def fail(_ids: object) -> None:
        lost.set()
        raise ConnectionError("Redis is gone")

    monkeypatch.setattr(connections, "enqueue", fail)
    First.go.set()
    send = NotificationSender()
    with caplog.at_level(logging.WARNING):
        send(connections, Enqueue(run_id))
        send(connections, First(1))
        eventually(lambda: First.got == [[1]])

    assert lost.is_set()
    assert f"notification failed: kind=enqueue id={run_id}: Redis is gone" in caplog.text


def test_an_outage_is_not_logged_by_each_notification(
    connections: Connections, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The first one of a kind that is lost has a line, and the first that is sent afterwards."""
    is_there = False

    def enqueue(_ids: object) -> None:
        if not is_there:
            raise ConnectionError("Redis is gone")

    monkeypatch.setattr(connections, "enqueue", enqueue)
    lost = [new_id() for _ in range(10)]
    First.go.set()
    with caplog.at_level(logging.INFO):
        for run_id in lost:
            send_now(connections, Enqueue(run_id))
            send_now(connections, First(1))
        is_there = True
        send_now(connections, Enqueue(new_id()))

    found = [record.getMessage() for record in caplog.records]
    first, over = (line for line in found if "notification" in line and "enqueue" in line)
    assert f"notification failed: kind=enqueue id={lost[0]}: Redis is gone" == first
    assert over.startswith("sending notifications of enqueue works again after")
    assert "failures: 10" in over
