"""A busy thread as the model sees it: what is committed, and what is open.

Everything is a value. `queue` has the pending runs in the order in which they are to start. A
ticket is the number of an acceptance: it says what order was promised, and nothing reads it but
the invariants.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

from arkloop.shared.runs.thread_queue import Holder

QUEUED, EXECUTING, WAITING, SUSPENDED = "queued", "executing", "waiting", "suspended"
PENDING, SCHEDULED = "pending", "scheduled"
COMPLETED, FAILED, CANCELLED = "completed", "failed", "cancelled"

ACTIVE = frozenset({QUEUED, EXECUTING, WAITING, SUSPENDED})
ENDED = frozenset({COMPLETED, FAILED, CANCELLED})
NOBODY = -1


class Run(NamedTuple):
    """A row of `runs`."""

    state: str
    by: int  # the client
    messages: tuple[int, ...]
    ticket: int
    goes_ahead: bool = False
    has_followers: bool = False
    cancel: bool = False  # it is to be cancelled
    superseded_by: int = NOBODY
    steered: tuple[int, ...] = ()  # messages that were delivered to it
    fence: int = 0
    is_discarded: bool = False
    is_shown: bool = False  # the thread shows what it has said


class Offer(NamedTuple):
    """A message that waits for the next step of the active run."""

    message: int
    by: int
    ticket: int


class Tx(NamedTuple):
    """An open transaction: what it does, its next step, and the locks that it holds."""

    does: str
    step: str
    target: int = NOBODY  # the run that it is about
    on_busy: str = ""
    how: str = ""  # a run ends
    run_lock: int = NOBODY
    thread_lock: bool = False


class Process(NamedTuple):
    """A client, the worker, or the sweep of any process; `left` are the requests still to come."""

    left: int = 0
    tx: Tx | None = None
    held: int = NOBODY  # the run that a worker believes to hold
    fence: int = 0


class Thread(NamedTuple):
    """The state of the whole model."""

    runs: tuple[Run, ...] = ()
    queue: tuple[int, ...] = ()
    offered: tuple[Offer, ...] = ()
    accepted: int = 0  # messages
    tickets: int = 0
    processes: tuple[Process, ...] = ()
    parks: int = 0
    crashes: int = 0

    @property
    def active(self) -> int:
        """Return the active run, or `NOBODY`."""
        for number, run in enumerate(self.runs):
            if run.state in ACTIVE:
                return number
        return NOBODY

    @property
    def waiting(self) -> int:
        """Count what waits: runs that are pending or scheduled, and offered messages."""
        scheduled = sum(run.state == SCHEDULED for run in self.runs)
        return len(self.queue) + scheduled + len(self.offered)

    @property
    def holder(self) -> Holder:
        """Return the state of the active run as the table names it."""
        active = self.active
        if active == NOBODY:
            return Holder.NONE
        run = self.runs[active]
        return Holder.CANCELLING if run.cancel else Holder(run.state)

    def transactions(self) -> Iterator[tuple[int, Tx]]:
        """Yield the open transactions with the numbers of their processes."""
        for number, process in enumerate(self.processes):
            if process.tx is not None:
                yield number, process.tx

    def is_locked(self, run: int) -> bool:
        """Return whether a transaction holds the run's row."""
        return any(tx.run_lock == run for _, tx in self.transactions())

    @property
    def is_thread_locked(self) -> bool:
        return any(tx.thread_lock for _, tx in self.transactions())

    def with_run(self, number: int, **changes: Any) -> "Thread":
        """Return the same with a changed run."""
        run = self.runs[number]._replace(**changes)
        return self._replace(runs=(*self.runs[:number], run, *self.runs[number + 1 :]))

    def with_process(self, number: int, **changes: Any) -> "Thread":
        """Return the same with a changed process."""
        process = self.processes[number]._replace(**changes)
        rest = self.processes[number + 1 :]
        return self._replace(processes=(*self.processes[:number], process, *rest))

    def __str__(self) -> str:
        runs = "; ".join(
            f"{number}: {run.state} {'+'.join(map(str, (*run.messages, *run.steered)))}"
            f"{' cancel' * run.cancel}{' followed' * run.has_followers}"
            f"{f' for {run.superseded_by}' * (run.superseded_by != NOBODY)}"
            for number, run in enumerate(self.runs)
        )
        offers = [offer.message for offer in self.offered]
        return f"runs [{runs}], queue {[*self.queue]}, offered {offers}"
