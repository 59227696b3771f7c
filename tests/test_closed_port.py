"""The port of a server that is down."""

import socket

import pytest

from tests.closed_port import closed_port


def test_a_closed_port_refuses_connections() -> None:
    """A client sees what it sees of a server that is down."""
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", closed_port()), timeout=60)


@pytest.mark.parametrize("again", [False, True])
def test_nobody_can_listen_on_a_closed_port(again: bool) -> None:
    """A server that would take the port of one that has just ended cannot, either."""
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, again)
        with pytest.raises(OSError, match="Address already in use"):
            other.bind(("127.0.0.1", closed_port()))
