"""Requests with `enqueue` in busy threads: those of one moment are carried out by one statement."""

from collections.abc import Sequence
from functools import lru_cache
from itertools import combinations
from typing import NamedTuple

from arkloop.shared import ids
from arkloop.shared.runs import places, thread_queue
from arkloop.shared.runs.new_runs import Created, NewRun, columns
from arkloop.shared.runs.thread_queue import (
    Effect,
    Guard,
    Happening,
    Holder,
    OnBusy,
    Rule,
    rule_for,
)
from arkloop.shared.storage.arrays import TextArray, plain_array
from arkloop.shared.storage.connections import Transaction
from arkloop.shared.storage.sql_files import statement

#: What the statement does.
_EFFECTS = (Effect.PEND_LAST, Effect.FLAG)
#: What it looks at, besides the holder.
_SEEN = {Guard.HAS_TIME, Guard.IS_FULL}
_ENQUEUE = statement(__package__, "enqueue")


class Attempt(NamedTuple):
    """The result for one request; without a run, `busy_threads.create` carries it out, or says why
    not.

    `had_locks`: otherwise another session may have had one for a moment.
    """

    made: Created | None
    had_locks: bool


def enqueue_all(tx: Transaction, wanted: Sequence[NewRun]) -> list[Attempt]:
    """Insert pending runs for those of the requests for which the rules say just this.

    Does not check budgets.
    """
    new_ids = [ids.new_id() for _ in wanted]
    rows = tx.sql.exec_driver_sql(
        _ENQUEUE,
        {
            **columns(wanted),
            "ids": plain_array(new_ids),
            "on_busy": TextArray(new.on_busy for new in wanted),
            "holders": TextArray(_holders(thread_queue.RULES)),
            "max_waiting": thread_queue.MAX_WAITING,
            "slot": places.SLOT,
            "middle": places.MIDDLE,
        },
    )
    positions = {row.id: row.queue_position for row in rows}
    return [
        Attempt(
            Created(run_id, new.thread_id, new.trace_id, position)
            if (position := positions.get(run_id)) is not None
            else None,
            run_id in positions,
        )
        for run_id, new in zip(new_ids, wanted, strict=True)
    ]


@lru_cache(maxsize=2)
def _holders(rules: tuple[Rule, ...]) -> tuple[Holder, ...]:
    """Return the holders for which the rules say what the statement does, whatever else holds.

    It does so where the queue has room: where it is full, the rules must say something else.
    """
    others = [guard for guard in Guard if guard not in _SEEN]
    sizes = range(len(others) + 1)
    sets = [facts for size in sizes for facts in combinations(others, size)]

    def effects(holder: Holder, *facts: Guard) -> tuple[Effect, ...]:
        return rule_for(Happening.CREATE, holder, facts, OnBusy.ENQUEUE, rules=rules).effects

    return tuple(
        holder
        for holder in Holder
        if all(
            effects(holder, *facts) == _EFFECTS
            and effects(holder, *facts, Guard.IS_FULL) != _EFFECTS
            for facts in sets
        )
    )
