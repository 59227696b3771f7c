"""Ports that stay free while nobody listens on them."""

import random
import socket

#: Linux gives ports from 32768 on to outgoing connections. One of those could take the port of a
#: dead server, or, made to that very port, find itself as its own other end.
_PORTS = range(20_000, 32_000)


def listening_socket() -> socket.socket:
    """Return a socket that listens on such a port of 127.0.0.1."""
    while True:
        found = socket.socket()
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            found.bind(("127.0.0.1", random.choice(_PORTS)))
            # Only now is a port refused that somebody else listens on with SO_REUSEADDR.
            found.listen(1024)
            return found
        except OSError:
            found.close()


def quiet_port() -> int:
    """Return a port for a server that binds it itself."""
    with listening_socket() as probe:
        return int(probe.getsockname()[1])
