"""The invariants of a busy thread, by name: those of its states, and those of its moves.

They know nothing of the table: they say what clients were promised.
"""

from collections import Counter
from collections.abc import Callable, Mapping

from chaos.model.busy_thread import (
    ACTIVE,
    CANCELLED,
    ENDED,
    EXECUTING,
    NOBODY,
    PENDING,
    SCHEDULED,
    WAITING,
    Run,
    Thread,
    Tx,
)

_NO_TX = Tx("", "")

Promise = Callable[[Thread], str | None]
PromiseOfMove = Callable[[Thread, str, Thread], str | None]


def at_rest(thread: Thread) -> bool:
    """Return whether all transactions have finished."""
    return not any(thread.transactions())


def is_over(thread: Thread) -> bool:
    """Return whether all that was accepted is answered, and nothing is open."""
    return at_rest(thread) and not thread.offered and all(r.state in ENDED for r in thread.runs)


# ---- of states -----------------------------------------------------------------------


def _one_active(thread: Thread) -> str | None:
    active = [number for number, run in enumerate(thread.runs) if run.state in ACTIVE]
    return f"runs {active} are active" if len(active) > 1 else None


def _one_answer(thread: Thread) -> str | None:
    places = Counter(offer.message for offer in thread.offered)
    for run in thread.runs:
        places.update(run.messages)
        places.update(run.steered)
    for message in range(thread.accepted):
        if places[message] != 1:
            return f"message {message} belongs to {places[message]} runs"
    return None


def _turn(run: Run) -> tuple[bool, int]:
    """Return the key of the promised order: the last one that goes ahead is before all others."""
    return (not run.goes_ahead, -run.ticket if run.goes_ahead else run.ticket)


def _order(thread: Thread) -> str | None:
    keys = [_turn(thread.runs[number]) for number in thread.queue]
    return f"the queue is {[*thread.queue]}" if keys != sorted(keys) else None


def _no_lost_wake_up(thread: Thread) -> str | None:
    if not at_rest(thread) or thread.active != NOBODY:
        return None
    left = [number for number in thread.queue if not thread.runs[number].cancel]
    if left:
        return f"runs {left} wait, and none is active"
    if thread.offered:
        return "a message is offered to no run"
    return None


def _all_wait_in_the_queue(thread: Thread) -> str | None:
    pending = {number for number, run in enumerate(thread.runs) if run.state == PENDING}
    return f"{pending} are pending, {thread.queue} queued" if pending != {*thread.queue} else None


def _hidden(thread: Thread) -> str | None:
    shown = [n for n, run in enumerate(thread.runs) if run.is_discarded and run.is_shown]
    return f"the discarded answers of {shown} are shown" if shown else None


def _reported(thread: Thread) -> str | None:
    for number, run in enumerate(thread.runs):
        if run.superseded_by != NOBODY and run.state in ENDED and run.state != CANCELLED:
            return f"run {number} was superseded, and has {run.state}"
    return None


def _no_deadlock(thread: Thread) -> str | None:
    waits_for: dict[int, int] = {}
    for number, tx in thread.transactions():
        for other, held in thread.transactions():
            if other == number:
                continue
            if tx.step.startswith("lock run") and held.run_lock == tx.target != NOBODY:
                waits_for[number] = other
            if tx.step.startswith(("lock thread", "lock its thread")) and held.thread_lock:
                waits_for[number] = other
    for number in waits_for:
        seen = [number]
        while (seen[-1]) in waits_for and waits_for[seen[-1]] not in seen:
            seen.append(waits_for[seen[-1]])
        if waits_for.get(seen[-1]) == number:
            return f"processes {seen} wait for each other"
    return None


# ---- of moves ------------------------------------------------------------------------


def _in_turn(before: Thread, _label: str, after: Thread) -> str | None:
    """Check that a run that starts was the first of those that may start."""
    for number, run in enumerate(before.runs):
        if run.state != PENDING or after.runs[number].state not in ACTIVE:
            continue
        if run.cancel:
            return f"run {number} starts though it is to be cancelled"
        ahead = [
            other
            for other, is_one in enumerate(after.runs)
            if is_one.state == PENDING and not is_one.cancel and _turn(is_one) < _turn(run)
        ]
        if ahead:
            return f"run {number} starts before {ahead}"
    return None


def _acting(before: Thread, after: Thread) -> tuple[int, Tx]:
    """Return the process whose transaction this move has committed, and that."""
    for number, process in enumerate(before.processes):
        if process.tx is not None and after.processes[number].tx is None:
            return number, process.tx
    return NOBODY, _NO_TX


def _accepted(before: Thread, after: Thread) -> str:
    """Return the `on_busy` of the message that this move has accepted, or nothing."""
    return _acting(before, after)[1].on_busy if after.accepted > before.accepted else ""


