"""The limits on a route's requests and tokens per minute, over all workers.

Counted in Redis. While it is away each process counts for itself: limits are then
kept less well, and no run waits for Redis.
"""

import logging
import random
import time
from dataclasses import dataclass
from typing import cast
from uuid import UUID

import redis
from limits import RateLimitItemPerMinute
from limits.storage import SlidingWindowCounterSupport
from limits.strategies import RateLimiter, SlidingWindowCounterRateLimiter

from arkloop.shared.catalog.model_routes import Route
from arkloop.shared.storage.connections import Connections
from arkloop.shared.storage.keys import Keys
from arkloop.shared.storage.shared_limiter import SharedLimiter
from arkloop.worker.process.refusals import Refusals

log = logging.getLogger(__name__)

#: Longest wait before a pause is asked for again.
MAX_PAUSE_SECONDS = 5.0
#: Longest and shortest wait for room in the limits. Not longer, since a run says only between two
#: waits that it still waits, which clients are promised every 30 s.
MAX_WAIT_SECONDS = 10.0
MIN_WAIT_SECONDS = 0.05
#: Such a wait becomes longer by up to this part of it, so that not all who wait come at once.
JITTER = 0.1
#: Those that wait in a process line up for room that is near, so far ahead.
MAX_LINE_SECONDS = 5.0
#: Delay until a process notices a pause that another one has met.
PAUSE_CHECK_SECONDS = 1.0
#: What this process remembers of pauses is cleared of old entries so often.
FORGET_SECONDS = 60.0


def with_jitter(pause: float) -> float:
    """Add jitter to a pause, so that not all who wait for its end come at once.

    Those who come first and are refused again have the pause renewed for all who have not come yet.
    """
    return pause + random.uniform(0, min(max(pause, 1.0), MAX_PAUSE_SECONDS))


class RouteLimits:
    """The route limits of a process; its methods are called by many threads."""

    def __init__(self, connections: Connections) -> None:
        self.refusals = Refusals()
        self._connections = connections
        self._limiter = SharedLimiter(
            connections, SlidingWindowCounterRateLimiter, Keys.route_limits
        )
        self._paused: dict[str, float] = {}  # until when, on the monotonic clock, by Redis key
        self._asked: dict[str, float] = {}  # when Redis was last asked for that
        self._forget_at = 0.0
        self._last_places: dict[tuple[str, str], float] = {}  # by route and limit, as `_paused`

    def wait_for(self, route: Route, org_id: UUID, tokens: int) -> tuple[str, float] | None:
        """Count the call and return None if the route has room for this call of the org.

        Else why not, as in `run.throttled`, and after how many seconds to ask again.
        """
        if (paused := self._pause_left(route, org_id)) > 0:
            return "provider", with_jitter(paused)
        if route.requests_per_minute is None and route.tokens_per_minute is None:
            return None
        full = self._limiter.ask(lambda limiter: _take(limiter, route, tokens))
        return None if full is None else (full.limit, self._place(route, full))

    def count_output(self, route: Route, reserved: int, used: int) -> None:
        """Count the tokens that a call used beyond the `reserved` ones it was admitted for."""
        if route.tokens_per_minute is None or used <= reserved:
            return
        limit = RateLimitItemPerMinute(route.tokens_per_minute)

        def count(limiter: RateLimiter) -> None:
            # What does not fit any more would not be counted at all.
            left = limiter.get_window_stats(limit, route.id, "tokens").remaining
            if cost := min(used - reserved, left):
                limiter.hit(limit, route.id, "tokens", cost=cost)

        self._limiter.ask(count)

    def pause(self, route: Route, org_id: UUID | None, seconds: float) -> None:
        """Stop the org's calls on the route for this time, in all workers; None: everybody's."""
        key = self._connections.keys.route_pause(route.id, org_id)
        self._paused[key] = max(self._paused.get(key, 0.0), time.monotonic() + seconds)
        milliseconds = max(1, round(seconds * 1000))
        try:
            self._connections.ask_redis(lambda server: server.set(key, "1", px=milliseconds))
        except redis.RedisError as error:
            log.warning(
                "Redis unavailable: the pause of route %s is not shared: %s", route.id, error
            )

    def _pause_left(self, route: Route, org_id: UUID) -> float:
        keys = self._connections.keys
        everybody, own = keys.route_pause(route.id), keys.route_pause(route.id, org_id)
        now = time.monotonic()
        if now - self._asked.get(own, float("-inf")) > PAUSE_CHECK_SECONDS:
            self._forget_old(now)
            self._asked[own] = now
            for key, left in zip((everybody, own), self._ask_pauses(everybody, own), strict=True):
                if left > 0:
                    self._paused[key] = max(self._paused.get(key, 0.0), now + left)
        until = max(self._paused.get(everybody, 0.0), self._paused.get(own, 0.0))
        return min(until - now, MAX_PAUSE_SECONDS)

    def _ask_pauses(self, *names: str) -> list[float]:
        """Return the seconds that are left of these pauses; not above 0 without a pause."""

        def ask(server: redis.Redis) -> list[int]:
            pipeline = server.pipeline(transaction=False)
            for name in names:
                pipeline.pttl(name)
            return pipeline.execute()

        try:
            return [left / 1000 for left in self._connections.ask_redis(ask)]
        except redis.RedisError:
            return [0.0] * len(names)

    def _forget_old(self, now: float) -> None:
        """Drop what is over: there is an entry for every org that has used a route."""
        if now < self._forget_at:
            return
        self._forget_at = now + FORGET_SECONDS
        self._paused = {key: until for key, until in self._paused.items() if until > now}
        fresh = now - PAUSE_CHECK_SECONDS
        self._asked = {key: asked for key, asked in self._asked.items() if asked > fresh}

    def _place(self, route: Route, full: "_Full") -> float:
        seconds = full.available_in
        if seconds < MAX_LINE_SECONDS:
            # Room for one is no reason for hundreds to ask at the same moment.
            line, now = (route.id, full.limit), time.monotonic()
            place = max(now + seconds, self._last_places.get(line, 0.0) + full.refills_in)
            self._last_places[line] = place = min(place, now + MAX_LINE_SECONDS)
            seconds = place - now
        seconds = min(max(seconds, MIN_WAIT_SECONDS), MAX_WAIT_SECONDS)
        return seconds * random.uniform(1, 1 + JITTER)


