"""Forks the sidecars: `python -m arkloop.worker.mcp.forker RULES`, with a socket as its input.

The SDK takes a second and 50 MB to import; a sidecar that is forked takes milliseconds and shares
that memory. Each byte that the worker sends has a socket with it, which becomes that of a new
sidecar. This process has one thread and no event loop: forking it is safe. It ends when the
worker is gone and its sidecars have ended.
"""

import contextlib
import gc
import json
import logging
import os
import signal
import socket
import sys
from typing import Never

from arkloop.shared import logs
from arkloop.shared.security import egress, process_memory
from arkloop.shared.security.checked_http import ssl_context
from arkloop.shared.security.program_user import ProgramUser
from arkloop.worker.mcp import sidecar
from arkloop.worker.mcp.sessions import Rules


def main() -> None:
    """Fork a sidecar for each socket until the worker is gone."""
    # The SDK logs, with tracebacks, what servers do wrong, and every session id.
    logging.basicConfig(level=logging.ERROR, handlers=[logs.handler()])
    logs.handler().writes_directly = True  # a fork would copy the locks of a thread
    logging.getLogger("mcp").setLevel(logging.CRITICAL)
    given = json.loads(sys.argv[1])
    run_as = given["run_as"] and ProgramUser(**given["run_as"])
    rules = Rules(egress.Policy.of(given["allowed_networks"]), given["stdio"], run_as)
    if not given["core_dumps"]:
        process_memory.close()
    ssl_context()  # cached: read once for all
    # Sidecars that have ended are forgotten by the kernel.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    # The collector writes to what it looks at, and so would copy every page in each sidecar.
    gc.collect()
    gc.disable()
    gc.freeze()
    control = socket.socket(fileno=0)
    control.setblocking(True)
    while (received := socket.recv_fds(control, 1, 1))[0]:
        for descriptor in received[1]:
            try:
                if os.fork() == 0:
                    _become_sidecar(control, descriptor, rules)
            except OSError:
                logging.exception("starting a sidecar failed")
            os.close(descriptor)
    with contextlib.suppress(ChildProcessError):
        os.wait()  # for all: none of those that are forgotten is reported


def _become_sidecar(control: socket.socket, descriptor: int, rules: Rules) -> Never:
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        logs.handler().writes_directly = False
        gc.enable()
        control.detach()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sidecar.run(socket.socket(fileno=descriptor), rules)
    except BaseException:
        logging.exception("sidecar failed")
    finally:
        try:
            logs.handler().flush()
        finally:
            os._exit(0)


if __name__ == "__main__":
    main()
