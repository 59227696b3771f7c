"""Clients and vendors of the noisy org, in processes of their own.

In production they are on other machines. Here they give way to the service (SCHED_IDLE), and the
client that takes the quiet org's times does not share Python's lock with them.
"""

import contextlib
import json
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
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
def beside(make: Callable[..., None], *args: Any, gives_way: bool = True) -> Iterator[None]:
    """Run `make(stop, *args)` in a process of its own; set `stop` at the end of the block.

    It must not give way where the quiet org waits for it, too.
    """
    stop = processes.Event()
    target = _nicely if gives_way else make
    arguments = (make, stop, *args) if gives_way else (stop, *args)
    process = processes.Process(target=target, args=arguments, daemon=True)
    process.start()
    try:
        yield
    finally:
        stop.set()
        process.join(_PATIENCE_SECONDS)
        process.kill()


def give_way() -> None:
    """Let this process have only the time of the processors that no other needs.

    It becomes a session of its own. Linux shares time among sessions first (`sched(7)`, autogroup),
    so that the policy alone would only let it give way to the clients that started it.
    """
    os.setsid()
    with contextlib.suppress(OSError):  # a kernel without autogroups
        Path("/proc/self/autogroup").write_text("19")
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def _nicely(make: Callable[..., None], stop: Stop, *args: Any) -> None:
    """Make noise that gives way, anew where a server has closed a connection that waited for it."""
    give_way()
    while not stop.is_set():
        try:
            make(stop, *args)
            break
        except ConnectionError:
            continue


def compute(stop: Stop) -> None:
    """Take all the time of a processor that is left, and ask nothing of the service."""
    while not stop.is_set():
        until = time.monotonic() + LOOK_SECONDS
        while time.monotonic() < until:
            pass


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
