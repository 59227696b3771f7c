"""Hints leave in order, beside the request, and those of one kind together."""

import threading
from collections.abc import Sequence

from shared.storage.notifications import GroupedNotification, NotificationSender
from tests.waiting import eventually


class Receiver:
    """Holds the first that comes, so that the others gather."""

    def __init__(self) -> None:
        self.got: list[list[int]] = []
        self.go = threading.Event()

    def __call__(self, whats: Sequence[int]) -> None:
        self.got.append(list(whats))
        self.go.wait(10)


def test_hints_of_one_kind_that_follow_each_other_go_together() -> None:
    """While the first is under way; the order of all stays what it was."""
    first, second = Receiver(), Receiver()
    between: list[str] = []
    send = NotificationSender()
    send(GroupedNotification(first, 0))
    eventually(lambda: first.got == [[0]])
    for what in (1, 2, 3):
        send(GroupedNotification(first, what))
    send(lambda: between.append(f"after {first.got}"))
    send(GroupedNotification(first, 4))
    send(GroupedNotification(second, 5))
    send(GroupedNotification(second, 6))

    second.go.set()
    first.go.set()

    eventually(lambda: second.got != [])
    assert [[0], [1, 2, 3], [4]] == first.got
    assert ["after [[0], [1, 2, 3]]"] == between
    assert [[5, 6]] == second.got


def test_a_hint_that_fails_is_no_harm_to_the_next() -> None:
    """A failing notification is lost, and does not affect the next one."""
    arrived = threading.Event()
    send = NotificationSender()

    def fail(_whats: Sequence[int]) -> None:
        raise ConnectionError("Redis is gone")

    send(GroupedNotification(fail, 1))
    send(arrived.set)

    assert arrived.wait(10)
