"""A port that refuses connections: the address of a server that is down."""

import socket


def closed_port() -> int:
    """Return a TCP port of loopback on which nothing listens while this process lives.

    It is bound, so that no server of another test takes it meanwhile, as one could take a port that
    was only found to be free.
    """
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port = int(bound.getsockname()[1])
        bound.detach()  # the kernel closes it at the end of this process
    return port
