"""Long polls in one process: which poll is woken for which news."""

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from arkloop.api.streaming import long_polls
from arkloop.api.streaming.long_polls import LongPoll, LongPollHub, respond_later
from arkloop.shared.storage.connections import Connections
from arkloop.shared.storage.signals import Wake
from tests.waiting import eventually


@pytest.fixture
def hub(connections: Connections) -> Iterator[LongPollHub]:
    made = LongPollHub(connections)
    yield made
    made.close()


class Waiter:
    """A poll in a thread of its own, which counts how often it looks for work."""

    def __init__(self, hub: LongPollHub, poll: LongPoll, found_at: int = 0) -> None:
        self.poll, self.looks, self.bodies = poll, 0, list[bytes]()
        self._hub, self._found_at = hub, found_at
        threading.Thread(target=self._run, daemon=True).start()
        eventually(lambda: self.looks > 0)

    def _run(self) -> None:
        def take() -> bytes | None:
            self.looks += 1
            return b"work" if self.looks == self._found_at else None

        self.bodies += respond_later(self._hub, self.poll, {}, 30, take, lambda: b"nothing")


def test_news_wakes_the_poll_that_has_waited_longest(hub: LongPollHub) -> None:
    """One of several idle polls takes the work, and the others keep waiting."""
    first, second = (Waiter(hub, LongPoll("t"), found_at=2) for _ in range(2))

    hub.wake("t", "x")
    eventually(lambda: [b"work"] == first.bodies)

    assert (1, []) == (second.looks, second.bodies)


def test_a_poll_sleeps_on_when_others_are_concerned(hub: LongPollHub) -> None:
    """A poll wakes for its own topic and the details that it has named."""
    picky = Waiter(hub, LongPoll("t", frozenset({"mine"})), found_at=2)

    for topic, detail in (("other", "mine"), ("t", "yours"), ("t", "mine")):
        hub.wake(topic, detail)
    eventually(lambda: [b"work"] == picky.bodies)

    assert 2 == picky.looks


def test_news_that_a_leaving_poll_has_not_looked_for_wakes_another(hub: LongPollHub) -> None:
    """Work is not left waiting when the poll that was woken for it has just ended."""
    leaving = LongPoll("t")
    with hub.waiting(leaving):
        waiter = Waiter(hub, LongPoll("t"), found_at=2)
        hub.wake("t", "x")

    eventually(lambda: [b"work"] == waiter.bodies)


def test_news_arrive_from_other_processes(hub: LongPollHub, connections: Connections) -> None:
    """A process that has made work wakes polls of all web processes through Redis."""
    one = Waiter(hub, LongPoll("t"), found_at=2)
    everyone = [Waiter(hub, LongPoll("u"), found_at=2) for _ in range(2)]
    eventually(lambda: hub._is_listening)

    connections.notify(Wake("t", "x"))
    connections.notify(Wake("u", "x", everyone=True))

    eventually(lambda: all(waiter.bodies == [b"work"] for waiter in (one, *everyone)))


def test_work_whose_announcement_was_lost_is_found(hub: LongPollHub) -> None:
    """A look at what waits in Postgres wakes polls that no message has woken."""
    hub.looks.append(lambda: [("t", "x")])

    waiter = Waiter(hub, LongPoll("t"), found_at=2)

    eventually(lambda: [b"work"] == waiter.bodies)


def test_a_poll_that_looks_itself_does_so_when_its_process_listens(hub: LongPollHub) -> None:
    """News from before the first subscription, or while Redis was away, are found at once."""
    itself = Waiter(hub, LongPoll("t", looks_itself=True), found_at=2)
    other = Waiter(hub, LongPoll("u"), found_at=2)

    eventually(lambda: [b"work"] == itself.bodies)
    assert hub._is_listening

    assert (1, []) == (other.looks, other.bodies)


def test_polls_that_look_themselves_do_so_one_by_one(
    hub: LongPollHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Thousands that asked Postgres at once would leave no connection for other requests."""
    monkeypatch.setattr(long_polls, "OWN_LOOKS_PER_SECOND", 1)
    first = Waiter(hub, LongPoll("t"))
    eventually(lambda: hub._is_listening)
    begin = time.monotonic()
    waiters = [Waiter(hub, LongPoll("t", looks_itself=True), found_at=2) for _ in range(5)]

    hub._on_message({"type": "subscribe"})
    eventually(lambda: any(waiter.bodies for waiter in waiters))
    early = sum(waiter.looks == 2 for waiter in waiters)
    eventually(lambda: all(waiter.bodies for waiter in waiters))

    assert early < 5
    # The first time that the hub listened may still wake some of them, too: two at a time.
    assert time.monotonic() - begin > 1.9
    assert 1 == first.looks


def test_a_poll_whose_client_has_left_ends(hub: LongPollHub) -> None:
    """A closed connection ends the poll, which then takes no work."""
    ours, theirs = socket.socketpair()
    with ours:
        waiter = Waiter(hub, LongPoll("t", connection=ours), found_at=2)
        theirs.close()
        eventually(lambda: [b"nothing"] == waiter.bodies)

    assert (True, 1) == (waiter.poll.has_left, waiter.looks)


def test_a_poll_that_was_woken_after_its_client_had_left_wakes_another(hub: LongPollHub) -> None:
    """What is announced before the hub has noticed the closed connection is for the next poll."""
    ours, theirs = socket.socketpair()
    with ours:
        gone = Waiter(hub, LongPoll("t", frozenset({"mine"}), ours), found_at=2)
        other = Waiter(hub, LongPoll("t", frozenset({"mine"})), found_at=2)
        theirs.close()
        hub.wake("t", "mine")
        eventually(lambda: [b"nothing"] == gone.bodies)
        eventually(lambda: [b"work"] == other.bodies)

    assert (True, 1) == (gone.poll.has_left, gone.looks)


def test_polls_respond_when_the_process_stops(hub: LongPollHub) -> None:
    """A server that is being stopped lets its clients ask another one at once."""
    waiter = Waiter(hub, LongPoll("t"))

    hub.stopping = lambda: True

    eventually(lambda: [b"nothing"] == waiter.bodies)
