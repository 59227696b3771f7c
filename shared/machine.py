"""Limits of the machine: processes that fit, and files that a process may open."""

import os
import resource
from contextlib import suppress
from pathlib import Path

#: Each web process may open 14 connections to Postgres, which allows 100 unless it is configured:
#: more than this, in each of several containers of a large host, is a decision.
MOST_BY_DEFAULT = 2
_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def cores(quota: Path = _QUOTA) -> int:
    """Return how many cores this process may use, at least 1; a container's quota counts."""
    try:
        found = len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS
        found = os.cpu_count() or 1
    with suppress(OSError, ValueError):
        limit, period = quota.read_text().split()
        found = min(found, round(int(limit) / int(period)))  # "max" is no number
    return max(1, found)


def default_web_processes() -> int:
    """Return how many gunicorn workers a web process has unless a setting says so."""
    return min(MOST_BY_DEFAULT, web_processes(cores()))


def web_processes(count: int) -> int:
    """Return how many gunicorn workers fit: Postgres, Redis and workers need the other half.

    Two cores are used by two, since workers give way to them.
    """
    return max(min(2, count), count // 2)


def worker_processes(count: int) -> int:
    """Return how many worker processes fit: one alone cannot use the core that web leaves idle."""
    return max(min(2, count), count // 4)


def raise_file_limit() -> None:
    """Let this process open as many files as its hard limit allows.

    Each connection is one; shells and service managers hand on a small soft limit.
    """
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):  # macOS refuses more than it can have
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
