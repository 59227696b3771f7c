"""Limits of an agent's code in a native thread, whose greenlets have a hub of their own."""

import functools
import os
from collections.abc import Callable
from typing import Any

import gevent
import greenlet
from gevent import monkey
from gevent.exceptions import InvalidSwitchError, InvalidThreadUseError, LoopExit

from arkloop.shared import machine

NO_PROGRAMS = "An agent in the service's workers cannot start programs: use an agent worker."
NOT_SHARED = (
    "It has used a client, pool, queue or executor that was made outside the run: make one in each"
    " run, or use an agent worker."
)
#: Raised where a greenlet waits for, or wakes, one of another native thread.
_OTHER_HUB = (greenlet.error, InvalidSwitchError, InvalidThreadUseError, LoopExit)


class ProgramRefused(OSError):
    """The refusal to start a program; an OSError, as of a program that cannot be executed.

    Libraries that only ask a program for a detail do without it then.
    """


@functools.cache
def refuse_programs() -> None:
    """Raise ProgramRefused before a program starts in a native thread beside greenlets.

    gevent starts it and then raises, since only the main hub can wait for programs: the
    effect would be there, and would be recorded as failed.
    """
    if not monkey.is_module_patched("os"):
        return
    from gevent import os as gevent_os
    from gevent import subprocess as gevent_subprocess

    fork = _refusing(gevent_os.fork_and_watch)
    gevent_os.fork_and_watch = fork  # `os.fork` and `os.forkpty` look it up here
    gevent_subprocess.fork_and_watch = fork
    for name in ("posix_spawn", "posix_spawnp", "system"):
        setattr(os, name, _refusing(getattr(os, name)))


def _refusing(start: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(start)
    def checked(*args: Any, **named: Any) -> Any:
        if not gevent.get_hub().loop.default:
            raise ProgramRefused(NO_PROGRAMS)
        return start(*args, **named)

    return checked


def explained(text: str, error: BaseException) -> str:
    """Add the limit to the text that the error comes from, if it comes from one."""
    for one in machine.causes_of(error):
        if isinstance(one, ProgramRefused):
            return f"{text} {NO_PROGRAMS}"
        if isinstance(one, _OTHER_HUB):
            return f"{text} {NOT_SHARED}"
    return text