@dataclass(frozen=True, slots=True)
class _Full:
    """A limit without room for a call: there is some in `available_in` seconds, if nobody takes it.

    `refills_in`: the seconds in which the limit gains as much as the call costs.
    """

    limit: str
    available_in: float
    refills_in: float


def _take(limiter: RateLimiter, route: Route, tokens: int) -> _Full | None:
    wanted: list[tuple[str, RateLimitItemPerMinute, int]] = []
    if route.tokens_per_minute is not None:
        # A call larger than a minute's tokens would wait for ever: it takes a whole minute.
        cost = min(max(tokens, 1), route.tokens_per_minute)
        wanted.append(("tokens", RateLimitItemPerMinute(route.tokens_per_minute), cost))
    if route.requests_per_minute is not None:
        wanted.append(("requests", RateLimitItemPerMinute(route.requests_per_minute), 1))
    for name, limit, cost in wanted:
        if (seconds := _seconds_until_available(limiter, limit, route.id, name, cost)) > 0:
            return _Full(name, seconds, cost * limit.get_expiry() / limit.amount)
    for name, limit, cost in wanted:
        # Between the question and this another call may have come: the last word is here. What
        # was taken of another limit is lost then, which errs on the side of the provider.
        if not limiter.hit(limit, route.id, name, cost=cost):
            seconds = _seconds_until_available(limiter, limit, route.id, name, cost)
            return _Full(name, seconds, cost * limit.get_expiry() / limit.amount)
    return None


def _seconds_until_available(
    limiter: RateLimiter, limit: RateLimitItemPerMinute, route_id: str, name: str, cost: int
) -> float:
    """Return in how many seconds `limiter.hit` succeeds, if nothing else calls; 0 means now."""
    # Not `get_window_stats`: its time is when a single token or request is free.
    storage, minute = cast(SlidingWindowCounterSupport, limiter.storage), limit.get_expiry()
    previous, previous_left, current, current_left = storage.get_sliding_window(
        limit.key_for(route_id, name), minute
    )
    # The previous window counts by the part of it that the minute until now covers, rounded down:
    # it must come below `capacity`.
    capacity = limit.amount - cost - current + 1
    if capacity > 0:
        return previous_left - capacity * minute / previous if previous else 0.0
    # Only when the current window is the previous one, which it is kept for a minute to be.
    return current_left - (limit.amount - cost + 1) * minute / current
