"""The limits on streams that an org or an API key has open, over all web processes.

Each process keeps in Redis how many it has, for a moment, and renews that: what a process had that
was killed is free again after `LEASE_SECONDS`. A stream is opened by one script, which adds up all
processes; openings of a process take turns, so that its numbers arrive in order. A slot that was
given back a moment ago, and that Redis still has, is given out again without asking. A process that
opens streams also keeps a hundredth of the limit in reserve, as long as the others leave it one.
While Redis is away each process allows its share of the limit: the limit divided by
`ARKLOOP_API_WORKERS`.
"""

import logging
import secrets
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from importlib.resources import files
from math import ceil
from typing import Literal, NamedTuple
from uuid import UUID

import redis

from arkloop.shared.actors import Actor
from arkloop.shared.background_loop import BackgroundLoop
from arkloop.shared.errors import StreamLimitExceeded
from arkloop.shared.org_limits import OrgLimits
from arkloop.shared.outage_log import OutageLog
from arkloop.shared.storage.connections import Connections

log = logging.getLogger(__name__)

#: How long slots stay taken after a kill; a process that stands still for longer loses its own.
LEASE_SECONDS = 20.0
RENEW_SECONDS = 5.0
#: How long a slot that is free may still seem taken to other processes.
FLUSH_SECONDS = 0.2
RETRY_AFTER_SECONDS = 1
#: Orgs and keys that are renewed in one go: Redis does nothing else meanwhile.
AT_ONCE = 200
#: A process keeps this part of a limit in reserve; of a limit below it, nothing.
PARTS = 100
_UNCHECKED = -1
_TAKE = files(__package__).joinpath("take_slot.lua").read_text()


class StreamUse(NamedTuple):
    """A limit on streams, and how many are open."""

    scope: Literal["org", "key"]
    limit: int
    used: int


class _Limit(NamedTuple):
    scope: Literal["org", "key"]
    subject: UUID
    most: int


class Slot:
    """The place of one stream, until it is freed or forgotten."""

    __slots__ = ("_limits", "_slots")

    def __init__(self, slots: "StreamSlots", limits: Sequence[_Limit]) -> None:
        self._slots = slots
        self._limits = limits

    def free(self) -> None:
        limits, self._limits = self._limits, ()
        self._slots.give_back(limits)

    def __del__(self) -> None:
        if self._limits:
            self.free()