def _joins_own(before: Thread, _label: str, after: Thread) -> str | None:
    for number, run in enumerate(before.runs):
        if len(after.runs[number].messages) <= len(run.messages):
            continue
        if run.state != PENDING or run.cancel:
            return f"a message joins run {number}, which is {run.state}"
        client, _ = _acting(before, after)
        if run.by != client:
            return f"a message of client {client + 1} joins the run of client {run.by + 1}"
        own = [
            other
            for other in before.queue
            if before.runs[other].by == client and not before.runs[other].cancel
        ]
        if own[-1] != number:
            return f"a message joins run {number}, though {own[-1]} is the last"
    return None


def _ends_stay(before: Thread, _label: str, after: Thread) -> str | None:
    for number, run in enumerate(before.runs):
        if run.state in ENDED and after.runs[number].state != run.state:
            return f"run {number} was {run.state} and becomes {after.runs[number].state}"
    return None


def _steered_once(before: Thread, _label: str, after: Thread) -> str | None:
    for number, run in enumerate(before.runs):
        new = after.runs[number].steered[len(run.steered) :]
        if new and run.state != EXECUTING:
            return f"messages {new} are delivered to run {number}, which is {run.state}"
    return None


def _replaced(before: Thread, label: str, after: Thread) -> str | None:
    """Check what `interrupt` and `rollback` promise at the moment when they are accepted."""
    active = before.active
    on_busy = _accepted(before, after)
    for number, run in enumerate(before.runs):
        now = after.runs[number]
        if number == active and on_busy in ("interrupt", "rollback"):
            if not (now.cancel or now.state == CANCELLED):
                return f"run {active} is not cancelled"
            if not run.cancel and now.superseded_by != len(before.runs):
                return f"run {active} does not name what superseded it"
            if on_busy == "rollback" and not now.is_discarded:
                return f"the output of run {number} is not discarded"
        if now.is_discarded and not run.is_discarded and on_busy != "rollback":
            return f"the output of run {number} is discarded by {label}"
    return None


def _people_first(before: Thread, label: str, after: Thread) -> str | None:
    """Check what ends a run that waits for a person: no new run does, unless it says so."""
    on_busy = _accepted(before, after)
    _, tx = _acting(before, after)
    for number, run in enumerate(before.runs):
        if run.state != WAITING or after.runs[number].state == WAITING:
            continue
        may = on_busy in ("interrupt", "rollback") or tx.does in ("cancel", "end")
        if not may and " answers " not in label:
            return f"run {number} does not wait for its answer any more"
    if on_busy == "steer" and before.holder == WAITING:
        return "a message is accepted for a run that waits for a person"
    return None


def _cancels(before: Thread, label: str, after: Thread) -> str | None:
    """Check that a cancel of a run that waits ends it at once, and it alone."""
    if "commits its withdrawal" not in label:
        return None
    ended = [n for n, run in enumerate(before.runs) if run.state != after.runs[n].state]
    if len(ended) != 1 or before.runs[ended[0]].state not in (PENDING, SCHEDULED):
        return f"the cancel of a waiting run changes {ended}"
    return None


def of_states(max_waiting: int) -> Mapping[str, Promise]:
    """Return the invariants of states, with this bound of the queue."""

    def bounded(thread: Thread) -> str | None:
        return f"{thread.waiting} wait" if thread.waiting > max_waiting else None

    return {**OF_STATES, "the queue is bounded": bounded}


OF_STATES: Mapping[str, Promise] = {
    "one active run": _one_active,
    "one run for each message": _one_answer,
    "first in, first out": _order,
    "no lost wake-up": _no_lost_wake_up,
    "pending runs are in the queue": _all_wait_in_the_queue,
    "rollback removes output": _hidden,
    "what is superseded is reported": _reported,
    "no deadlock": _no_deadlock,
}


def _of_commits(promise: PromiseOfMove) -> PromiseOfMove:
    """Return the promise, checked where a move commits something: most take a lock or look."""

    def checked(before: Thread, label: str, after: Thread) -> str | None:
        if before.runs is after.runs and before.offered is after.offered:
            return None
        return promise(before, label, after)

    return checked


_OF_COMMITS: Mapping[str, PromiseOfMove] = {
    "runs start in turn": _in_turn,
    "merge joins the caller's last waiting run": _joins_own,
    "an end is final": _ends_stay,
    "steered messages are delivered to an executing run": _steered_once,
    "interrupt and rollback replace the active run": _replaced,
    "human input takes precedence": _people_first,
}
OF_MOVES: Mapping[str, PromiseOfMove] = {
    **{name: _of_commits(promise) for name, promise in _OF_COMMITS.items()},
    # A cancel that changes nothing is one that is broken.
    "a waiting run can be cancelled": _cancels,
}
