"""Web servers and workers that `tests/fork_server.py` starts, in a third of the CPU time."""

import atexit
import json
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).parents[1]


class Forked:
    """A process that is not this one's child, with the methods of `Popen` that tests call."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._descriptor: int | None = None
        with suppress(ProcessLookupError):  # it has ended
            self._descriptor = os.pidfd_open(pid)

    def __del__(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)

    def wait(self, timeout: float | None = None) -> None:
        """Wait for its end, for `timeout` seconds at most; its status is not known here.

        Raises:
            subprocess.TimeoutExpired
        """
        if not self.has_ended(timeout):
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0)

    def send_signal(self, how: int) -> None:
        """Send a signal, unless it has ended."""
        if self._descriptor is not None:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._descriptor, how)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def has_ended(self, seconds: float | None = 0) -> bool:
        """Return whether it ends within these seconds; None waits for as long as it runs."""
        if self._descriptor is None:
            return True
        poll = select.poll()
        poll.register(self._descriptor, select.POLLIN)
        return bool(poll.poll(None if seconds is None else seconds * 1000))


def has_ended(process: subprocess.Popen[bytes] | Forked) -> bool:
    """Return whether a process has ended, a child of this one or of the fork server."""
    if isinstance(process, Forked):
        return process.has_ended()
    return process.poll() is not None


class ForkServer:
    """The process that forks: the first order starts it, and it ends with this one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    def start(self, argv: Sequence[str], environ: Mapping[str, str], log: Path) -> Forked:
        """Start `python -m` with these arguments; all output is appended to the log.

        Raises:
            RuntimeError: the fork server has ended; its standard error is that of the tests.
        """
        sys.audit("arkloop.tests.fork", argv)
        order = {"argv": list(argv), "environ": dict(environ), "log": str(log)}
        with self._lock:
            if self._process is None:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "tests.fork_server"],
                    cwd=ROOT,
                    env={"PATH": os.environ["PATH"]},
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                )
                atexit.register(self.stop)
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            with suppress(BrokenPipeError):
                self._process.stdin.write(json.dumps(order).encode() + b"\n")
                self._process.stdin.flush()
            pid = self._process.stdout.readline()
            if not pid:
                raise RuntimeError("the fork server has ended; its error is above")
            return Forked(int(pid))

    def stop(self) -> None:
        """End the process that forks; the kernel sends SIGTERM to those that it forked."""
        process, self._process = self._process, None
        if process is not None:
            process.communicate()


SERVER = ForkServer()
