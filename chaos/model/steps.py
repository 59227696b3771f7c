"""The pieces of the processes' moves: what a transaction is about, begins with and leaves."""

from dataclasses import dataclass
from typing import Any

from arkloop.shared.runs.thread_queue import Happening, OnBusy
from chaos.model.busy_thread import EXECUTING, NOBODY, Process, Thread, Tx
from chaos.model.effects import Case

CLIENTS = (0, 1)
WORKER = 2
SWEEP = 3


@dataclass(frozen=True, slots=True)
class Bounds:
    """The size of the model."""

    requests: tuple[int, int] = (2, 1)  # of each client
    crashes: int = 1
    parks: int = 1
    on_busy: tuple[OnBusy, ...] = tuple(OnBusy)
    has_times: bool = True
    has_revocations: bool = True


def happening_of(tx: Tx) -> Happening:
    """Return what the request is to the table."""
    return Happening.DUE if tx.does == "due" else Happening.CREATE


def case_of(tx: Tx, number: int) -> Case:
    """Return the case of a request, or of a run that is due."""
    is_due = tx.does == "due"
    return Case(
        NOBODY if is_due else number,
        OnBusy(tx.on_busy),
        is_later=tx.does == "later",
        run=tx.target if is_due else NOBODY,
    )


def unlocked(tx: Tx, step: str) -> Tx:
    """Return the request without what it has seen and locked."""
    return tx._replace(step=step, how="", run_lock=NOBODY, thread_lock=False)


def begin(thread: Thread, number: int, tx: Tx, **changes: Any) -> Thread:
    """Open a transaction."""
    return thread.with_process(number, tx=tx, **changes)


def set_tx(thread: Thread, number: int, tx: Tx | None) -> Thread:
    """Replace the transaction, or close it."""
    return thread.with_process(number, tx=tx)


def take(thread: Thread, number: int, how: str) -> Thread:
    """Begin to end the run by the sweep, with its lock."""
    tx = Tx("end", "lock thread", number, how=how, run_lock=number)
    return begin(thread, SWEEP, tx)


def let_go(thread: Thread, number: int) -> Thread:
    """Close the transaction; a worker holds nothing then."""
    return thread.with_process(number, tx=None, held=NOBODY, fence=0)


def is_held(thread: Thread, process: Process) -> bool:
    """Return whether the run is the worker's by its fence."""
    if process.held == NOBODY:
        return False
    run = thread.runs[process.held]
    return run.state == EXECUTING and run.fence == process.fence


def is_orphan(thread: Thread, number: int) -> bool:
    """Return whether no worker executes the run."""
    worker = thread.processes[WORKER]
    return worker.held != number or not is_held(thread, worker)


def name_of(run: int) -> str:
    """Return how a label names the run."""
    return "no run" if run == NOBODY else f"run {run}"
