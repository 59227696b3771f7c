"""HTTP clients between two runs: the next run on a route finds its connection open.

To connect anew takes two round trips to the vendor with TLS, before the first byte of a request.
Each client is one run's alone while it executes, so that a stop cuts no other run's calls.
"""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from arkloop.shared.catalog.model_routes import Route
from arkloop.shared.security.egress import Policy

log = logging.getLogger(__name__)

#: Below the time for which the load balancers of vendors keep a silent connection.
IDLE_SECONDS = 15.0
#: From the first run on: a host name may have another address by then.
MAX_AGE_SECONDS = 300.0
#: Of one process, over all routes; beyond it the oldest are closed.
MAX_CLIENTS = 64


class Client(Protocol):
    """The client of one run at a time, for one route under one policy."""

    route: Route
    policy: Policy | None
    made_at: float

    def hang_up(self) -> None:
        """Close its connections for good."""


C = TypeVar("C", bound=Client)


@dataclass(frozen=True, slots=True)
class _Idle(Generic[C]):
    client: C
    until: float


class IdleClients(Generic[C]):
    """The idle clients of a process; its methods are called by the threads of many runs."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._idle: list[_Idle[C]] = []  # the one that became idle last is the last
        self._is_watched = False

    def take(self, route: Route, policy: Policy | None) -> C | None:
        """Return a client for exactly this route, key and settings included; None: there is none.

        The one that became idle last: others may become too old then.
        """
        now = self._clock()
        with self._lock:
            for number in range(len(self._idle) - 1, -1, -1):
                idle = self._idle[number]
                is_same = (idle.client.route, idle.client.policy) == (route, policy)
                if is_same and idle.until > now:
                    del self._idle[number]
                    return idle.client
        return None

    def keep(self, client: C) -> None:
        """Keep a client whose run has ended; none of its connections may be in use."""
        now = self._clock()
        until = min(now + IDLE_SECONDS, client.made_at + MAX_AGE_SECONDS)
        with self._lock:
            self._idle.append(_Idle(client, until))
            starts, self._is_watched = not self._is_watched, True
        self.close_old()
        if starts:
            threading.Thread(target=self._watch, daemon=True).start()

    def close_old(self) -> bool:
        """Close the clients that are too old, or too many; returns whether any are left."""
        now = self._clock()
        with self._lock:
            most = len(self._idle) - MAX_CLIENTS
            old = [one for n, one in enumerate(self._idle) if n < most or one.until <= now]
            self._idle = [one for one in self._idle if one not in old]
            is_any_left = bool(self._idle)
        for one in old:
            try:
                one.client.hang_up()
            except Exception:
                log.warning("a connection to a model's vendor could not be closed", exc_info=True)
        return is_any_left

    def _watch(self) -> None:
        """Close clients in time while there are any, also where no run follows."""
        while True:
            time.sleep(IDLE_SECONDS / 2)
            if self.close_old():
                continue
            with self._lock:
                if not self._idle:
                    self._is_watched = False
                    return
