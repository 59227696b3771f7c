"""The poller for queued runs whose queue message was lost.

A message is lost when a process dies between commit and enqueue, and all of them are when Redis is
down. While the process has free slots, the poller finds such runs in Postgres.
"""

import logging
import threading
from datetime import timedelta
from functools import partial
from uuid import UUID

from arkloop.shared.background_loop import BackgroundLoop
from arkloop.shared.runs import claims
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


def start(process: WorkerProcess) -> None:
    """Look every `LOOK_SECONDS`, or `sweep_seconds` if they are less, until the process drains."""
    BackgroundLoop(
        "polling for queued runs",
        partial(_step, process),
        seconds=min(LOOK_SECONDS, process.settings.sweep_seconds),
        stopped=process.draining,
    )


def _step(process: WorkerProcess) -> float | None:
    capacity = min(process.free_slots, BATCH)
    if capacity <= 0 or not process.lease.is_valid:
        return None
    return MORE_PAUSE_SECONDS if poll(process, capacity) == capacity else None


def poll(process: WorkerProcess, capacity: int) -> int:
    """Execute at most `capacity` unclaimed runs, each in a thread of its own; returns how many.

    Raises:
        Unavailable
    """
    delivered = process.newest_delivered_queued_at
    with process.connections.reading() as sql:
        found = claims.unclaimed(
            sql,
            older_than=UNCLAIMED_SECONDS,
            limit=capacity,
            suspects=not process.has_suspect,
            # Of a long queue each message would be overtaken, and still cost its time later.
            before=delivered and delivered - timedelta(seconds=UNCLAIMED_SECONDS),
        )
    for run_id in found:
        threading.Thread(target=_execute, args=(process, run_id), name="run", daemon=True).start()
    return len(found)


def _execute(process: WorkerProcess, run_id: UUID) -> None:
    try:
        execution.execute_in_turn(process, run_id)
    except Exception:
        log.exception("executing the run failed", extra={"run_id": str(run_id)})
