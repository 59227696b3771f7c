"""The meaning of the table's effects for the model: one transaction's writes, all at once.

`Guards` are what the code does besides the table. Each can be taken away, which makes a bug.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from arkloop.shared.runs.thread_queue import (
    Effect,
    Guard,
    Happening,
    Holder,
    OnBusy,
    Rule,
    rule_for,
)
from chaos.model.busy_thread import (
    CANCELLED,
    COMPLETED,
    ENDED,
    NOBODY,
    PENDING,
    QUEUED,
    SCHEDULED,
    Offer,
    Run,
    Thread,
)


class Care(StrEnum):
    """The things that the code takes care of, besides the table."""

    LOOKS_AGAIN = "looks again at the active run once it has its lock"
    LOCKS_THREAD = "locks the thread"
    RUN_BEFORE_THREAD = "locks the active run before its thread"
    READS_FLAG = "ends a run with followers in a transaction of its own"
    CANCEL_FIRST = "lets an accepted cancel come before every other end"
    SKIPS_CANCELLED = "starts no run that is to be cancelled"
    OWN_RUN = "joins the caller's own run"
    LAST_RUN = "joins the last one of these"
    KEEPS_PLACE = "puts runs of offered messages where these were accepted"
    HIDES_DISCARDED = "shows no answer that was discarded"
    ONE_TRANSACTION = "ends a run and starts the next in one transaction"
    KEEPS_OFFERS = "leaves a message that was delivered out of the next delivery"
    STILL_WAITS = "cancels a waiting run only if it still waits"
    FINDS_LOST = "takes runs from lost workers"
    UNIQUE_INDEX = "has a unique index on a thread's active run"


class Case(NamedTuple):
    """The subject of a happening: its client, its run (if it has one), and how a run ends."""

    by: int = NOBODY
    on_busy: OnBusy | None = None
    is_later: bool = False
    run: int = NOBODY
    end: str = COMPLETED


NO_CASE = Case()


@dataclass(frozen=True, slots=True)
class Table:
    """The rules, and what the code takes care of; `used` collects the names of rules."""

    rules: Sequence[Rule]
    without: frozenset[Care] = frozenset()
    max_waiting: int = 2
    takes_messages: bool = True
    used: set[str] = field(default_factory=set)

    def has(self, care: Care) -> bool:
        return care not in self.without


def find(table: Table, thread: Thread, happening: Happening, case: Case) -> Rule:
    """Return the rule that applies.

    Raises:
        LookupError: it cannot happen.
    """
    facts = _facts(table, thread, case)
    return rule_for(happening, thread.holder, facts, case.on_busy, rules=table.rules)


def happen(table: Table, thread: Thread, happening: Happening, case: Case) -> tuple[Rule, Thread]:
    """Return the rule that applies, and what it makes of the thread.

    Raises:
        LookupError: it cannot happen.
    """
    rule = find(table, thread, happening, case)
    return rule, carry_out(table, thread, rule, case)


def carry_out(table: Table, thread: Thread, rule: Rule, case: Case) -> Thread:
    """Return what the rule makes of the thread."""
    table.used.add(rule.name)
    happening = rule.happening
    if case.run == NOBODY:
        case = case._replace(run=len(thread.runs))  # the one that is created, if one is
    active = thread.active
    if happening is Happening.END:
        thread = _end(table, thread, active, case.end)
    for effect in rule.effects:
        thread = _EFFECTS[effect](table, thread, case)
    if rule.becomes not in (None, Holder.NONE, Holder.CANCELLING) and active != NOBODY:
        thread = thread.with_run(active, state=rule.becomes.value)
    return thread


def _facts(table: Table, thread: Thread, case: Case) -> frozenset[Guard]:
    active = thread.active
    run = thread.runs[active] if active != NOBODY else None
    facts = {
        Guard.HAS_TIME: case.is_later,
        Guard.IS_FULL: thread.waiting >= table.max_waiting,
        Guard.MAY_JOIN: _run_to_join(table, thread, case.by) != NOBODY,
        Guard.TAKES_MESSAGES: table.takes_messages,
        Guard.IS_SUPERSEDED: run is not None
        and bool(thread.queue)
        and run.superseded_by == thread.queue[0],
        Guard.HAS_OFFERED: bool(thread.offered),
        Guard.IS_FOLLOWED: run is not None and run.has_followers,
    }
    return frozenset(guard for guard, is_so in facts.items() if is_so)


def _run_to_join(table: Table, thread: Thread, by: int) -> int:
    own = [
        number
        for number in thread.queue
        if not thread.runs[number].cancel
        and (thread.runs[number].by == by or not table.has(Care.OWN_RUN))
    ]
    if not own:
        return NOBODY
    return own[-1] if table.has(Care.LAST_RUN) else own[0]


def _end(table: Table, thread: Thread, number: int, state: str) -> Thread:
    run = thread.runs[number]
    if run.cancel and table.has(Care.CANCEL_FIRST):
        state = CANCELLED
    is_shown = not (run.is_discarded and table.has(Care.HIDES_DISCARDED))
    return thread.with_run(number, state=state, is_shown=is_shown)


# ---- effects -------------------------------------------------------------------------


def _new(thread: Thread, case: Case, state: str) -> Thread:
    """Create the run of the request, or move the one that is due."""
    if case.run < len(thread.runs):
        moved = thread.with_run(case.run, state=state, ticket=thread.tickets)
        return moved._replace(tickets=thread.tickets + 1)
    replaces = case.on_busy in (OnBusy.INTERRUPT, OnBusy.ROLLBACK)
    goes_ahead = state == PENDING and replaces and thread.active != NOBODY
    # What it has superseded before it started precedes it.
    taken = [
        number
        for number, run in enumerate(thread.runs)
        if run.superseded_by == case.run and run.state == CANCELLED
    ]
    messages = tuple(message for number in taken for message in thread.runs[number].messages)
    for number in taken:
        thread = thread.with_run(number, messages=())
    run = Run(state, case.by, (*messages, thread.accepted), thread.tickets, goes_ahead)
    return thread._replace(
        runs=(*thread.runs, run),
        accepted=thread.accepted + 1,
        tickets=thread.tickets + 1,
    )


def _start(_table: Table, thread: Thread, case: Case) -> Thread:
    return _new(thread, case, QUEUED)


def _pend_last(_table: Table, thread: Thread, case: Case) -> Thread:
    pending = _new(thread, case, PENDING)
    return pending._replace(queue=(*pending.queue, case.run))


def _pend_first(_table: Table, thread: Thread, case: Case) -> Thread:
    pending = _new(thread, case, PENDING)
    return pending._replace(queue=(case.run, *pending.queue))


def _schedule(_table: Table, thread: Thread, case: Case) -> Thread:
    return _new(thread, case, SCHEDULED)


def _join(table: Table, thread: Thread, case: Case) -> Thread:
    number = _run_to_join(table, thread, case.by)
    joined = thread.with_run(number, messages=(*thread.runs[number].messages, thread.accepted))
    return joined._replace(accepted=thread.accepted + 1)


def _offer(_table: Table, thread: Thread, case: Case) -> Thread:
    offer = Offer(thread.accepted, case.by, thread.tickets)
    return thread._replace(
        offered=(*thread.offered, offer),
        accepted=thread.accepted + 1,
        tickets=thread.tickets + 1,
    )


def _flag(_table: Table, thread: Thread, _case: Case) -> Thread:
    if thread.active == NOBODY:
        return thread  # the statement finds no row
    return thread.with_run(thread.active, has_followers=True)


def _supersede_active(_table: Table, thread: Thread, case: Case) -> Thread:
    return thread.with_run(thread.active, cancel=True, superseded_by=case.run)


def _discard_output(_table: Table, thread: Thread, _case: Case) -> Thread:
    return thread.with_run(thread.active, is_discarded=True)


def _supersede_first(_table: Table, thread: Thread, case: Case) -> Thread:
    first, *rest = thread.queue
    ended = thread.with_run(first, state=CANCELLED, superseded_by=case.run)
    return ended._replace(queue=tuple(rest)).with_run(thread.active, superseded_by=case.run)


def _end_active(table: Table, thread: Thread, _case: Case) -> Thread:
    thread = thread.with_run(thread.active, cancel=True)
    return happen(table, thread, Happening.END, Case(end=CANCELLED))[1]


def _request_cancel(_table: Table, thread: Thread, _case: Case) -> Thread:
    return thread.with_run(thread.active, cancel=True)


def _deliver(table: Table, thread: Thread, _case: Case) -> Thread:
    active = thread.active
    messages = tuple(offer.message for offer in thread.offered)
    steered = (*thread.runs[active].steered, *messages)
    delivered = thread.with_run(active, steered=steered)
    return delivered._replace(offered=()) if table.has(Care.KEEPS_OFFERS) else delivered


def _turn_into_runs(table: Table, thread: Thread, _case: Case) -> Thread:
    for offer in thread.offered:
        run = Run(PENDING, offer.by, (offer.message,), offer.ticket)
        at = len(thread.queue)
        if table.has(Care.KEEPS_PLACE):
            at = sum(_is_before(thread.runs[number], offer) for number in thread.queue)
        queue = (*thread.queue[:at], len(thread.runs), *thread.queue[at:])
        thread = thread._replace(runs=(*thread.runs, run), queue=queue)
    return thread._replace(offered=())


def _is_before(run: Run, offer: Offer) -> bool:
    return run.goes_ahead or run.ticket < offer.ticket


def start_first(table: Table, thread: Thread, _case: Case = NO_CASE) -> Thread:
    """Start the pending run whose turn it is, if there is one."""
    for number in thread.queue:
        if thread.runs[number].cancel and table.has(Care.SKIPS_CANCELLED):
            continue
        queue = tuple(other for other in thread.queue if other != number)
        started = thread.with_run(number, state=QUEUED, has_followers=bool(queue))
        return started._replace(queue=queue)
    return thread


def _withdraw(table: Table, thread: Thread, case: Case) -> Thread:
    if thread.runs[case.run].state in ENDED and table.has(Care.STILL_WAITS):
        return thread
    queue = tuple(number for number in thread.queue if number != case.run)
    return thread.with_run(case.run, state=CANCELLED, cancel=True)._replace(queue=queue)


def _nothing(_table: Table, thread: Thread, _case: Case) -> Thread:
    return thread


_EFFECTS: Mapping[Effect, Callable[[Table, Thread, Case], Thread]] = {
    Effect.REJECT_BUSY: _nothing,
    Effect.REJECT_FULL: _nothing,
    Effect.REJECT_NOT_ACTIVE: _nothing,
    Effect.START: _start,
    Effect.PEND_LAST: _pend_last,
    Effect.PEND_FIRST: _pend_first,
    Effect.SCHEDULE: _schedule,
    Effect.JOIN: _join,
    Effect.OFFER: _offer,
    Effect.FLAG: _flag,
    Effect.SUPERSEDE_ACTIVE: _supersede_active,
    Effect.DISCARD_OUTPUT: _discard_output,
    Effect.SUPERSEDE_FIRST: _supersede_first,
    Effect.END_ACTIVE: _end_active,
    Effect.REQUEST_CANCEL: _request_cancel,
    Effect.DELIVER: _deliver,
    Effect.TURN_INTO_RUNS: _turn_into_runs,
    Effect.START_FIRST: start_first,
    Effect.WITHDRAW: _withdraw,
}
