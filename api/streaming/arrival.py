"""The time for which a long poll waits: it begins when the request arrives.

A worker gives a heartbeat up soon after the response is due, to renew its lease once more. What a
slow Postgres takes before the wait must not be added to it: the closed connection would count as
that of a worker that has left.
"""

import time
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from flask import g

P = ParamSpec("P")
R = TypeVar("R")


def counts_from_arrival(view: Callable[P, R]) -> Callable[P, R]:
    """Note when the request arrived; above `requires`, which may wait for Postgres itself."""

    @wraps(view)
    def noted(*args: P.args, **kwargs: P.kwargs) -> R:
        g.arrived_at = time.monotonic()
        return view(*args, **kwargs)

    return noted


def seconds_since_arrival() -> float:
    """Return for how long the request has been executed; its view is below
    `counts_from_arrival`.
    """
    return time.monotonic() - float(g.arrived_at)
