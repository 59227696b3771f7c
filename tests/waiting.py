"""Waiting for what other threads and processes do."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import psutil

T = TypeVar("T")


def eventually(check: Callable[[], bool], *, seconds: float = 60) -> None:
    """Wait until `check` holds; fail if it does not within `seconds`.

    It asks less and less often: many checks are requests, which keep what they wait for busy.
    """
    deadline = time.monotonic() + seconds
    pause = 0.005
    while not check():
        if time.monotonic() >= deadline:
            assert check(), f"did not come true within {seconds} s"  # the last check may be old
            return
        threading.Event().wait(pause)
        pause = min(pause * 1.3, 0.05)


def is_alive(process: psutil.Process) -> bool:
    """Return whether it runs: neither gone, nor dead and not yet forgotten by its parent.

    It may go between two questions, and the second one is an error then.
    """
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def in_parallel(count: int, call: Callable[[int], T]) -> list[T]:
    """Call it `count` times at once, with 0, 1, 2, …; what each returned, in that order."""
    start = threading.Barrier(count)

    def at_once(number: int) -> T:
        start.wait(60)
        return call(number)

    with ThreadPoolExecutor(count) as threads:
        return list(threads.map(at_once, range(count)))
