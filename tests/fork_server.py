"""A process that has loaded the code of web servers and workers, and forks them on request.

Loading takes most of the CPU time of their start. A forked process imports what reads settings, and
then does what its command line says. `tests/forked.py` starts this one.
"""

import ctypes
import gc
import json
import os
import runpy
import signal
import sys
from typing import Any

from gevent import monkey

#: Modules of the service do nothing at their import, but for those that read the settings: each
#: process imports these, with its own.
READ_SETTINGS = ("arkloop.api.gunicorn_conf", "arkloop.worker.app")
#: What web servers and workers load at their start.
MODULES = (
    *("arkloop.api.app", "arkloop.api.http.web_worker", "arkloop.shared.files.expiry"),
    *("arkloop.shared.runs.sweep", "arkloop.worker.poller", "arkloop.worker.providers"),
    *("arkloop.worker.process.process", "arkloop.worker.tasks", "arkloop.worker.tools"),
    *("ag_ui.core", "anthropic", "argon2", "celery.bin.worker", "celery.concurrency.gevent"),
    *("celery.worker.consumer", "flask", "gunicorn.app.wsgiapp", "gunicorn.workers.ggevent"),
    *("httpx2", "jwt", "kombu.transport.redis", "marshmallow", "openai", "psycopg", "redis"),
    *("sqlalchemy.dialects.postgresql", "yaml"),
)
#: <linux/prctl.h>: the signal that a process gets when its parent ends.
PR_SET_PDEATHSIG = 1


def main() -> None:
    """Read an order from each line, and print the id of the process that carries it out."""
    monkey.patch_all()
    # The loop of gevent's own versions would be inherited by every process.
    set_handler = monkey.get_original("signal", "signal")
    fork = monkey.get_original("os", "fork")
    for module in MODULES:
        __import__(module)
    gc.collect()
    gc.freeze()
    set_handler(signal.SIGCHLD, lambda *_: _reap())
    libc, own = ctypes.CDLL(None, use_errno=True), os.getpid()
    for line in sys.stdin.buffer:
        pid = fork()
        if pid == 0:
            set_handler(signal.SIGCHLD, signal.SIG_DFL)
            _end_with(own, libc)
            _carry_out(json.loads(line))
            return
        os.write(1, b"%d\n" % pid)


def _reap() -> None:
    """Let processes that have ended go; the CPU time they took is added to this one's."""
    wait = monkey.get_original("os", "waitpid")
    try:
        while wait(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:  # there are no others
        pass


def _end_with(parent: int, libc: ctypes.CDLL) -> None:
    """Let the kernel send SIGTERM to this process when its parent ends.

    The parent reads orders in the thread that forks, until the tests end or are killed.
    """
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM):
        raise OSError(ctypes.get_errno(), "prctl")
    if os.getppid() != parent:  # it has ended before
        os.kill(os.getpid(), signal.SIGTERM)


def _carry_out(order: dict[str, Any]) -> None:
    """Run a module as `python -m` does, with the variables and the log of the order."""
    log = os.open(order["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, descriptor in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(source, descriptor)
    os.close(log)
    os.close(nothing)
    os.environ.clear()
    os.environ.update(order["environ"])
    # After the current folder, as Python does at its start.
    sys.path[1:1] = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    module, *arguments = order["argv"]
    sys.argv[1:] = arguments
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
