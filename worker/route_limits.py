"""How many requests and tokens a minute a route may take, over all workers.

Counted in Redis. While it is away each process counts for itself: limits are then
kept less well, and no run waits for Redis.
"""

import logging
import time
from collections.abc import Callable
from typing import TypeVar

import redis
from limits import RateLimitItemPerMinute
from limits.errors import StorageError
from limits.storage import MemoryStorage, RedisStorage
from limits.strategies import RateLimiter, SlidingWindowCounterRateLimiter

from shared import keys
from shared.connections import Connections
from shared.model_routes import Route

log = logging.getLogger(__name__)

T = TypeVar("T")

#: Longest wait before the limits are asked again: others may have given up meanwhile.
MAX_WAIT_SECONDS = 5.0
MIN_WAIT_SECONDS = 0.05
#: So late does a process notice that another one was told to wait.
PAUSE_CHECK_SECONDS = 1.0


class RouteLimits:
    """One per process; its methods are called by many threads."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        storage = RedisStorage(
            connections.settings.redis_url,
            connection_pool=connections.redis.connection_pool,
            key_prefix=keys.ROUTE_LIMITS,
        )
        self._shared = SlidingWindowCounterRateLimiter(storage)
        self._own = SlidingWindowCounterRateLimiter(MemoryStorage())
        self._paused: dict[str, float] = {}  # until when, on the monotonic clock
        self._asked: dict[str, float] = {}  # when Redis was last asked for that

    def wait_for(self, route: Route, tokens: int) -> tuple[str, float] | None:
        """None, and the call is counted, if the route has room for it.

        Else why not, as in `run.throttled`, and after how many seconds to ask again.
        """
        if (paused := self._pause_left(route)) > 0:
            return "provider", paused
        if route.requests_per_minute is None and route.tokens_per_minute is None:
            return None
        return self._ask(lambda limiter: _take(limiter, route, tokens))

    def count_output(self, route: Route, reserved: int, used: int) -> None:
        """A call that was let in for `reserved` tokens has used so many."""
        if route.tokens_per_minute is None or used <= reserved:
            return
        limit = RateLimitItemPerMinute(route.tokens_per_minute)
        self._ask(lambda limiter: limiter.hit(limit, route.id, "tokens", cost=used - reserved))

    def pause(self, route: Route, seconds: float) -> None:
        """The provider wants no call for so long: those of other workers wait too."""
        self._paused[route.id] = max(self._paused.get(route.id, 0.0), time.monotonic() + seconds)
        milliseconds = max(1, round(seconds * 1000))
        try:
            self._connections.ask_redis(
                lambda server: server.set(keys.route_pause(route.id), "1", px=milliseconds)
            )
        except redis.RedisError as error:
            log.warning("the pause of %s stays in this process: %s", route.id, error)

    def _pause_left(self, route: Route) -> float:
        now = time.monotonic()
        if now - self._asked.get(route.id, float("-inf")) > PAUSE_CHECK_SECONDS:
            self._asked[route.id] = now
            try:
                name = keys.route_pause(route.id)
                left = self._connections.ask_redis(lambda server: server.pttl(name)) / 1000
            except redis.RedisError:
                left = 0.0
            self._paused[route.id] = max(self._paused.get(route.id, 0.0), now + left)
        return min(self._paused.get(route.id, 0.0) - now, MAX_WAIT_SECONDS)

    def _ask(self, question: Callable[[RateLimiter], T]) -> T:
        try:
            answer: T = self._connections.ask_redis(lambda _: question(self._shared))
            return answer
        except (redis.RedisError, StorageError) as error:
            log.warning("limits are counted by this process alone: %s", error)
            return question(self._own)


def _take(limiter: RateLimiter, route: Route, tokens: int) -> tuple[str, float] | None:
    wanted: list[tuple[str, RateLimitItemPerMinute, int]] = []
    if route.tokens_per_minute is not None:
        # A call larger than a minute's tokens would wait for ever: it takes a whole minute.
        cost = min(max(tokens, 1), route.tokens_per_minute)
        wanted.append(("tokens", RateLimitItemPerMinute(route.tokens_per_minute), cost))
    if route.requests_per_minute is not None:
        wanted.append(("requests", RateLimitItemPerMinute(route.requests_per_minute), 1))
    for name, limit, cost in wanted:
        if not limiter.test(limit, route.id, name, cost=cost):
            return name, _seconds_until(limiter, limit, route.id, name)
    for name, limit, cost in wanted:
        # Between the question and this another call may have come: the last word is here. What
        # was taken of another limit is lost then, which errs on the side of the provider.
        if not limiter.hit(limit, route.id, name, cost=cost):
            return name, _seconds_until(limiter, limit, route.id, name)
    return None


def _seconds_until(
    limiter: RateLimiter, limit: RateLimitItemPerMinute, route_id: str, name: str
) -> float:
    left = limiter.get_window_stats(limit, route_id, name).reset_time - time.time()
    return min(max(left, MIN_WAIT_SECONDS), MAX_WAIT_SECONDS)
