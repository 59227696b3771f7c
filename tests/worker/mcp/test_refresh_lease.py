"""The lease of a worker that refreshes a token."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from arkloop.shared.ids import new_id
from arkloop.shared.storage.connections import Connections
from arkloop.worker.mcp.refresh_lease import LEASE_SECONDS, lease


def never() -> bool:
    return False


def test_one_worker_at_a_time_has_the_lease(connections: Connections) -> None:
    """Another one waits until it is returned, or is needless; other owners do not."""
    key, other = (connections.keys.mcp_refresh(new_id(), owner) for owner in ("a", "b" * 9000))
    begun, is_done = threading.Event(), threading.Event()

    def wait(is_needless: Callable[[], bool]) -> None:
        begun.set()
        with lease(connections, key, is_needless):
            return

    with ThreadPoolExecutor(2) as threads:
        with lease(connections, key, never):
            with lease(connections, other, never):
                pass
            first, second = threads.submit(wait, never), threads.submit(wait, is_done.is_set)
            assert begun.wait(60)
            assert not second.done()
            is_done.set()
            second.result(60)
            assert connections.redis.exists(key)  # its end does not return the lease of another
            assert not first.done()
        first.result(60)
    assert not connections.redis.exists(key)


def test_a_lease_of_a_worker_that_has_crashed_ends_by_itself(connections: Connections) -> None:
    """It lives a little longer than a refresh may take."""
    key = connections.keys.mcp_refresh(new_id(), "a")
    with lease(connections, key, never):
        left = connections.redis.pttl(key) / 1000
    assert LEASE_SECONDS - 5 < left <= LEASE_SECONDS
