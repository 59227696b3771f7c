"""The limits on runs that an org or an API key has at the same time, and on those that wait.

A run counts from its creation to its end, also while it waits for a worker, for its thread, for its
time or for a person. The rows are counted: a process that dies leaves nothing behind that counts.
Requests of one org are counted one after the other, each transaction under a lock of the org, by
`run_refusals` of the database: within the statement that creates the runs, or before it. It keeps
the count of an org with many runs for up to a second, and adds those that it admits.

The lock comes before those of threads and runs, or two requests would wait for each other.
"""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from sqlalchemy import Connection

from arkloop.shared.actors import Actor
from arkloop.shared.config import Settings
from arkloop.shared.errors import RunLimitExceeded
from arkloop.shared.org_limits import OrgLimits
from arkloop.shared.storage.arrays import plain_array
from arkloop.shared.storage.connections import Transaction

#: Nobody knows when a run will end.
RETRY_AFTER_SECONDS = 2
_REFUSALS = (
    "SELECT run_refusals(%(org_ids)s::uuid[], %(api_key_ids)s::uuid[],"
    " %(key_concurrent)s::integer[], %(org_concurrent)s::integer[], %(org_queued)s::integer[])"
)
_COUNT = "SELECT api_key_id, unended, queued FROM unended_runs(%(org_id)s)"

#: The arguments of a statement that has no limits to look at.
NONE: Mapping[str, str | None] = dict.fromkeys(("key_concurrent", "org_concurrent", "org_queued"))

Scope = Literal["org", "key"]
Name = Literal["concurrent_runs", "queued_runs"]
#: The fields of `OrgLimits`, as `run_refusals` names them.
_NAMES: dict[str, tuple[Scope, Name]] = {
    "key_concurrent_runs": ("key", "concurrent_runs"),
    "org_concurrent_runs": ("org", "concurrent_runs"),
    "org_queued_runs": ("org", "queued_runs"),
}


class RunUse(NamedTuple):
    """A limit on runs, and how many count for it."""

    name: Name
    scope: Scope
    limit: int
    used: int


def apply_to(settings: Settings, actor: Actor) -> bool:
    """Return whether the runs of the actor are limited at all."""
    return _limits(settings, actor).limit_runs


def columns(settings: Settings, actors: Sequence[Actor]) -> Mapping[str, str | None]:
    """Return the limits of the actors as arguments of `run_refusals`; `NONE` if there are none."""
    limits = [_limits(settings, actor) for actor in actors]
    if not any(one.limit_runs for one in limits):
        return NONE
    return {
        "key_concurrent": plain_array(one.key_concurrent_runs for one in limits),
        "org_concurrent": plain_array(one.org_concurrent_runs for one in limits),
        "org_queued": plain_array(one.org_queued_runs for one in limits),
    }


def check(tx: Transaction, actor: Actor) -> None:
    """Check that the actor may create a run, and keep other requests of the org waiting until the
    end of the transaction.

    Raises:
        RunLimitExceeded
    """
    if (refused := refusal_of(tx, actor)) is not None:
        raise refused


def refusal_of(tx: Transaction, actor: Actor) -> RunLimitExceeded | None:
    """Return why the actor may create no run, None if it may; see `check`."""
    if not apply_to(tx.connections.settings, actor):
        return None
    [refused] = refusals(tx, [actor])
    return refused


def refusals(tx: Transaction, actors: Sequence[Actor]) -> list[RunLimitExceeded | None]:
    """Return why each of the actors may create no run, None if it may; see `check`.

    Those before it in the list, which may, count as if they had created one.
    """
    settings = tx.connections.settings
    values = {
        "org_ids": plain_array(actor.org_id for actor in actors),
        "api_key_ids": plain_array(actor.api_key_id for actor in actors),
        **columns(settings, actors),
    }
    names = tx.sql.exec_driver_sql(_REFUSALS, values).scalar_one()
    return [
        None if name is None else refusal(settings, actor, name)
        for name, actor in zip(names, actors, strict=True)
    ]


def refusal(settings: Settings, actor: Actor, name: str) -> RunLimitExceeded:
    """Return the error for what `run_refusals` has named."""
    scope, limit = _NAMES[name]
    most: int = getattr(_limits(settings, actor), name)
    return RunLimitExceeded(limit=limit, scope=scope, most=most).after(RETRY_AFTER_SECONDS)


def uses(sql: Connection, settings: Settings, actor: Actor) -> list[RunUse]:
    """Return the limits that apply to the actor, with what counts for them."""
    limits = _limits(settings, actor)
    if not limits.limit_runs:
        return []
    rows = sql.exec_driver_sql(_COUNT, {"org_id": actor.org_id}).all()
    used = {
        "key_concurrent_runs": sum(
            row.unended for row in rows if row.api_key_id == actor.api_key_id
        ),
        "org_concurrent_runs": sum(row.unended for row in rows),
        "org_queued_runs": sum(row.queued for row in rows),
    }
    return [
        RunUse(limit, scope, most, used[name])
        for name, (scope, limit) in _NAMES.items()
        if (most := getattr(limits, name)) and (scope == "org" or actor.api_key_id is not None)
    ]


def _limits(settings: Settings, actor: Actor) -> OrgLimits:
    return actor.limits or OrgLimits.of_settings(settings)
