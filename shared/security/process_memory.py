"""The memory of a process with secrets: no core dump has it, and no other process reads it.

Imported by gunicorn's master, so it imports nothing of the service.
"""

import resource

_PR_SET_DUMPABLE = 4


def close() -> None:
    """Refuse core dumps of this process, and what it starts from now on.

    The limit is inherited by programs, but does not bind a kernel that pipes dumps to a collector;
    the mark does, and also keeps other processes of the same user from reading memory and
    environment (`/proc`, ptrace), but lasts until this process becomes another program.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    except (ImportError, OSError, AttributeError):  # not Linux: the limit alone
        return
