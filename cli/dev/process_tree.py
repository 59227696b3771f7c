"""The processes below this one, also those whose own parent has gone."""

import os
import signal
import time
from collections.abc import Collection
from contextlib import suppress

_END_SECONDS = 5


def children() -> list[int]:
    """Return the ids of the direct children, including ended ones not yet waited for."""
    if not os.path.isdir("/proc"):  # no Linux: there are no adopted children then
        return []
    pids = [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]
    return [pid for pid in pids if _parent_of(pid) == os.getpid()]


def _parent_of(pid: int) -> int | None:
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:
            # The name in brackets may hold anything, brackets and blanks too.
            return int(stat.read().rpartition(b")")[2].split()[1])
    except (OSError, IndexError, ValueError):
        return None


def next_ended_child() -> int | None:
    """Find an ended child that still has its id, as it was not waited for; None without one."""
    with suppress(ChildProcessError):
        ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        return ended.si_pid if ended is not None else None
    return None


def forget(pid: int) -> None:
    """Wait for an ended child that nobody else waits for."""
    with suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


def end_children(*, spare: Collection[int] = (), grace_seconds: float = 0) -> None:
    """Kill the direct children, and theirs as they are handed up, until none is left.

    Waits `grace_seconds` for them to end by themselves. Bounded: a process that even SIGKILL does
    not end (a stuck disk) is left after some seconds.
    """
    patient_until = time.monotonic() + grace_seconds
    deadline = patient_until + _END_SECONDS
    while time.monotonic() < deadline:
        left = [pid for pid in children() if pid not in spare]
        if not left:
            return
        for pid in left:
            if time.monotonic() >= patient_until:
                with suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
            forget(pid)
        time.sleep(0.01)
