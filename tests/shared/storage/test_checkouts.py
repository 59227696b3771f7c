"""The right to use one of a pool's connections."""

import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from arkloop.shared.storage.checkouts import Checkouts, NoneFree, Patience
from tests.waiting import eventually, in_parallel

#: Prints for each standstill how many of ten callers, who wait meanwhile, get the only connection.
#: What its user waits for is there when the process continues.
STANDSTILLS = """
from gevent import monkey
monkey.patch_all()
import gevent, socket, sys
from arkloop.shared.storage.checkouts import Checkouts, NoneFree, Patience

stand_still = monkey.get_original("time", "sleep")
checkouts = Checkouts(1, Patience(1, 1))
server, client = socket.socketpair()

def ask():
    with checkouts:
        client.recv(1)

def use():
    try:
        with checkouts:
            gevent.sleep(0.001)
            return True
    except NoneFree:
        return False

for seconds in map(float, sys.argv[1:]):
    users = [gevent.spawn(ask)] + [gevent.spawn(use) for _ in range(10)]
    while len(checkouts._queue) < 10:
        gevent.sleep(0.001)
    server.send(b"x")
    stand_still(seconds)
    gevent.joinall(users)
    print(sum(user.value for user in users[1:]))
"""


def test_no_more_than_the_pool_has_are_in_use() -> None:
    """Callers beyond that wait until one is given back, and all are served."""
    checkouts = Checkouts(3, Patience(20, 20))
    in_use: list[int] = []
    most: list[int] = []
    are_three = threading.Event()

    def use(number: int) -> int:
        with checkouts:
            in_use.append(number)
            most.append(len(in_use))
            if most[-1] == 3:
                are_three.set()
            are_three.wait(60)
            time.sleep(0.005)
            in_use.remove(number)
        return number

    assert list(range(30)) == in_parallel(30, use)
    assert 3 == max(most)


def test_callers_are_served_in_the_order_of_arrival() -> None:
    """A newcomer never overtakes those that wait."""
    checkouts = Checkouts(1, Patience(20, 20))
    served: list[int] = []

    def use(number: int) -> None:
        with checkouts:
            served.append(number)

    with ThreadPoolExecutor(10) as threads:
        with checkouts:
            for number in range(10):
                threads.submit(use, number)
                eventually(lambda number=number: len(checkouts._queue) == number + 1)
    assert list(range(10)) == served


def test_a_wait_ends_after_the_usual_time() -> None:
    """The caller gets an error, and leaves nothing behind in the queue."""
    checkouts = Checkouts(1, Patience(0.05, 0.05))
    with checkouts, pytest.raises(NoneFree), checkouts:
        pass
    with checkouts:
        pass


def test_a_standing_queue_is_left_sooner() -> None:
    """Once no connection was free for the usual time, newcomers wait the shorter one."""
    checkouts = Checkouts(1, Patience(1, 0.01))
    waits: list[float] = []

    def wait() -> None:
        began = time.monotonic()
        with pytest.raises(NoneFree), checkouts:
            pass
        waits.append(time.monotonic() - began)

    with checkouts:
        wait()
        wait()
    with checkouts:  # the queue was empty
        wait()

    assert waits[0] >= 1
    assert waits[1] < 1
    assert waits[2] >= 1


def test_a_connection_is_given_back_after_an_error() -> None:
    """A connection is returned to the pool after an error, whatever happened during its use."""
    checkouts = Checkouts(1, Patience(0.05, 0.05))
    with pytest.raises(ZeroDivisionError), checkouts:
        raise ZeroDivisionError
    with checkouts:
        pass


def test_none_is_lost_when_waits_end_while_connections_are_given_back() -> None:
    """All can be had again after many callers gave up at the moment of their turn."""
    checkouts = Checkouts(2, Patience(0.001, 0.001))
    stop = threading.Event()

    def use(_: int) -> None:
        while not stop.is_set():
            try:
                with checkouts:
                    time.sleep(0.001)
            except NoneFree:
                continue

    with ThreadPoolExecutor(20) as threads:
        busy = [threads.submit(use, number) for number in range(20)]
        time.sleep(1)
        stop.set()
    assert [None] * 20 == [thread.result() for thread in busy]
    with checkouts, checkouts:
        assert 0 == checkouts._free


@pytest.mark.processes
def test_callers_wait_again_after_a_standstill() -> None:
    """All are served once the process continues, unless it stands still again and again."""
    command = [sys.executable, "-c", STANDSTILLS, "1.3", "1.3"]
    done = subprocess.run(command, capture_output=True, text=True)

    assert "" == done.stderr
    served, soon_after = map(int, done.stdout.split())
    assert 10 == served
    assert soon_after < 10


def test_a_second_wait_is_rare() -> None:
    """A wait that ends in time has none, nor has one that began after the last standstill."""
    checkouts = Checkouts(1, Patience(0.05, 0.05))
    began = time.monotonic() - 1

    assert not checkouts._may_wait_again(began, time.monotonic() + 1)
    assert checkouts._may_wait_again(began, began + 0.5)
    assert checkouts._may_wait_again(began, began + 0.5)  # another one that waited then
    assert not checkouts._may_wait_again(time.monotonic(), began + 0.5)
