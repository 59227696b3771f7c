"""Ports that stay free while nobody listens on them."""

import socket

from arkloop.cli.dev.embedded_server import free_port


def listening_socket() -> socket.socket:
    """Return a socket that listens on such a port of 127.0.0.1.

    It is none that Linux gives to outgoing connections. One of those could take the port of a dead
    server, or, made to that very port, find itself as its own other end.
    """
    while True:
        found = socket.socket()
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            found.bind(("127.0.0.1", free_port()))
            # Only now is a port refused that somebody else listens on with SO_REUSEADDR.
            found.listen(1024)
            return found
        except OSError:
            found.close()


def quiet_port() -> int:
    """Return a port for a server that binds it itself."""
    with listening_socket() as probe:
        return int(probe.getsockname()[1])
