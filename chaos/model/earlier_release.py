"""A worker of an earlier release, which ends a run and starts no other, and the sweep after it."""

from collections.abc import Iterator

from arkloop.shared.runs.thread_queue import Happening
from chaos.model.busy_thread import CANCELLED, COMPLETED, NOBODY, Thread
from chaos.model.effects import NO_CASE, Table, happen
from chaos.model.steps import WORKER, is_held, let_go

#: The promise that such a worker breaks, for as long as the sweep has not looked.
BROKEN = "no lost wake-up"


def moves(table: Table, thread: Thread) -> Iterator[tuple[str, Thread]]:
    """Yield the end of the worker's run, and the start of what such an end has left."""
    worker = thread.processes[WORKER]
    held = worker.held
    if worker.tx is None and is_held(thread, worker) and not thread.is_locked(held):
        run = thread.runs[held]
        state = CANCELLED if run.cancel else COMPLETED
        ended = thread.with_run(held, state=state, is_shown=not run.is_discarded)
        yield f"worker of an earlier release ends {held}", let_go(ended, WORKER)
    pending = [number for number in thread.queue if not thread.runs[number].cancel]
    if pending and thread.active == NOBODY and not thread.is_thread_locked:
        _, started = happen(table, thread, Happening.LEFT, NO_CASE)
        yield "sweep starts what was left", started
