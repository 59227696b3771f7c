"""A worker's share of the processor, beside the web processes of the same machine."""

import errno
import os
import re
import time
from pathlib import Path

#: Linux shares the processor between sessions first, and then between the processes of each: see
#: "The autogroup feature" in sched(7). The file is empty where the session has no group.
_SESSION = Path("/proc/self/autogroup")
_NICENESS = re.compile(r" nice (-?[0-9]+)")
#: From users other than root, the kernel accepts one such write in 0.1 s.
_ATTEMPTS = 20
_PAUSE_SECONDS = 0.07


def lower(niceness: int, session: Path = _SESSION) -> None:
    """Let other processes go before this one, by a niceness from 0 to 19, unless they already do.

    If the process leads its session, as those that a Procfile's runner starts, the session goes
    behind others as well. Where the system has no such order, or refuses it, nothing happens.
    """
    os.setpriority(os.PRIO_PROCESS, 0, max(niceness, os.getpriority(os.PRIO_PROCESS, 0)))
    if os.getsid(0) == os.getpid():
        for _ in range(_ATTEMPTS):
            try:
                found = _NICENESS.search(session.read_text())
                if found is not None and int(found[1]) < niceness:
                    session.write_text(str(niceness))
                return
            except OSError as error:  # a container may keep it from being written
                if error.errno != errno.EAGAIN:
                    return
            time.sleep(_PAUSE_SECONDS)
