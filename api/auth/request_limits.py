"""The limits on requests per minute, of an org and of each API key, over all web processes.

A request with a valid token counts for the org, and for the key that it comes from. Windows are
fixed minutes, shifted for each org and key, so that not all of them begin at the same moment.

The counts are in Redis. A process takes a hundredth of a limit at a time and gives it out by
itself: most requests cost no round trip, no more are accepted than the limit says, and a request
is refused early by at most what other processes have taken and not used. While Redis is away each
process gives out its share of the limit, which is the limit divided by `ARKLOOP_API_WORKERS`.

Responses say so as draft-ietf-httpapi-ratelimit-headers-10 does:
`RateLimit-Policy: "org";q=6000;w=60` and `RateLimit: "org";r=5999;t=42`. The policy that is nearest
to its end comes first.
"""

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import ceil
from typing import Literal, cast
from uuid import UUID, uuid5

from flask import Flask, Response, current_app, g
from limits.storage import MemoryStorage
from limits.strategies import FixedWindowRateLimiter, RateLimiter

from arkloop.shared.actors import Actor
from arkloop.shared.errors import RateLimitExceeded
from arkloop.shared.org_limits import OrgLimits
from arkloop.shared.storage.connections import Connections
from arkloop.shared.storage.keys import Keys
from arkloop.shared.storage.shared_limiter import SharedLimiter

WINDOW_SECONDS = 60
#: A process takes this part of a limit at a time.
PARTS = 100
#: Orgs and keys that a process remembers; beyond that it asks Redis anew for all of them.
_MAX_REMEMBERED = 10_000

Policy = Literal["org", "key"]


@dataclass(frozen=True, slots=True)
class Use:
    """The state of a limit: `remaining` requests until the window ends in `reset` seconds."""

    policy: Policy
    limit: int
    remaining: int
    reset: int


@dataclass(slots=True, eq=False)
class _Window:
    """A process's part in the present window of an org or key."""

    number: int = -1
    limit: int = 0  # by which it took what is left
    left: int = 0  # taken and not given out
    elsewhere: int = 0  # what nobody had taken when the process last took some
    is_own: bool = False  # taken from the counts of this process alone, without Redis
    is_used_up: bool = False
    #: Held while more is taken: else each waiting request would take a part of its own.
    lock: threading.Lock = field(default_factory=threading.Lock)

    def begin(self, number: int, limit: int) -> None:
        """Begin the window of this number, if it is another one, or go on under another limit.

        An earlier one if the clock was set back: until it had caught up, all would be refused. What
        is left under a higher limit might be more than the new one allows.
        """
        if number != self.number or limit != self.limit:
            self.number, self.limit = number, limit
            self.left, self.elsewhere, self.is_used_up = 0, 0, False

    def give_back(self) -> None:
        with self.lock:
            self.left += 1


