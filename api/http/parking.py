"""Responses that take no greenlet while they have nothing to send.

A greenlet with its stack, and what gunicorn keeps of a request, take several times the memory of
what an idle stream needs: its generator, its watch and its connection. So the web worker parks a
stream that is idle: the greenlet of its request ends, and the connection is kept here. Whatever
wakes the stream lets it run in a new greenlet, until it is idle again.
"""

import logging
import os
from collections.abc import Callable, Generator
from typing import ClassVar, Protocol

import gevent
from gevent import socket

log = logging.getLogger(__name__)

#: Seconds after which a client that takes nothing is closed.
BLOCKED_WRITE_SECONDS = 60
#: In a process, beside the connections that gunicorn serves: each takes a file descriptor.
MOST_PARKED = 20_000
_LAST_CHUNK = b"0\r\n\r\n"


class _Nothing(bytes):
    """The chunk that a body yields where it can be parked."""


IDLE = _Nothing()


class Sleeper(Protocol):
    """The object that a parked body waits for."""

    connection: socket.socket | None

    def park(self, parked: "ParkedConnection") -> bool:
        """Resume the connection when woken; False if there is something to do already."""
        ...


class Idle(BaseException):  # no error: nothing between the body and the web worker handles it
    """The exception in place of a body's next bytes when it can be parked."""

    def __init__(self, body: "ParkableBody") -> None:
        self.body = body


class ParkableBody:
    """The body of a response; `close` is called at its end, even if it was never begun."""

    __slots__ = ("_chunks", "_close", "_is_parked", "sleeper")

    def __init__(
        self,
        chunks: Generator[bytes],
        sleeper: Sleeper,
        close: Callable[[], None] | None,
    ) -> None:
        self._chunks = chunks
        self._close = close
        self._is_parked = False
        self.sleeper = sleeper

    def __iter__(self) -> "ParkableBody":
        return self

    def __next__(self) -> bytes:
        """Return what is to be sent next. Raises: Idle: nothing for a while."""
        chunk = next(self._chunks)
        self._is_parked = chunk is IDLE
        if self._is_parked:
            raise Idle(self)
        return chunk

    def close(self) -> None:
        """End the body, unless it is parked: gunicorn closes it with the request."""
        if not self._is_parked:
            self.end()

    def end(self) -> None:
        """End the body, whatever it has not yielded yet."""
        try:
            self._chunks.close()
        finally:
            if self._close is not None:
                self._close()


class ParkedConnection:
    """The connection of a response that is parked, or was.

    `end` takes the socket, and whether the whole body was sent. `count` is the number of all in
    this process, with those whose connection is served again.
    """

    count: ClassVar[int] = 0

    __slots__ = ("_body", "_descriptor", "_end", "_is_chunked", "_unsent")

    def __init__(
        self,
        body: ParkableBody,
        *,
        is_chunked: bool,
        end: Callable[[socket.socket, bool], None],
    ) -> None:
        self._body = body
        self._is_chunked = is_chunked
        self._end = end
        self._descriptor = -1
        self._unsent = b""
        ParkedConnection.count += 1

    def park(self, client: socket.socket) -> None:
        """Take the connection from its socket, which cannot be used any more."""
        sleeper = self._body.sleeper
        self._descriptor = client.detach()
        sleeper.connection = None
        if not sleeper.park(self):
            self.resume()

    def send(self, chunk: bytes) -> bool:
        """Send something without waiting, and stay parked; False if the response must run for it.

        Then nothing was sent, or the rest is sent first.
        """
        data = self._encoded(chunk)
        try:
            sent = os.write(self._descriptor, data)
        except OSError:
            return False  # the client is gone, or takes nothing: that is for the response
        self._unsent = data[sent:]
        return not self._unsent

    def resume(self) -> None:
        """Let the response run in a greenlet. Returns at once."""
        gevent.spawn(self._run)

    def _run(self) -> None:
        client = socket.socket(fileno=self._descriptor)
        client.settimeout(BLOCKED_WRITE_SECONDS)
        self._body.sleeper.connection = client
        is_whole = False
        try:
            self._send(client)
            is_whole = True
        except Idle:
            self.park(client)
            return
        except OSError:
            pass  # the client is gone, or the body has broken its connection off
        except Exception:
            log.exception("the rest of a response failed")
        try:
            self._body.end()
        except Exception:
            log.exception("the end of a response failed")
        try:
            self._end(client, is_whole)
        finally:
            ParkedConnection.count -= 1

    def _send(self, client: socket.socket) -> None:
        unsent, self._unsent = self._unsent, b""
        if unsent:
            client.sendall(unsent)
        for chunk in self._body:
            client.sendall(self._encoded(chunk))
        if self._is_chunked:
            client.sendall(_LAST_CHUNK)

    def _encoded(self, chunk: bytes) -> bytes:
        return b"%X\r\n%b\r\n" % (len(chunk), chunk) if self._is_chunked else chunk
