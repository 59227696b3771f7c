"""The moves of the active run that are no matter of the queue: its worker makes most of them."""

from collections.abc import Mapping
from enum import StrEnum

from arkloop.shared.runs.thread_queue import Holder
from chaos.model.busy_thread import Thread


class Life(StrEnum):
    """The moves by name."""

    CLAIM = "claim"  # by a worker
    PARK = "park"  # the worker lets the run wait for a person or for results
    SUSPEND = "suspend"  # the worker lets the run wait for sub-runs
    RESUME = "resume"  # what the run has waited for is there
    RELEASE = "release"  # the worker stops, or was lost, and the run goes back


_H = Holder
#: The states before each, and that after it: the arrows of shared/runs/states.py.
_MOVES: Mapping[Life, tuple[frozenset[Holder], Holder]] = {
    Life.CLAIM: (frozenset({_H.QUEUED}), _H.EXECUTING),
    Life.PARK: (frozenset({_H.EXECUTING}), _H.WAITING),
    Life.SUSPEND: (frozenset({_H.EXECUTING}), _H.SUSPENDED),
    Life.RESUME: (frozenset({_H.WAITING, _H.SUSPENDED}), _H.QUEUED),
    Life.RELEASE: (frozenset({_H.EXECUTING}), _H.QUEUED),
}


def live(thread: Thread, move: Life) -> Thread:
    """Return the thread after its active run has made the move.

    Raises:
        LookupError: it cannot.
    """
    before, after = _MOVES[move]
    if thread.holder not in before:
        raise LookupError(f"{move} with {thread.holder}")
    active = thread.active
    fence = thread.runs[active].fence + (move is Life.CLAIM)
    return thread.with_run(active, state=after.value, fence=fence)
