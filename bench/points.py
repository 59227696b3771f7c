"""The points at which a trial's process is killed: one that is not reached would test nothing."""

import time
from collections.abc import Callable

import psutil

_LOOK_SECONDS = 0.01


def wait_for(point: str, is_reached: Callable[[], bool], seconds: float) -> None:
    """Wait until a process has come to the point. Raises: TimeoutError."""
    deadline = time.monotonic() + seconds
    while not is_reached():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{point} is not reached")
        time.sleep(_LOOK_SECONDS)


def wait_for_death(point: str, pid: int, seconds: float) -> None:
    """Wait until the process has died at the point. Raises: TimeoutError."""
    wait_for(point, lambda: is_dead(pid), seconds)


def is_dead(pid: int) -> bool:
    """Return whether the process is gone, or dead and not yet forgotten by its parent."""
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True
