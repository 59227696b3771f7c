"""Reads that sum up an org's past, kept from getting in the way of everybody's requests.

Naively forty reports of one org with many runs would take all the connections of the process.
They have a few of their own, of which an org uses one at a time, and they end after some seconds.
Nor has an org one in each process: a report keeps a processor of Postgres busy, and they would take
all of them from the runs of other orgs. An org whose reports take long rests between them: the runs
of others have one processor less meanwhile.
"""

import math
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import cast
from uuid import UUID
from weakref import WeakValueDictionary

from flask import current_app
from psycopg.errors import QueryCanceled, TransactionTimeout
from redis.exceptions import RedisError
from sqlalchemy import Connection, func, select
from sqlalchemy.exc import DBAPIError

from arkloop.api.http.errors import RETRY_AFTER_SECONDS
from arkloop.shared.errors import ArkloopError, RateLimitExceeded, Unavailable
from arkloop.shared.storage.checkouts import Checkouts, NoneFree, Patience
from arkloop.shared.storage.connections import Connections
from arkloop.shared.storage.postgres import Timeouts

CONNECTIONS = 2
TIMEOUTS = Timeouts(lock=1.5, statement=5.0, answer=6.0, checkout=Patience(0.5, 0.2))
#: How long a report waits for the org's earlier ones.
TURN = Patience(0.8, 0.3)
#: The same for those of other processes, and how soon it tries again.
TURN_ELSEWHERE_SECONDS, RETRY_SECONDS = 1.0, (0.01, 0.04)
#: For which a process that has had the turn leaves it to others, who try at least once meanwhile.
YIELD_SECONDS = 0.05
#: The part of the time that long reports of an org take in the long run, after such a burst.
SHARE, BURST_SECONDS = 0.1, 2.0
#: How long a report waits for the end of the org's rest, and the longest rest: reads of budgets
#: count, but do not wait, and would make it longer and longer.
REST_SECONDS, LONGEST_REST_SECONDS = 1.0, 120.0
#: The part of each report that needs no rest. Time counts as it passes: a short report takes longer
#: while Postgres is busy with something else.
FREE_SECONDS = 0.1
_LOCK_KEY = 0x72657074  # "rept"


