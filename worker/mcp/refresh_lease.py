"""The refresh of a token by one worker at a time.

Authorization servers that rotate refresh tokens may take the second use of one for theft, and then
revoke all access. The lease is in Redis: a lock of Postgres would occupy a connection, in a
transaction, for as long as the authorization server takes. Without Redis nothing is waited for.
"""

import contextlib
import time
from collections.abc import Callable, Iterator

import redis

from arkloop.shared.storage.connections import Connections
from arkloop.worker.mcp.client import GRACE_SECONDS, TOOLS_SECONDS

#: Longer than a worker needs that has the lease; it ends by itself where that one has crashed.
LEASE_SECONDS = TOOLS_SECONDS + GRACE_SECONDS + 2.0
_LOOK_SECONDS = 0.1


@contextlib.contextmanager
def lease(connections: Connections, key: str, is_needless: Callable[[], bool]) -> Iterator[None]:
    """Hold the lease `key`; wait until no other worker does, or it is needless.

    The caller has to ask again what `is_needless` asks. It is never kept waiting for longer than
    `LEASE_SECONDS`, and then continues without the lease.
    """
    last = time.monotonic() + LEASE_SECONDS
    while not (is_held := _take(connections, key)) and time.monotonic() < last:
        if is_needless():
            break
        time.sleep(_LOOK_SECONDS)
    until = time.monotonic() + LEASE_SECONDS - 1.0
    try:
        yield
    finally:
        if is_held and time.monotonic() < until:  # later it may be another worker's
            with contextlib.suppress(redis.RedisError):
                connections.ask_redis(lambda server: server.delete(key))


def _take(connections: Connections, key: str) -> bool:
    milliseconds = round(LEASE_SECONDS * 1000)
    try:
        taken = connections.ask_redis(lambda server: server.set(key, "1", nx=True, px=milliseconds))
    except redis.RedisError:
        return True
    return bool(taken)
