"""A process that outlives its supervisor for a moment, and one that outlives the guard.

Two processes watch each other, so that kill -9 of either leaves nothing behind: when the guard (the
process that the user started) is killed, the kernel tells the supervisor, which stops all in order;
when the supervisor is killed, the guard inherits its orphans and ends them.
"""

import os
import signal
import sys
from collections.abc import Callable
from types import FrameType

from arkloop.cli.dev import die_with_parent, process_tree

#: What orphans of a killed supervisor get to end in order: Postgres writes its last page.
ORPHANS_GRACE_SECONDS = 2


def guarded(supervise: Callable[[], int]) -> int:
    """Run `supervise` in a process of its own and return its exit status.

    Signals to stop are passed on. Call it from the main thread, before any other thread exists.
    """
    die_with_parent.adopt_orphans()
    sys.stdout.flush()
    sys.stderr.flush()
    guard = os.getpid()
    passed_on = stop_signals()
    # A signal that comes between the fork and the handlers waits for them.
    signal.pthread_sigmask(signal.SIG_BLOCK, passed_on)
    supervisor = os.fork()
    if supervisor == 0:
        _run_and_exit(supervise, guard)

    def pass_on(number: int, _frame: FrameType | None) -> None:
        os.kill(supervisor, number)

    for number in passed_on:
        signal.signal(number, pass_on)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, passed_on)
    # Not reaped before the handlers are gone: its id must stay its own as long as we signal it.
    os.waitid(os.P_PID, supervisor, os.WEXITED | os.WNOWAIT)
    for number in passed_on:
        signal.signal(number, signal.SIG_IGN)
    _pid, status = os.waitpid(supervisor, 0)
    process_tree.end_children(grace_seconds=ORPHANS_GRACE_SECONDS)
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        print(f"the supervisor was ended by {signal.Signals(-code).name}", file=sys.stderr)
        return 128 - code
    return code


def stop_signals() -> set[signal.Signals]:
    """Return the signals that request a stop. A SIGHUP that `nohup` has switched off stays off."""
    asked = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
        asked.remove(signal.SIGHUP)
    return asked


def orphaned(guard: int) -> bool:
    """Return whether the guard with this process id has gone; called by the supervisor."""
    return os.getppid() != guard


def _run_and_exit(supervise: Callable[[], int], guard: int) -> None:
    status = 1
    try:
        # Out of the terminal's foreground group: Ctrl-C reaches it through the guard alone, once.
        os.setsid()
        die_with_parent.tie_to_parent(guard, signal.SIGTERM)
        # Signals stay blocked until the supervisor has its handlers.
        status = supervise()
    except SystemExit as exit_:
        status = exit_.code if isinstance(exit_.code, int) else 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        # Not `sys.exit`: the caller's frames, above this fork, are the guard's to leave.
        os._exit(status)
