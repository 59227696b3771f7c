"""A rate limiter whose counts are in Redis, for all processes together.

While Redis is away each process counts for itself: limits are then kept less well, and nothing
waits for Redis.
"""

import logging
import time
from collections.abc import Callable
from functools import lru_cache
from math import ceil
from typing import TypeVar

import redis
from limits import RateLimitItem
from limits.errors import StorageError
from limits.storage import MemoryStorage, RedisStorage
from limits.strategies import RateLimiter

from arkloop.shared.outage_log import OutageLog
from arkloop.shared.storage.connections import Connections
from arkloop.shared.storage.keys import Keys

log = logging.getLogger(__name__)

T = TypeVar("T")


class SharedLimiter:
    """The counts of one kind; `prefix_of` names where they are in Redis."""

    def __init__(
        self,
        connections: Connections,
        strategy: type[RateLimiter],
        prefix_of: Callable[[Keys], str],
    ) -> None:
        self._connections = connections
        self._strategy = strategy
        self._prefix_of = prefix_of
        #: By where the counts are: another place only after a restore.
        self._shared_at = lru_cache(maxsize=1)(self._make_shared)
        self._own = strategy(MemoryStorage())
        self._outage = OutageLog(log, "sharing rate limits")

    def ask(self, question: Callable[[RateLimiter], T]) -> T:
        """Return what `question` gets from the limiter with everybody's counts, or with our own."""
        shared = self._shared_at(self._prefix_of(self._connections.keys))
        try:
            answer: T = self._connections.ask_redis(lambda _: question(shared))
            self._outage.worked()
            return answer
        except (redis.RedisError, StorageError) as error:
            self._outage.failed("Redis unavailable: rate limits are per process: %s", error)
            return self.ask_own(question)

    def ask_own(self, question: Callable[[RateLimiter], T]) -> T:
        """Return what `question` gets from the limiter with the counts of this process alone."""
        return question(self._own)

    def hit(self, limit: RateLimitItem, name: str) -> int | None:
        """Count one; return None, or in how many seconds (at least 1) the next may come.

        What comes at once is counted one by one: no more than the limit get None.
        """

        def count(limiter: RateLimiter) -> int | None:
            if limiter.hit(limit, name):
                return None
            # Of the same limiter: a full Redis rejects what counts, and accepts what reads.
            try:
                ends_at = limiter.get_window_stats(limit, name).reset_time
            except (redis.RedisError, StorageError):
                # Our own count would accept what everybody's has refused.
                return limit.get_expiry()
            return max(1, ceil(ends_at - time.time()))

        return self.ask(count)

    def forget(self, limit: RateLimitItem, name: str) -> None:
        """Forget what was counted by all processes together, and by this one alone."""
        self._own.clear(limit, name)
        self.ask(lambda limiter: limiter.clear(limit, name))

    def _make_shared(self, prefix: str) -> RateLimiter:
        storage = RedisStorage(
            self._connections.settings.redis_url,
            connection_pool=self._connections.redis.connection_pool,
            key_prefix=prefix,
        )
        return self._strategy(storage)
