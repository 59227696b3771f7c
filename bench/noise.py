"""Clients and vendors of the noisy org, in processes of their own.

In production they are on other machines. Here they give way to the service (SCHED_IDLE), and the
client that takes the quiet org's times does not share Python's lock with them.
"""

import json
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from bench.conversations import prepare
from bench.http_clients import Follower, Loop, Request, Target, call_all

LOOK_SECONDS = 0.1
_PATIENCE_SECONDS = 120.0
#: Each begins with nothing of its parent: gevent and open sockets do not survive a fork.
processes = multiprocessing.get_context("spawn")


class Stop(Protocol):
    """An event that another process sets."""

    def is_set(self) -> bool:
        """Return whether it has been set."""

    def wait(self) -> bool:
        """Wait until it is set."""


@contextmanager
def beside(make: Callable[..., None], *args: Any) -> Iterator[None]:
    """Run `make(stop, *args)` in a process of its own; set `stop` at the end of the block."""
    stop = processes.Event()
    process = processes.Process(target=_nicely, args=(make, stop, *args), daemon=True)
    process.start()
    try:
        yield
    finally:
        stop.set()
        process.join(_PATIENCE_SECONDS)
        process.kill()


def give_way(pid: int = 0) -> None:
    """Let a process, or this one, have only the time of the processors that no other needs."""
    os.sched_setscheduler(pid, os.SCHED_IDLE, os.sched_param(0))


def _nicely(make: Callable[..., None], *args: Any) -> None:
    give_way()
    make(*args)


def repeat(
    stop: Stop, targets: list[Target], content: str, body: dict[str, Any], runs: int
) -> None:
    """Play that number of runs at a time, each in a new thread with one message."""
    loop = Loop()
    while not stop.is_set():
        threads = prepare(loop, targets, runs, content)
        play(loop, targets, threads, body, stop)


def repeat_in(stop: Stop, targets: list[Target], threads: Sequence[str]) -> None:
    """Play one run after the other in each of the threads."""
    loop = Loop()
    while not stop.is_set():
        play(loop, targets, threads, {})


def repeat_get(stop: Stop, targets: list[Target], paths: Sequence[str], connections: int) -> None:
    """Send GET requests for the paths, that number of them at a time."""
    loop = Loop()
    while not stop.is_set():
        requests: list[Request] = [("GET", path, None) for path in paths] * connections
        answers = call_all(loop, targets, requests, connections=connections)
        # It is this org's own fault if its reports have to wait.
        assert {status for status, _, _ in answers} <= {200, 503}, answers[0]


def play_once(_stop: Stop, targets: list[Target], threads: Sequence[str]) -> None:
    """Play one run in each of the threads."""
    play(Loop(), targets, threads, {})


def play(
    loop: Loop,
    targets: list[Target],
    threads: Sequence[str],
    body: dict[str, Any],
    stop: Stop | None = None,
) -> None:
    """Start and follow a run in each thread until all have ended; at `stop`, cancel them."""
    made = call_all(loop, targets, [("POST", f"/v1/threads/{one}/runs", body) for one in threads])
    assert {status for status, _, _ in made} == {201}, made[0]
    ids = [json.loads(response)["run_id"] for _, response, _ in made]
    followers = [Follower(loop, targets[0], one) for one in ids]
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while any(one.is_open and not one.ended_at for one in followers):
        loop.pause(LOOK_SECONDS)
        if time.monotonic() > deadline or (stop is not None and stop.is_set()):
            call_all(loop, targets, [("POST", f"/v1/runs/{one}:cancel", {}) for one in ids])
            break
    for one in followers:
        one.close()
