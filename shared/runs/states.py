"""The states of a run and the moves between them.

    queued ──claim──▶ executing ──finish──▶ completed | failed | cancelled
      ▲  ▲               │  │
      │  └──release──────┘  └──park──▶ waiting ──answer──▶ queued
      └──recover (its worker is lost)

    executing ──park──▶ suspended ──(its sub-runs have ended)──▶ queued
    suspended ──(another sub-run of its run has ended)──▶ queued: one that was never claimed
    queued, waiting, suspended ──cancel, expire──▶ cancelled | failed

    scheduled ──(its time has come)──▶ pending ──(its thread is free)──▶ queued
    scheduled, pending ──cancel──▶ cancelled: those have not begun to be active

On the wire a run shows `status` and `phase`, both derived from the state.
"""

from enum import StrEnum


class RunState(StrEnum):
    """The values of the `runs.state` column."""

    QUEUED = "queued"
    EXECUTING = "executing"
    WAITING = "waiting"
    SUSPENDED = "suspended"  # it waits for sub-runs, or is one that waits for its turn
    PENDING = "pending"  # it waits for its thread, in which another run is active
    SCHEDULED = "scheduled"  # its time has not come
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_terminal(self) -> bool:
        return self not in ACTIVE and self not in WAITING_FOR_THREAD


#: States before a run is active.
WAITING_FOR_THREAD = frozenset({RunState.PENDING, RunState.SCHEDULED})
ACTIVE = frozenset({RunState.QUEUED, RunState.EXECUTING, RunState.WAITING, RunState.SUSPENDED})

#: Wire status → the states it stands for.
STATUSES: dict[str, tuple[RunState, ...]] = {
    "running": (
        RunState.QUEUED,
        RunState.EXECUTING,
        RunState.SUSPENDED,
        RunState.PENDING,
        RunState.SCHEDULED,
    ),
    "waiting_for_input": (RunState.WAITING,),
    "completed": (RunState.COMPLETED,),
    "failed": (RunState.FAILED,),
    "cancelled": (RunState.CANCELLED,),
}

_STATUS_OF = {state: status for status, states in STATUSES.items() for state in states}


def status_of(state: str) -> str:
    """Return the wire status of a stored state."""
    return _STATUS_OF[RunState(state)]


def phase_of(state: str, *, cancel_requested: bool) -> str:
    """Return `queued`, `scheduled`, `executing`, `waiting`, `cancelling` or `finished`."""
    if RunState(state).is_terminal:
        return "finished"
    if cancel_requested:
        return "cancelling"
    if state == RunState.PENDING:
        return "queued"
    return "waiting" if state == RunState.SUSPENDED else state


class ResultSource(StrEnum):
    """The sender of a tool call's result where that is not the worker that begins the call.

    The values of the `tool_calls.result_from` column.
    """

    CLIENT = "client"  # a program that uses the API
    HTTP = "http"  # an HTTP tool that has accepted the call
    RUN = "run"  # a sub-run
