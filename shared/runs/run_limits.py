"""The limits on runs that an org or an API key has at the same time, and on those that wait.

A run counts from its creation to its end, also while it waits for a worker, for its thread, for its
time or for a person. The rows are counted: a process that dies leaves nothing behind that counts.
Requests of one org are counted one after the other, each transaction under a lock of the org.

The lock comes before those of threads and runs, or two requests would wait for each other.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple
from uuid import UUID

from sqlalchemy import Connection

from arkloop.shared.actors import Actor
from arkloop.shared.config import Settings
from arkloop.shared.errors import RunLimitExceeded
from arkloop.shared.org_limits import OrgLimits
from arkloop.shared.storage.arrays import plain_array
from arkloop.shared.storage.connections import Transaction
from arkloop.shared.storage.sql_files import statement

#: Nobody knows when a run will end.
RETRY_AFTER_SECONDS = 2
_COUNT = statement(__package__, "count_unended")
_LOCK = (
    "SELECT pg_advisory_xact_lock(hashtextextended('runs of ' || id, 0))"
    " FROM unnest(%(org_ids)s::uuid[]) AS id"
)


class RunUse(NamedTuple):
    """A limit on runs, and how many count for it."""

    name: Literal["concurrent_runs", "queued_runs"]
    scope: Literal["org", "key"]
    limit: int
    used: int


def apply_to(settings: Settings, actor: Actor) -> bool:
    """Return whether the runs of the actor are limited at all."""
    return _limits(settings, actor).limit_runs


def _limits(settings: Settings, actor: Actor) -> OrgLimits:
    return actor.limits or OrgLimits.of_settings(settings)


def check(tx: Transaction, actor: Actor) -> None:
    """Check that the actor may create a run, and keep other requests of the org waiting until the
    end of the transaction.

    Raises:
        RunLimitExceeded
    """
    if apply_to(tx.connections.settings, actor):
        [refused] = refusals(tx, [actor])
        if refused is not None:
            raise refused


def refusals(tx: Transaction, actors: Sequence[Actor]) -> list[RunLimitExceeded | None]:
    """Return why each of the actors may create no run, None if it may; see `check`.

    Those before it in the list, which may, count as if they had created one.
    """
    settings = tx.connections.settings
    # In one order: two groups would otherwise wait for each other.
    org_ids = plain_array(sorted({actor.org_id for actor in actors if apply_to(settings, actor)}))
    tx.sql.exec_driver_sql(_LOCK, {"org_ids": org_ids})
    # A statement of its own, which sees what was committed before the lock was free.
    counts = _counted(tx.sql, org_ids)
    return [_refusal(_limits(settings, actor), counts, actor) for actor in actors]


def uses(sql: Connection, settings: Settings, actor: Actor) -> list[RunUse]:
    """Return the limits that apply to the actor, with what counts for them."""
    limits = _limits(settings, actor)
    if not limits.limit_runs:
        return []
    return [*_uses(limits, _counted(sql, plain_array([actor.org_id])), actor)]


@dataclass(slots=True)
class _Counts:
    of_org: Counter[UUID]
    of_key: Counter[UUID]
    queued: Counter[UUID]

    def add(self, actor: Actor) -> None:
        self.of_org[actor.org_id] += 1
        self.queued[actor.org_id] += 1
        if actor.api_key_id is not None:
            self.of_key[actor.api_key_id] += 1


def _counted(sql: Connection, org_ids: str) -> _Counts:
    counts = _Counts(Counter(), Counter(), Counter())
    for row in sql.exec_driver_sql(_COUNT, {"org_ids": org_ids}):
        counts.of_org[row.org_id] += row.unended
        counts.queued[row.org_id] += row.queued
        if row.api_key_id is not None:
            counts.of_key[row.api_key_id] += row.unended
    return counts


def _refusal(limits: OrgLimits, counts: _Counts, actor: Actor) -> RunLimitExceeded | None:
    for use in _uses(limits, counts, actor):
        if use.used >= use.limit:
            refused = RunLimitExceeded(limit=use.name, scope=use.scope, most=use.limit)
            return refused.after(RETRY_AFTER_SECONDS)
    counts.add(actor)
    return None


def _uses(limits: OrgLimits, counts: _Counts, actor: Actor) -> Iterator[RunUse]:
    if (most := limits.key_concurrent_runs) and actor.api_key_id is not None:
        yield RunUse("concurrent_runs", "key", most, counts.of_key[actor.api_key_id])
    if most := limits.org_concurrent_runs:
        yield RunUse("concurrent_runs", "org", most, counts.of_org[actor.org_id])
    if most := limits.org_queued_runs:
        yield RunUse("queued_runs", "org", most, counts.queued[actor.org_id])
