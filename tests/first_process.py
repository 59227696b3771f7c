"""A program as process 1, as in a container, where this machine allows that."""

import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence

import psutil

from tests.web_server import ROOT

#: Of a signal to process 1, the kernel delivers what the process has a handler for.
ALONE = ["unshare", "--map-root-user", "--pid", "--fork", "--kill-child"]


def end_at(line: bytes, command: Sequence[str], environ: Mapping[str, str]) -> tuple[int, bytes]:
    """Send SIGTERM once the program has written a line with this text to standard error.

    Returns its status, and what it wrote then.
    """
    is_allowed = shutil.which("unshare") and not subprocess.run([*ALONE, "true"]).returncode
    whole = [*ALONE, *command] if is_allowed else command
    with subprocess.Popen(whole, cwd=ROOT, env=environ, stderr=subprocess.PIPE) as started:
        try:
            assert started.stderr is not None
            assert any(line in written for written in started.stderr)
            parent = psutil.Process(started.pid)
            [first] = parent.children() if is_allowed else [parent]

            first.send_signal(signal.SIGTERM)

            _, log = started.communicate(timeout=15)
        finally:
            started.kill()
    return started.returncode, log
