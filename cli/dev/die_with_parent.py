"""Start a program that cannot outlive the process that starts it.

This file runs as a script in front of the program and then becomes it. `subprocess` could call a
`preexec_fn` instead, but that is Python between fork and exec, which may hang next to threads.
It therefore imports nothing but a few modules of the standard library.
"""

import argparse
import ctypes
import errno
import os
import pwd
import signal
import sys
from collections.abc import Sequence

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def dying_with_parent(
    argv: Sequence[str],
    *,
    death_signal: signal.Signals = signal.SIGKILL,
    user: str | None = None,
    folder: str | os.PathLike[str] | None = None,
) -> list[str]:
    """Build a command line that becomes `argv`, and gets `death_signal` when this process ends.

    Linux counts the end of the starting *thread*: start it from the main one. `user` is an account
    to become (root only). `folder` is the working directory, entered before the change of account:
    the program is in it even if its own account could not enter it.
    """
    command = [sys.executable, "-I", "-S", os.path.abspath(__file__)]
    command += ["--parent", str(os.getpid()), "--signal", str(int(death_signal))]
    if user is not None:
        command += ["--user", user]
    if folder is not None:
        command += ["--folder", os.fspath(folder)]
    return [*command, "--", *argv]


def tie_to_parent(parent: int, death_signal: int) -> None:
    """Get `death_signal` when `parent` ends; ends this process if that has happened already."""
    _prctl(_PR_SET_PDEATHSIG, death_signal)
    if os.getppid() != parent:
        raise SystemExit(128 + death_signal)


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent ends."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def _prctl(option: int, *values: int) -> None:
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None, use_errno=True)
    arguments = [ctypes.c_ulong(value) for value in (*values, 0, 0, 0, 0)[:4]]
    if libc.prctl(option, *arguments) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"prctl {option}: {os.strerror(code)}")


def _become(user: str) -> None:
    account = pwd.getpwnam(user)
    os.setgroups([])
    os.setgid(account.pw_gid)
    os.setuid(account.pw_uid)
    os.environ.update(HOME="/", USER=user, LOGNAME=user)


def _main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="die_with_parent")
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--signal", type=int, required=True)
    parser.add_argument("--user")
    parser.add_argument("--folder")
    parser.add_argument("argv", nargs="+")
    options = parser.parse_args(arguments)
    try:
        if options.folder:
            os.chdir(options.folder)
        if options.user:
            _become(options.user)
    except OSError as error:
        as_user = f" as {options.user}" if options.user else ""
        print(f"cannot start {options.argv[0]}{as_user}: {error}", file=sys.stderr)
        raise SystemExit(126) from None
    # After the change of user, which makes the kernel forget it.
    tie_to_parent(options.parent, options.signal)
    try:
        os.execvp(options.argv[0], options.argv)
    except OSError as error:
        print(f"cannot start {options.argv[0]}: {error.strerror}", file=sys.stderr)
        raise SystemExit(127 if error.errno == errno.ENOENT else 126) from None


if __name__ == "__main__":
    _main(sys.argv[1:])
