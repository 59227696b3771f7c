"""Detection of clients that have closed their connection, without a look at each of them."""

import select
import socket
from typing import Any

from gevent import monkey

# gevent takes epoll away, because waiting in it would stop the process. Nobody waits in it here.
_epoll: Any = monkey.get_original("select", "epoll")


class Disconnects:
    """An idle client's farewell is seen only by who looks: nothing is written to it."""

    def __init__(self) -> None:
        self._epoll = _epoll()

    def add(self, connection: socket.socket) -> int:
        """Look out for the end of this connection; returns its number."""
        number = connection.fileno()
        self._epoll.register(number, select.EPOLLRDHUP | select.EPOLLONESHOT)
        return number

    def remove(self, connection: socket.socket, number: int) -> None:
        """Unregister a connection; the number of a closed one may already be another's."""
        if connection.fileno() == number:
            self._epoll.unregister(number)

    def look(self) -> list[int]:
        """Return the numbers of the connections that were closed since the last look."""
        return [number for number, _ in self._epoll.poll(0)]