class Reports:
    """The connections for reports of one process, and whose turn it is."""

    def __init__(self, connections: Connections) -> None:
        # Prepared statements would be planned for all filters at once, and read by no index.
        settings = replace(connections.settings, prepared_statements=False)
        self._connections = replace(connections, settings=settings).with_pool(
            application="arkloop-reports", size=CONNECTIONS, timeouts=TIMEOUTS
        )
        self._lock = threading.Lock()
        #: Of the orgs that have a report running or waiting, which keep their turn alive.
        self._turns: WeakValueDictionary[UUID, Checkouts] = WeakValueDictionary()

    def close(self) -> None:
        """Close the connections; called when the process ends."""
        self._connections.close_pool()

    @contextmanager
    def turn(self, org_id: UUID) -> Iterator[bool]:
        """Let one report of the org run at a time; yields whether there was another one.

        Raises:
            RateLimitExceeded: the earlier ones took too long.
        """
        with self._lock:
            is_next = org_id in self._turns
            turn = self._turns.setdefault(org_id, Checkouts(1, TURN))
        try:
            with turn:
                yield is_next
        except NoneFree as error:
            raise _too_many() from error

    @contextmanager
    def reading(self, org_id: UUID, *, waits_for_rest: bool = True) -> Iterator[Connection]:
        """Lend a connection for the sums of one report, once the org has rested for earlier ones.

        A report that was waiting for its turn while a long one ran may run before the rest.

        Args:
            waits_for_rest: False for what must not be refused because of earlier reports. It takes
                its turn and counts like others.

        Raises:
            RateLimitExceeded: the org's earlier ones took too long.
            Unavailable: Postgres is out of reach, too many orgs have reports running, or this one
                takes too long.
        """
        try:
            if waits_for_rest:
                self._wait_for_rest(org_id)  # without the turn, which changes of budgets need, too
            with self.turn(org_id) as is_next, self._turn_of_all(org_id, is_next) as sql:
                yield sql
        except RateLimitExceeded as error:
            rest = self._left_of_rest(org_id) if waits_for_rest else 0.0
            if rest <= 0:
                raise
            raise RateLimitExceeded(
                "The organization's reports have taken long; try again after `Retry-After`.",
                limit="org",
            ).after(math.ceil(rest)) from error
        except Unavailable as error:
            cause = error.__cause__
            if isinstance(cause, DBAPIError) and isinstance(
                cause.orig, QueryCanceled | TransactionTimeout
            ):
                raise Unavailable(
                    f"The report took longer than {TIMEOUTS.statement:g} s;"
                    " request a shorter period."
                ) from cause
            raise

    @contextmanager
    def _turn_of_all(self, org_id: UUID, is_next: bool) -> Iterator[Connection]:
        """Lend a connection once no process of the installation has a report of the org running.

        The connection is not kept while it waits: the reports of other orgs need it. If this
        process has just had the turn, others come first.
        """
        lock = select(func.pg_try_advisory_xact_lock(_LOCK_KEY, func.hashtext(str(org_id))))
        deadline = time.monotonic() + TURN_ELSEWHERE_SECONDS
        if is_next:
            time.sleep(YIELD_SECONDS)
        while True:
            with self._connections.of(org_id).transaction(writes=False) as tx:
                if tx.sql.scalar(lock):
                    with self._resting_after(org_id):
                        yield tx.sql
                    return
            if time.monotonic() > deadline:
                raise _too_many()
            time.sleep(random.uniform(*RETRY_SECONDS))

    def _wait_for_rest(self, org_id: UUID) -> None:
        deadline = time.monotonic() + REST_SECONDS
        while (rest := self._left_of_rest(org_id)) > 0:
            left = deadline - time.monotonic()
            if left < 0:
                raise _too_many()
            # A refusal at once would let a client without patience send more requests.
            time.sleep(max(min(rest, left), RETRY_SECONDS[0]))

    @contextmanager
    def _resting_after(self, org_id: UUID) -> Iterator[None]:
        """Let the org rest in proportion to what the block takes; no other process does meanwhile.

        The rest is the time to live of a key, so that the processes' clocks need not agree. By the
        end of the block it has fallen by what the block took.
        """
        began = time.monotonic()
        try:
            yield
        finally:
            took = time.monotonic() - began
            if took > FREE_SECONDS:
                rest = self._rest_of(org_id) + (took - FREE_SECONDS) / SHARE
                milliseconds = math.ceil(min(rest, LONGEST_REST_SECONDS) * 1000)
                key = self._connections.keys.reports(org_id)
                with suppress(RedisError):
                    self._connections.ask_redis(lambda redis: redis.set(key, "", px=milliseconds))

    def _left_of_rest(self, org_id: UUID) -> float:
        """Return the seconds until the org may request reports; not above 0 if it may now."""
        return self._rest_of(org_id) - BURST_SECONDS / SHARE

    def _rest_of(self, org_id: UUID) -> float:
        """Return the seconds until the org has rested; 0 while Redis is out of reach."""
        key = self._connections.keys.reports(org_id)
        with suppress(RedisError):
            milliseconds = self._connections.ask_redis(lambda redis: redis.pttl(key))
            return max(int(milliseconds), 0) / 1000
        return 0.0


def _too_many() -> ArkloopError:
    return RateLimitExceeded(
        "Too many reports of the organization are running; try again shortly.", limit="org"
    ).after(RETRY_AFTER_SECONDS)


def reports() -> Reports:
    """Return those of the process."""
    return cast(Reports, current_app.extensions["arkloop.reports"])
