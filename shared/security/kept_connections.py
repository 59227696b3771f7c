"""Connections that stay open from one request to the next, each lent to one request at a time.

A request over a new connection takes several times the work of one over a connection that is there,
and waits for three round trips more. A connection is kept for a short time only: most servers close
one that is idle for five seconds, and its name may lead elsewhere by now.

Nobody shares one with another: bytes that a server sends behind its response may be taken for the
response to the next request.
"""

import threading
import time
from collections import defaultdict
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

import httpcore2

from arkloop.shared.security.checked_http import CheckedBackend, ssl_context
from arkloop.shared.security.egress import Policy

#: Node.js closes a connection that is idle for five seconds.
IDLE_SECONDS = 4.0
MOST_SECONDS = 60.0
#: Each needs a descriptor. Beyond this number, a connection that is given back is closed.
MOST_IDLE = 200
#: A request that is not acknowledged within this time is sent over a new connection: a server that
#: is gone without a word must not cost the whole time of a request.
UNHEARD_SECONDS = 5


@dataclass(slots=True)
class Connection:
    """A connection to one origin; before the first request, and after the server has closed it,
    the next request opens it.
    """

    backend: CheckedBackend
    opened_at: float = field(default_factory=time.monotonic)
    used_at: float = 0.0
    _http: httpcore2.HTTPConnection | None = None

    def http(self, origin: httpcore2.Origin) -> httpcore2.HTTPConnection:
        """Return one that can take a request to the origin: the open one, unless it is closed."""
        if self._http is None or self._http.has_expired() or not self._http.is_available():
            if self._http is not None:
                self._http.close()
            self._http = httpcore2.HTTPConnection(
                origin,
                ssl_context=ssl_context(),
                keepalive_expiry=IDLE_SECONDS,
                network_backend=self.backend,
            )
        return self._http

    @property
    def can_be_kept(self) -> bool:
        """True if it is open, and nothing was read behind the last response, such as the body of a
        204.
        """
        # httpcore2 has no name of its own for what was read; the version is fixed.
        inner: Any = None if self._http is None else self._http._connection
        return inner is not None and inner.is_idle() and not inner._h11_state.trailing_data[0]

    def may_be_used(self, now: float) -> bool:
        """Return whether it was opened, and used, a short time ago."""
        return now - self.opened_at < MOST_SECONDS and now - self.used_at < IDLE_SECONDS

    def close(self) -> None:
        if self._http is not None:
            self._http.close()
        self.backend.cut()


@dataclass(frozen=True, slots=True)
class Lender:
    """The connections that are kept for one user of them, such as an endpoint."""

    _kept: "KeptConnections"
    _whose: Hashable

    def take(self, origin: str) -> Connection:
        """Lend the connection that was used last, or a new one."""
        return self._kept.take((self._whose, origin))

    def new(self) -> Connection:
        """Make a connection, which is opened by its first request."""
        return self._kept.new()

    def give_back(self, origin: str, connection: Connection) -> None:
        """Keep a connection whose response was read to its end."""
        self._kept.give_back((self._whose, origin), connection)


class KeptConnections:
    """The connections of one policy that no request uses now; the key is whose, and the origin."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._lock = threading.Lock()
        self._idle: dict[Hashable, list[Connection]] = defaultdict(list)
        self._count = 0
        self._is_closed = False

    def of(self, whose: Hashable) -> Lender:
        """Return the connections of this one, which nobody else uses."""
        return Lender(self, whose)

    def take(self, key: Hashable) -> Connection:
        now = time.monotonic()
        over: list[Connection] = []
        found: Connection | None = None
        with self._lock:
            idle = self._idle.pop(key, [])
            self._count -= len(idle)
            while idle and found is None:
                one = idle.pop()
                if one.may_be_used(now):
                    found = one
                else:
                    over.append(one)
            if idle:
                self._idle[key] = idle
                self._count += len(idle)
        for one in over:
            one.close()
        return found or self.new()

    def new(self) -> Connection:
        return Connection(CheckedBackend(self._policy, unheard_seconds=UNHEARD_SECONDS))

    def give_back(self, key: Hashable, connection: Connection) -> None:
        connection.used_at = time.monotonic()
        with self._lock:
            if not self._is_closed and self._count < MOST_IDLE:
                self._idle[key].append(connection)
                self._count += 1
                return
        connection.close()

    def close(self) -> None:
        """Close the idle connections, and from now on each that is given back."""
        self._is_closed = True
        self.close_idle(float("inf"))

    def close_idle(self, now: float | None = None) -> None:
        """Close the connections that have been idle, or open, for long enough."""
        now = time.monotonic() if now is None else now
        over: list[Connection] = []
        with self._lock:
            for key, idle in list(self._idle.items()):
                kept = [one for one in idle if one.may_be_used(now)]
                over += [one for one in idle if not one.may_be_used(now)]
                if kept:
                    self._idle[key] = kept
                else:
                    del self._idle[key]
            self._count -= len(over)
        for one in over:
            one.close()
