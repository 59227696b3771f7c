"""Becomes an MCP server's program, which then cannot outlive the process that started it.

Runs as a script: `launcher.py PARENT PROGRAM ARGUMENT…`; imports little, for it is in the way.
"""

import ctypes
import os
import resource
import signal
import sys

_PR_SET_PDEATHSIG = 1
CANNOT_START = 127
#: Where programs are, and which certificates are trusted.
PASSED_ON = ("PATH", "HOME", "SSL_CERT_FILE", "SSL_CERT_DIR")


def environment() -> dict[str, str]:
    """Return the environment of a program: none of the service's settings, and so no secret."""
    given = os.environ  # noqa: TID251 - these are not ours
    return {name: given[name] for name in PASSED_ON if name in given}


def main() -> None:
    """Start the program; never returns."""
    parent, command = int(sys.argv[1]), sys.argv[2:]
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
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