class RequestLimits:
    """The limits of a web process."""

    def __init__(self, connections: Connections) -> None:
        self._of_settings = OrgLimits.of_settings(connections.settings)
        self._processes = connections.settings.api_workers
        self._limiter = SharedLimiter(connections, FixedWindowRateLimiter, Keys.request_limits)
        self._windows: dict[UUID, _Window] = {}

    def count(self, actor: Actor, *, is_heartbeat: bool = False) -> list[Use]:
        """Count a request of the actor; return what is left of each limit, the nearest first.

        Heartbeats count by themselves, under limits of the same size: an org that sends too many
        requests must not lose the runs that its own workers hold.

        Raises:
            RateLimitExceeded: a limit is used up.
        """
        now = time.time()
        counted: list[_Window] = []
        uses: list[Use] = []
        for policy, whose, limit in self._limits_of(actor):
            subject = uuid5(whose, "heartbeats") if is_heartbeat else whose
            window = self._window(subject)
            remaining = self._take(window, subject, limit)
            if remaining is None:
                for other in counted:
                    other.give_back()
                reset = _reset(subject, now)
                g.rate_limits = [Use(policy, limit, 0, reset), *uses]
                raise RateLimitExceeded(limit=policy, per_minute=limit).after(reset)
            counted.append(window)
            uses.append(Use(policy, limit, remaining, _reset(subject, now)))
        return sorted(uses, key=lambda use: use.remaining)

    def uses(self, actor: Actor) -> list[Use]:
        """Return what is left of each limit, without counting."""
        now = time.time()
        return [
            Use(policy, limit, self._remaining(subject, limit, now), _reset(subject, now))
            for policy, subject, limit in self._limits_of(actor)
        ]

    def _remaining(self, subject: UUID, limit: int, now: float) -> int:
        number = _number(subject, now)
        window = self._window(subject)
        is_present = window.number == number
        # A full Redis responds, too, without what it has rejected.
        ask = self._limiter.ask_own if is_present and window.is_own else self._limiter.ask
        taken = ask(lambda limiter: limiter.storage.get(_key(subject, number)))
        # No more than the limit, also if Redis has lost its counts since.
        return min(limit, max(0, limit - taken) + (window.left if is_present else 0))

    def _limits_of(self, actor: Actor) -> Iterator[tuple[Policy, UUID, int]]:
        limits = actor.limits or self._of_settings
        # The key first: an org's own count must not grow by what one of its keys is refused.
        if (most := limits.key_requests_per_minute) and actor.api_key_id is not None:
            yield "key", actor.api_key_id, most
        if most := limits.org_requests_per_minute:
            yield "org", actor.org_id, most

    def _window(self, subject: UUID) -> _Window:
        window = self._windows.get(subject)
        if window is None:
            if len(self._windows) >= _MAX_REMEMBERED:
                self._windows.clear()
            window = self._windows.setdefault(subject, _Window())
        return window

    def _take(self, window: _Window, subject: UUID, limit: int) -> int | None:
        """Take a request from the window and return how many remain; None if there is none left."""
        with window.lock:
            # Read under the lock: a request that had waited for it would begin an old window again.
            window.begin(_number(subject, time.time()), limit)
            if window.left == 0 and not window.is_used_up:
                self._refill(window, subject, limit)
            if window.left == 0:
                return None
            window.left -= 1
            return window.left + window.elsewhere

    def _refill(self, window: _Window, subject: UUID, limit: int) -> None:
        part = max(1, limit // PARTS)
        key = _key(subject, window.number)

        def take(limiter: RateLimiter) -> tuple[int, int, bool]:
            """Return how many were taken, how many are left for others, and `is_own`."""
            is_own = isinstance(limiter.storage, MemoryStorage)
            most = ceil(limit / self._processes) if is_own else limit
            taken = limiter.storage.incr(key, 2 * WINDOW_SECONDS, part)
            return max(0, min(part, most - (taken - part))), max(0, most - taken), is_own

        window.left, window.elsewhere, window.is_own = self._limiter.ask(take)
        window.is_used_up = window.left == 0


def _key(subject: UUID, number: int) -> str:
    return f"{subject}/{number}"


def _number(subject: UUID, now: float) -> int:
    return int(now + _shift(subject)) // WINDOW_SECONDS


def _reset(subject: UUID, now: float) -> int:
    """Return the whole seconds until the subject's next window; at least 1."""
    return WINDOW_SECONDS - int(now + _shift(subject)) % WINDOW_SECONDS


def _shift(subject: UUID) -> int:
    return subject.int % WINDOW_SECONDS


def request_limits() -> RequestLimits:
    """Return this process's limits on requests."""
    return cast(RequestLimits, current_app.extensions["arkloop.request_limits"])


def count(actor: Actor, *, is_heartbeat: bool = False) -> None:
    """Count this request of the actor, as `RequestLimits.count` does. Raises: RateLimitExceeded."""
    g.rate_limits = request_limits().count(actor, is_heartbeat=is_heartbeat)


def register(app: Flask) -> None:
    """Let responses have the headers, where there are limits."""
    app.after_request(_add_headers)


def _add_headers(response: Response) -> Response:
    if uses := g.get("rate_limits"):
        response.headers["RateLimit-Policy"] = ", ".join(
            f'"{use.policy}";q={use.limit};w={WINDOW_SECONDS}' for use in uses
        )
        response.headers["RateLimit"] = ", ".join(
            f'"{use.policy}";r={use.remaining};t={use.reset}' for use in uses
        )
    return response
