"""The poller for queued runs whose queue message was lost.

A message is lost when a process dies between commit and enqueue, and all of them are when Redis is
down. While the process has free slots, the poller finds such runs in Postgres.
"""

import logging
import threading
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from uuid import UUID

from arkloop.shared.background_loop import BackgroundLoop
from arkloop.shared.errors import Unavailable
from arkloop.shared.runs import queries
from arkloop.shared.runs.states import RunState
from arkloop.worker.attempt import execution
from arkloop.worker.process.process import WorkerProcess

log = logging.getLogger(__name__)

#: A message takes some milliseconds; a run that waits for longer has none, or many stand before it.
UNCLAIMED_SECONDS = 1.0
BATCH = 100
#: Not less often, whatever the sweep does: without a broker this is how runs begin.
LOOK_SECONDS = 1.0
#: While there are more than this process had room for.
MORE_PAUSE_SECONDS = 0.1
#: Often enough that no other worker takes such a run first: without its call it is of little use.
HELD_LOOK_SECONDS = 0.5
_STILL_WAITING = (RunState.WAITING, RunState.QUEUED)


def start(process: WorkerProcess) -> None:
    """Look every `LOOK_SECONDS`, or `sweep_seconds` if they are less, until the process drains."""
    BackgroundLoop(
        "polling for queued runs",
        partial(_step, process),
        seconds=min(LOOK_SECONDS, process.settings.sweep_seconds),
        stopped=process.draining,
    )
    process.resume = partial(_resume, process)
    BackgroundLoop(
        "looking at calls in which people are asked",
        partial(_look_at_held, process),
        seconds=HELD_LOOK_SECONDS,
        stopped=process.draining,
    )


def _step(process: WorkerProcess) -> float | None:
    if not process.lease.is_valid:
        # Not a success: the log would say that polling works again in the middle of an outage.
        raise Unavailable("this worker's lease is not valid")
    capacity = min(process.free_slots, BATCH)
    if capacity <= 0:
        return None
    return MORE_PAUSE_SECONDS if poll(process, capacity) == capacity else None


def poll(process: WorkerProcess, capacity: int) -> int:
    """Execute at most `capacity` unclaimed runs, each in a thread of its own; returns how many.

    Raises:
        Unavailable
    """
    delivered = process.newest_delivered_queued_at
    with process.connections.reading() as sql:
        found = queries.unclaimed(
            sql,
            older_than=UNCLAIMED_SECONDS,
            limit=capacity,
            suspects=not process.has_suspect,
            # Of a long queue each message would be overtaken, and still cost its time later.
            before=delivered and delivered - timedelta(seconds=UNCLAIMED_SECONDS),
        )
    for run_id in found:
        _begin(process, run_id)
    return len(found)


def _look_at_held(process: WorkerProcess) -> None:
    """Resume runs that were answered, and end the calls of those that do not wait any more.

    Raises:
        Unavailable
    """
    held = {token: UUID(run_id) for token, run_id in process.mcp.held.runs.items()}
    if not held:
        return
    with process.connections.reading() as sql:
        states = queries.states_of(sql, set(held.values()))
    own = process.active_runs()
    for run_id in {*held.values()} - own.keys():
        if states.get(run_id) == RunState.QUEUED:
            _resume(process, run_id)
    process.mcp.held.release(
        [
            token
            for token, run_id in held.items()
            if run_id not in own and states.get(run_id) not in _STILL_WAITING
        ]
    )


def _begin(process: WorkerProcess, run_id: UUID) -> None:
    _in_thread(partial(execution.execute_in_turn, process, run_id), run_id)


def _resume(process: WorkerProcess, run_id: UUID) -> None:
    """Execute this very run: its turn would start another one, here beyond the free slots."""
    _in_thread(partial(execution.execute, process, run_id), run_id)


def _in_thread(execute: Callable[[], object], run_id: UUID) -> None:
    def work() -> None:
        try:
            execute()
        except Exception:
            extra = {"run_id": str(run_id), "outcome": "abandoned"}
            log.exception("executing the run failed", extra=extra)

    threading.Thread(target=work, name="run", daemon=True).start()