class StreamSlots:
    """The slots of a web process; made once, after any fork."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self._settings = connections.settings
        self._of_settings = OrgLimits.of_settings(connections.settings)
        self._process = secrets.token_hex(8)
        self._script = connections.redis.register_script(_TAKE)
        #: Held while Redis is asked, so that it gets the counts in order.
        self._asking = threading.Lock()
        self._counts: Counter[UUID] = Counter()
        self._freed: deque[UUID] = deque()  # not yet taken off the counts
        self._changed: set[UUID] = set()
        self._used: set[UUID] = set()  # since everything was last renewed
        #: How many Redis has of this process, and the limit by which it has accepted them.
        self._accepted: dict[UUID, tuple[int, int]] = {}
        self._renew_at = 0.0
        self._loop: BackgroundLoop | None = None
        self._outage = OutageLog(log, "sharing limits on streams")

    def take(self, actor: Actor) -> Slot | None:
        """Take a slot for a stream; None where there is no limit. Raises: StreamLimitExceeded."""
        limits = tuple(self._limits_of(actor))
        if not limits:
            return None
        with self._asking:
            if self._loop is None:
                self._loop = BackgroundLoop("stream slots", self._step, seconds=FLUSH_SECONDS)
            self._settle()
            for limit in limits:
                self._counts[limit.subject] += 1
                self._used.add(limit.subject)
            refused = None if all(map(self._has_accepted, limits)) else self._refused(limits)
            if refused is None:
                return Slot(self, limits)
            for limit in limits:
                self._counts[limit.subject] -= 1
        raise StreamLimitExceeded(scope=refused.scope, most=refused.most).after(RETRY_AFTER_SECONDS)

    def give_back(self, limits: Sequence[_Limit]) -> None:
        """Give back what a slot has taken; Redis gets to know it in a moment."""
        # No lock: this may be called by the garbage collector, in whatever thread.
        self._freed.extend(limit.subject for limit in limits)

    def uses(self, actor: Actor) -> list[StreamUse]:
        """Return the limits that apply to the actor, with the streams that are open."""
        with self._asking:
            self._settle()
        return [
            StreamUse(limit.scope, limit.most, self._open(limit.subject))
            for limit in self._limits_of(actor)
        ]

    def close(self) -> None:
        """End the thread; what this process has is free after `LEASE_SECONDS`."""
        if self._loop is not None:
            self._loop.stop()

    # ---- inside ----

    def _settle(self) -> None:
        """Take off the counts what was given back. With `_asking` alone."""
        while self._freed:
            subject = self._freed.popleft()
            self._counts[subject] -= 1
            self._changed.add(subject)

    def _limits_of(self, actor: Actor) -> Iterator[_Limit]:
        limits = actor.limits or self._of_settings
        if (most := limits.key_streams) and actor.api_key_id is not None:
            yield _Limit("key", actor.api_key_id, most)
        if most := limits.org_streams:
            yield _Limit("org", actor.org_id, most)

    def _refused(self, limits: Sequence[_Limit]) -> _Limit | None:
        """Return the limit that the counts exceed; if there is none, Redis has them now."""
        exact = [(limit, self._counts[limit.subject]) for limit in limits]
        ample = [(limit, count + limit.most // PARTS) for limit, count in exact]
        try:
            number = self._ask(ample)
            if number and ample != exact:
                number = self._ask(exact)
        except redis.RedisError as error:
            self._outage.failed("Redis unavailable: limits on streams are per process: %s", error)
            self._accepted.clear()
            self._changed.update(limit.subject for limit in limits)
            return next((limit for limit in limits if self._exceeds_share(limit)), None)
        self._outage.worked()
        return limits[number - 1] if number else None

    def _has_accepted(self, limit: _Limit) -> bool:
        most, count = self._accepted.get(limit.subject, (0, 0))
        return most == limit.most and self._counts[limit.subject] <= count

    def _exceeds_share(self, limit: _Limit) -> bool:
        return self._counts[limit.subject] > ceil(limit.most / self._settings.api_workers)

    def _ask(self, wanted: Sequence[tuple[_Limit, int]]) -> int:
        """Take this many of each limit; return the number of the one that has not as many, or 0."""
        number = self._set([(limit.subject, limit.most, count) for limit, count in wanted])
        if not number:
            for limit, count in wanted:
                self._accepted[limit.subject] = (limit.most, count)
        return number

    def _set(self, wanted: Sequence[tuple[UUID, int, int]]) -> int:
        """Let Redis have these counts of subjects, each unless its limit is exceeded."""
        keys = [self._connections.keys.streams(subject) for subject, _, _ in wanted]
        values = [value for _, *item in wanted for value in item]
        args = [self._process, round(LEASE_SECONDS * 1000), *values]
        return int(
            self._connections.ask_redis(lambda server: self._script(keys, args, client=server))
        )

    def _step(self) -> None:
        """Write what has changed, and now and then everything."""
        with self._asking:
            self._settle()
            changed, self._changed = self._changed, set()
            changed = {
                one for one in changed if self._kept(one) != self._accepted.get(one, (0, -1))[1]
            }
            if time.monotonic() >= self._renew_at:
                changed |= self._counts.keys()
                self._renew_at = time.monotonic() + RENEW_SECONDS
                for subject in self._counts.keys() - self._used:
                    if not self._counts[subject]:  # nothing is kept for it any longer
                        self._accepted.pop(subject, None)
                self._used.clear()
        subjects = [*changed]
        for start in range(0, len(subjects), AT_ONCE):
            part = subjects[start : start + AT_ONCE]
            with self._asking:
                kept = [(subject, _UNCHECKED, self._kept(subject)) for subject in part]
                try:
                    self._set(kept)
                except redis.RedisError:
                    self._changed.update(part)
                    return
                for subject, _, count in kept:
                    if count:
                        most, _ = self._accepted.get(subject, (_UNCHECKED, 0))
                        self._accepted[subject] = (most, count)
                    else:
                        self._counts.pop(subject, None)
                        self._accepted.pop(subject, None)

    def _kept(self, subject: UUID) -> int:
        """Return how many Redis is to have: the open ones, and of what it has the reserve."""
        most, accepted = self._accepted.get(subject, (0, 0))
        count = self._counts[subject]
        return max(count, min(accepted, count + max(0, most) // PARTS))

    def _open(self, subject: UUID) -> int:
        key = self._connections.keys.streams(subject)
        try:
            (seconds, _), processes = self._connections.ask_redis(
                lambda server: server.pipeline(transaction=False).time().hgetall(key).execute()
            )
        except redis.RedisError:
            return self._counts[subject]
        others = 0
        for process, entry in processes.items():
            count, _, expires = entry.partition(":")
            if process != self._process and int(expires) >= seconds * 1000:
                others += int(count)
        return others + self._counts[subject]
