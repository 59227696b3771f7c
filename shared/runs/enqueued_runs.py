"""Requests with `enqueue`, in busy and in idle threads: those of one moment are one statement."""

from collections.abc import Sequence
from functools import lru_cache
from itertools import combinations
from typing import NamedTuple

from arkloop.shared import ids
from arkloop.shared.errors import RunLimitExceeded
from arkloop.shared.runs import agent_queue, places, run_limits, thread_queue
from arkloop.shared.runs.new_runs import Created, NewRun, columns
from arkloop.shared.runs.states import RunState
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

#: What the statement does in a busy thread.
_EFFECTS = (Effect.PEND_LAST, Effect.FLAG)
#: What it looks at, besides the holder.
_SEEN = {Guard.HAS_TIME, Guard.IS_FULL}
_ENQUEUE = statement(__package__, "enqueue")


class Attempt(NamedTuple):
    """The result for one request; without a run, `busy_threads.create` carries it out, or says why
    not.

    `had_locks`: the thread is busy, and no other session had a lock of it for a moment.
    """

    made: Created | None
    had_locks: bool


def enqueue_all(tx: Transaction, wanted: Sequence[NewRun]) -> list[Attempt | RunLimitExceeded]:
    """Queue runs in idle threads, and insert pending ones where the rules say just this, as far as
    the limits of their orgs allow; the workers are notified of the former after the commit.

    All are for existing threads. Does not check budgets.
    """
    settings = tx.connections.settings
    new_ids = [ids.new_id() for _ in wanted]
    rows = tx.sql.exec_driver_sql(
        _ENQUEUE,
        {
            **columns(wanted),
            **run_limits.columns(settings, [new.actor for new in wanted]),
            "ids": plain_array(new_ids),
            "on_busy": TextArray(new.on_busy for new in wanted),
            "holders": TextArray(_holders(thread_queue.RULES)),
            "max_waiting": thread_queue.MAX_WAITING,
            "slot": places.SLOT,
            "middle": places.MIDDLE,
        },
    )
    found = {row.id: row for row in rows}
    attempts: list[Attempt | RunLimitExceeded] = []
    for run_id, new in zip(new_ids, wanted, strict=True):
        if (row := found.get(run_id)) is None:
            attempts.append(Attempt(None, had_locks=False))
        elif row.refusal is not None:
            attempts.append(run_limits.refusal(settings, new.actor, row.refusal))
        else:
            made = None
            if row.state is not None:
                made = Created(run_id, new.thread_id, new.trace_id, row.queue_position)
            if row.state == RunState.QUEUED:
                tx.after_commit.append(agent_queue.announce(run_id, new.actor.org_id, new.agent))
            attempts.append(Attempt(made, had_locks=row.queue_position is not None))
    return attempts


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
