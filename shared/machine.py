"""Limits of the machine: processes that fit, and files that a process may open."""

import errno
import os
import resource
import socket
import traceback
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from arkloop.shared.errors import Unavailable

#: Each web process may open 14 connections to Postgres, which allows 100 unless it is configured:
#: more than this, in each of several containers of a large host, is a decision.
MOST_BY_DEFAULT = 2
#: The process, or the machine, has no file descriptor left.
_NO_FILE = (errno.EMFILE, errno.ENFILE)
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


def shortage_behind(error: BaseException) -> MemoryError | OSError | None:
    """Return the lack of memory or of a file descriptor from which an error came; None if none."""
    for cause in causes_of(error):
        if isinstance(cause, MemoryError):
            return MemoryError()
        # Without a descriptor a resolver says that the name is not known, or nothing for now.
        failure = _refused_file() if isinstance(cause, socket.gaierror) else cause
        if isinstance(failure, OSError) and failure.errno in _NO_FILE:
            return OSError(failure.errno, failure.strerror)
    return None


def raise_shortage(error: BaseException) -> None:
    """Raise what this process lacks, if the error came from that.

    Raises:
        MemoryError
        Unavailable: it has no file descriptor.
    """
    try:
        raise_unchanged_shortage(error)
    except OSError as shortage:
        raise Unavailable() from shortage


def raise_unchanged_shortage(error: BaseException) -> None:
    """Raise the shortage from which the error came, if there is one.

    Raises:
        MemoryError, OSError
    """
    shortage = shortage_behind(error)
    try:
        if shortage is not None:
            raise shortage from error
    finally:
        del shortage  # else it keeps the error's frames until garbage is collected


def lasting_shortage(error: BaseException) -> MemoryError | OSError | None:
    """Return the shortage behind an error that the code of an agent or a tool raised.

    None if a file can be opened by now: then the code had taken all descriptors itself. None for a
    lack of memory that the code has handled and replaced: an error `from None` is its answer. The
    error's frames are cleared, since they hold what the code has opened.
    """
    shortage = shortage_behind(error)
    if shortage is None:
        return None
    for cause in causes_of(error):
        traceback.clear_frames(cause.__traceback__)
    if isinstance(shortage, MemoryError):
        shown = causes_of(error, with_suppressed=False)
        return shortage if any(isinstance(one, MemoryError) for one in shown) else None
    return _refused_file()


def causes_of(error: BaseException, *, with_suppressed: bool = True) -> Iterator[BaseException]:
    """Yield the error, and those that it wraps or follows, each once.

    Contexts that `raise … from` suppresses are included only if `with_suppressed`. Otherwise the
    errors during which such a context arose follow, unless it is a lack of memory itself.
    """
    left, seen = [(error, True)], set[tuple[int, bool]]()
    while left:
        one, is_shown = left.pop()
        if (id(one), is_shown) in seen:
            continue
        seen.add((id(one), is_shown))
        if is_shown:
            yield one
            wrapped = one.exceptions if isinstance(one, BaseExceptionGroup) else ()
            left += [(cause, True) for cause in (*wrapped, one.__cause__) if cause is not None]
        elif isinstance(one, MemoryError):
            continue
        if one.__context__ is not None:
            left.append((one.__context__, with_suppressed or not one.__suppress_context__))


def _refused_file() -> OSError | None:
    """Return the lack of a descriptor for which this process can open no file; None if none."""
    try:
        os.close(os.open(os.devnull, os.O_RDONLY))
    except OSError as error:
        return error if error.errno in _NO_FILE else None
    return None
