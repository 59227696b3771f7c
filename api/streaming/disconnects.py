"""Notices of clients that closed their connection, without polling each of them."""

import select
import socket
from typing import Any

from gevent import monkey

# gevent takes epoll away, because waiting in it would stop the process. Nobody waits in it here.
_epoll: Any = monkey.get_original("select", "epoll")
# gevent's own knows nothing of RDHUP.
_poll: Any = monkey.get_original("select", "poll")


class Disconnects:
    """The connections of idle clients: as nothing is written to them, no write fails."""

    def __init__(self) -> None:
        self._epoll = _epoll()

    def add(self, connection: socket.socket) -> int:
        """Watch for the end of a connection; returns its file descriptor."""
        descriptor = connection.fileno()
        self._epoll.register(descriptor, select.EPOLLRDHUP | select.EPOLLONESHOT)
        return descriptor

    def remove(self, connection: socket.socket, descriptor: int) -> None:
        """Stop watching, unless it was closed: then the descriptor may be another connection's."""
        if connection.fileno() == descriptor:
            self._epoll.unregister(descriptor)

    def look(self) -> list[int]:
        """Return the descriptors of connections closed since the last call."""
        return [descriptor for descriptor, _ in self._epoll.poll(0)]


def is_closed(connection: socket.socket) -> bool:
    """Return whether the other side has closed the connection, or its half of it."""
    try:
        looking = _poll()
        looking.register(connection.fileno(), select.POLLRDHUP)
        return bool(looking.poll(0))
    except (OSError, ValueError):  # closed here
        return True
