"""Clients and vendors of the noisy org, in processes of their own.

In production they are on other machines. Here they give way to the service, and the client that
takes the quiet org's times does not share Python's lock with them.
"""

import contextlib
import json
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.http_clients import Follower, Loop, Request, Target, call_all

LOOK_SECONDS = 0.1
#: After this pause a client repeats what was refused.
RETRY_SECONDS = 1.0
_PATIENCE_SECONDS = 120.0
#: Longer than a client at the end of its patience with runs waits for a response.
JOIN_SECONDS = 300.0
#: The ways in which a process gives way; the second is less exact.
GROUP = "a control group with cpu.idle"
SESSION = "a session of the least weight"
_WAYS = ("none", GROUP, SESSION)
#: Each begins with nothing of its parent: gevent and open sockets do not survive a fork.
processes = multiprocessing.get_context("spawn")


class NoiseFailed(Exception):
    """A process that was to make noise has failed: what was measured beside it is no figure."""


class Stop:
    """An event that another process sets, how much that process has done until then, and in which
    way it gives way.
    """

    def __init__(self) -> None:
        self._event = processes.Event()
        self._done = processes.Value("L", 0)
        self._way = processes.Value("B", 0)

    def is_set(self) -> bool:
        """Return whether it has been set."""
        return self._event.is_set()

    def set(self) -> None:
        """Ask the process to end."""
        self._event.set()

    def wait(self) -> bool:
        """Wait until it is set."""
        return self._event.wait()

    def count(self, done: int) -> None:
        """Add what the noisy org has received: events of its runs, reports."""
        with self._done:
            self._done.value += done

    @property
    def done(self) -> int:
        """The sum of what has been counted."""
        return int(self._done.value)

    def give_way(self) -> None:
        """Let this process give way, and its starter know how."""
        self._way.value = _WAYS.index(give_way())

    @property
    def way(self) -> str:
        """The way of the process: `GROUP`, `SESSION`, or `none` before it gives way."""
        return _WAYS[self._way.value]


@contextmanager
def beside(make: Callable[..., None], *args: Any, gives_way: bool = True) -> Iterator[Stop]:
    """Run `make(stop, *args)` in a process of its own; set `stop` at the end of the block.

    It must not give way where the quiet org waits for it, too.

    Raises:
        NoiseFailed: the process has ended with an error, before or after `stop`, or has not ended
            within `JOIN_SECONDS` of it.
    """
    stop = Stop()
    target = _nicely if gives_way else make
    arguments = (make, stop, *args) if gives_way else (stop, *args)
    process = processes.Process(target=target, args=arguments, daemon=True)
    process.start()
    try:
        yield stop
    finally:
        stop.set()
        process.join(JOIN_SECONDS)
        status = process.exitcode
        process.kill()
        process.join()
    if status is None:
        raise NoiseFailed(f"{make.__name__}: has not ended within {JOIN_SECONDS:g} s of its stop")
    if status:
        raise NoiseFailed(f"{make.__name__}: exit status {status}; see its traceback")


def give_way() -> str:
    """Let this process have only the time of the processors that no other needs; returns in which
    way, `GROUP` or `SESSION`.

    A control group with `cpu.idle` gives way at once whenever another process wakes up; it is left
    behind, empty. Where none can be made, the process becomes a session of its own with the least
    weight, and may run on for milliseconds: Linux shares time among sessions first (`sched(7)`,
    autogroup), so that the policy alone would only let it give way to the clients that started it.
    """
    way = SESSION
    os.setsid()
    with contextlib.suppress(OSError):  # a kernel without autogroups
        Path("/proc/self/autogroup").write_text("19")
    with contextlib.suppress(OSError):  # not root, or no group for processors here
        group = _control_groups() / "arkloop-noise"
        group.mkdir(exist_ok=True)
        (group / "cpu.idle").write_text("1")
        (group / "cgroup.procs").write_text(str(os.getpid()))
        way = GROUP
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    return way


def _control_groups() -> Path:
    """Return where control groups for processors are, of whichever version.

    Raises:
        OSError: there are none.
    """
    first = Path("/sys/fs/cgroup/cpu")
    return first if first.is_dir() else Path("/sys/fs/cgroup").resolve(strict=True)


def _nicely(make: Callable[..., None], stop: Stop, *args: Any) -> None:
    """Make noise that gives way, anew where that made it too late: a server has closed a
    connection that waited for it, or what it waited for was not there in time.
    """
    stop.give_way()
    while not stop.is_set():
        try:
            make(stop, *args)
            break
        except (ConnectionError, TimeoutError):
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
    loop, request = Loop(), ("POST", "/v1/runs", {**body, "message": content})
    while not stop.is_set():
        _play(loop, targets, [request] * runs, stop, cancels=True)


def repeat_in(stop: Stop, targets: list[Target], threads: Sequence[str]) -> None:
    """Play one run after the other in each of the threads."""
    loop = Loop()
    while not stop.is_set():
        _play(loop, targets, _in_each(threads), stop)


def repeat_get(stop: Stop, targets: list[Target], paths: Sequence[str], connections: int) -> None:
    """Send GET requests for the paths, that number of them at a time."""
    loop = Loop()

    def count(status: int, *_: object) -> None:
        # It is this org's own fault if its reports have to wait.
        assert status in (200, 429, 503), status
        stop.count(status == 200)

    while not stop.is_set():
        requests: list[Request] = [("GET", path, None) for path in paths] * connections
        call_all(loop, targets, requests, connections=connections, on_answer=count)


def play_once(stop: Stop, targets: list[Target], threads: Sequence[str]) -> None:
    """Play one run in each of the threads, and all anew while some are refused."""
    while not _play(Loop(), targets, _in_each(threads), stop) and not stop.is_set():
        pass


def _in_each(threads: Sequence[str]) -> list[Request]:
    return [("POST", f"/v1/threads/{one}/runs", {}) for one in threads]


def _play(
    loop: Loop,
    targets: list[Target],
    requests: Sequence[Request],
    stop: Stop,
    *,
    cancels: bool = False,
) -> bool:
    """Make these runs and follow them until all have ended; it may cancel them at `stop`.

    Returns whether all were accepted; if not, after a pause.
    """
    made = call_all(loop, targets, requests)
    # 409: the run of a client that began anew is still active. The others are the org's own fault.
    statuses = {status for status, _, _ in made}
    assert statuses <= {201, 409, 429, 503}, statuses
    ids = [json.loads(response)["run_id"] for status, response, _ in made if status == 201]
    refused: list[Follower] = []

    def follow(run_id: str, after_seq: int = 0) -> Follower:
        return Follower(loop, targets[0], run_id, after_seq=after_seq, on_refused=on_refused)

    def on_refused(follower: Follower, data: bytes) -> None:
        assert data[9:12] in (b"429", b"503"), data[:300]
        refused.append(follower)

    followers = [follow(one) for one in ids]
    deadline, seen = time.monotonic() + _PATIENCE_SECONDS, 0
    while refused or any(one.is_open and not one.ended_at for one in followers):
        loop.pause(LOOK_SECONDS)
        followers += [follow(one.run_id, one.cursor) for one in refused]
        refused.clear()
        received = sum(one.received for one in followers)
        stop.count(received - seen)
        seen = received
        if time.monotonic() > deadline or (cancels and stop.is_set()):
            call_all(loop, targets, [("POST", f"/v1/runs/{one}:cancel", {}) for one in ids])
            break
    for one in followers:
        one.close()
    if len(ids) < len(requests):
        time.sleep(RETRY_SECONDS)
    return len(ids) == len(requests)
