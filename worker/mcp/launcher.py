"""Becomes an MCP server's program, which then cannot outlive the process that started it.

Runs as a script: `launcher.py PARENT USER UID GID PROGRAM ARGUMENT…`, where an empty USER is that
of the parent; imports little, for it is in the way.
"""

import ctypes
import os
import resource
import signal
import sys

_PR_SET_PDEATHSIG = 1
_PR_SET_NO_NEW_PRIVS = 38
#: That of shells, and so of scripts whose last command is not there.
CANNOT_START = 127
#: Where programs are, and which certificates are trusted.
PASSED_ON = ("PATH", "HOME", "SSL_CERT_FILE", "SSL_CERT_DIR")


def environment() -> dict[str, str]:
    """Return the environment of a program: none of the service's settings, and so no secret."""
    given = os.environ  # noqa: TID251 - these are not ours
    return {name: given[name] for name in PASSED_ON if name in given}


def _become(user: str, uid: int, gid: int) -> None:
    try:
        os.initgroups(user, gid)
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
    except OSError:  # a container whose users do not include this one
        os._exit(CANNOT_START)


def main() -> None:
    """Start the program; never returns."""
    parent, user, command = int(sys.argv[1]), sys.argv[2:5], sys.argv[5:]
    prctl = ctypes.CDLL(None).prctl
    if user[0]:
        _become(user[0], int(user[1]), int(user[2]))
        prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)  # no program with a set-user-id bit leads back
    # The kernel forgets this when the user changes.
    prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
    if os.getppid() != parent:
        os._exit(CANNOT_START)
    # The limit of the process that speaks MCP is not the program's.
    most = resource.getrlimit(resource.RLIMIT_DATA)[1]
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    try:
        os.execvp(command[0], command)  # noqa: S606 - no shell is what is wanted
    except OSError:
        os._exit(CANNOT_START)


if __name__ == "__main__":
    main()
