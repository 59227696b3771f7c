"""An interpreter, as far as pytest-xdist can see, that has loaded all tests already.

This script gives its standard streams to a fork of the process that has loaded them, and waits for
its end. It imports as little as it can; `tests/preloading.py` has the other side.
"""

import os
import socket
import sys
from contextlib import suppress

if __name__ == "__main__":
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(sys.argv[1])
        socket.send_fds(connection, [b"streams"], [0, 1, 2])
        nothing = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1):  # they close when the fork ends
            os.dup2(nothing, stream)
        with suppress(KeyboardInterrupt):  # the fork has its own
            connection.recv(1)
