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
_PR_SET_KEEPCAPS = 8
_PR_SET_CHILD_SUBREAPER = 36
_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE = 47, 2

#: Linux' names of the two capabilities that let an unprivileged user pass a closed folder.
CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 1, 2


def tethered(
    argv: Sequence[str],
    *,
    death_signal: signal.Signals = signal.SIGKILL,
    user: str | None = None,
    capability: int | None = None,
) -> list[str]:
    """The command line that becomes `argv`, and gets `death_signal` when this process ends.

    Linux counts the end of the starting *thread*: start it from the main one. `user` is an account
    to become (root only), `capability` the one that it keeps.
    """
    command = [sys.executable, "-I", "-S", os.path.abspath(__file__)]
    command += ["--parent", str(os.getpid()), "--signal", str(int(death_signal))]
    if user is not None:
        command += ["--user", user]
    if capability is not None:
        command += ["--capability", str(capability)]
    return [*command, "--", *argv]


def tie_to_parent(parent: int, death_signal: int) -> None:
    """Get `death_signal` when `parent` ends; ends this process if that has happened already."""
    _prctl(_PR_SET_PDEATHSIG, death_signal)
    if os.getppid() != parent:
        raise SystemExit(128 + death_signal)


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent ends."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def permitted_capabilities() -> frozenset[int]:
    """What this process may hand on, from /proc; empty where there is no such thing."""
    try:
        with open("/proc/self/status") as status:
            mask = next(int(line.split()[1], 16) for line in status if line.startswith("CapPrm:"))
    except (OSError, StopIteration):
        return frozenset()
    return frozenset(bit for bit in range(64) if mask >> bit & 1)


def _prctl(option: int, *values: int) -> None:
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None, use_errno=True)
    arguments = [ctypes.c_ulong(value) for value in (*values, 0, 0, 0, 0)[:4]]
    if libc.prctl(option, *arguments) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"prctl {option}: {os.strerror(code)}")


def _become(user: str, capability: int | None) -> None:
    account = pwd.getpwnam(user)
    if capability is not None:
        _prctl(_PR_SET_KEEPCAPS, 1)
    os.setgroups([])
    os.setgid(account.pw_gid)
    os.setuid(account.pw_uid)
    os.environ.update(HOME="/", USER=user, LOGNAME=user)
    if capability is not None:
        _keep_only(capability)


def _keep_only(capability: int) -> None:
    """Keep one capability over the coming exec: it must be inheritable first, then ambient."""
    mask = 1 << capability
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    # effective, permitted, inheritable: the low words, then the high words
    data = (ctypes.c_uint32 * 6)(mask, mask, mask, 0, 0, 0)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.capset(header, data) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"capset: {os.strerror(code)}")
    _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, capability)


def _main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="tether")
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--signal", type=int, required=True)
    parser.add_argument("--user")
    parser.add_argument("--capability", type=int)
    parser.add_argument("argv", nargs="+")
    options = parser.parse_args(arguments)
    if options.user:
        _become(options.user, options.capability)
    # After the change of user, which makes the kernel forget it.
    tie_to_parent(options.parent, options.signal)
    try:
        os.execvp(options.argv[0], options.argv)
    except OSError as error:
        print(f"cannot start {options.argv[0]}: {error.strerror}", file=sys.stderr)
        raise SystemExit(127 if error.errno == errno.ENOENT else 126) from None


if __name__ == "__main__":
    _main(sys.argv[1:])
