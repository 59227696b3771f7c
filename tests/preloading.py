"""A plugin that loads the tests once, for all processes that run them: `-p tests.preloading`.

Each process of pytest-xdist collects all tests, and would load all their files and what these
import: 10 s of processor time, 16 s where Python has not compiled the files before. With this
plugin one process loads them; the others are forks of it, which collect again, but find each module
in memory. `tests/preloaded_python.py` stands where xdist starts an interpreter.
"""

import ctypes
import gc
import os
import select
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Generator
from contextlib import suppress
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
INTERPRETER = Path(__file__).with_name("preloaded_python.py")
#: <linux/prctl.h>: the signal that a process gets when its parent ends.
PR_SET_PDEATHSIG = 1


def pytest_configure(config: pytest.Config) -> None:
    """Start the process that loads the tests, where others are to run them."""
    if hasattr(config, "workerinput") or not config.option.tx:
        return
    folder = tempfile.TemporaryDirectory(prefix="preloaded-")
    config.add_cleanup(folder.cleanup)
    address = f"{folder.name}/socket"
    arguments = config.invocation_params.args
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        loader = subprocess.Popen(
            [sys.executable, "-m", "tests.preloading", str(listener.fileno()), *arguments],
            cwd=ROOT,
            stdin=subprocess.PIPE,  # it ends with this process
            stdout=subprocess.DEVNULL,  # what it cannot load, the others report
            pass_fds=[listener.fileno()],
        )
    python = shlex.join([sys.executable, "-I", "-S", str(INTERPRETER), address])
    config.option.tx = [f"popen//python={python}"] * len(config.option.tx)

    def end() -> None:
        loader.communicate()

    config.add_cleanup(end)


class _Unloading:
    """A plugin that forgets files whose loading failed or was skipped half-way.

    Otherwise the processes that run the tests would find what there is of them, and report nothing.
    """

    @pytest.hookimpl(wrapper=True)
    def pytest_make_collect_report(
        self, collector: pytest.Collector
    ) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
        report = yield
        if not report.passed:
            for name, module in [*sys.modules.items()]:
                if getattr(module, "__file__", None) == str(collector.path):
                    del sys.modules[name]
        return report


def main(listener: socket.socket, arguments: list[str]) -> None:
    """Load the tests, then fork for each connection; end when standard input does."""
    options = ["-n", "0", "--collect-only", "-qq", "--capture", "no"]
    pytest.main([*arguments, *options], plugins=[_Unloading()])
    if threading.active_count() > 1:
        raise RuntimeError(f"a fork would lack these threads of imports: {threading.enumerate()}")
    gc.collect()
    gc.freeze()
    own, libc = os.getpid(), ctypes.CDLL(None)
    while True:
        ready, _, _ = select.select([listener.fileno(), 0], [], [])
        if 0 in ready:
            return
        connection, _ = listener.accept()
        _, streams, _, _ = socket.recv_fds(connection, 16, 3)
        if os.fork() == 0:
            listener.close()
            libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
            if os.getppid() == own:  # it has not ended meanwhile
                _run(streams, connection)
            return
        for descriptor in (*streams, connection.detach()):
            os.close(descriptor)
        _reap()


def _reap() -> None:
    """Let processes that have ended go."""
    with suppress(ChildProcessError):  # there are no others
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _run(streams: list[int], connection: socket.socket) -> None:
    """Do what execnet, by which xdist starts processes, orders an interpreter to do.

    The connection stays open until the process ends.
    """
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115 - open as long as the process runs
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115 - the same
    gc.disable()  # conftest.py enables it after the collection
    exec(eval(sys.stdin.readline()), {"__name__": "__main__"})
    connection.close()


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):  # the process that started this one reports it
        main(socket.socket(fileno=int(sys.argv[1])), sys.argv[2:])
