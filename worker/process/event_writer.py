"""All runs' events of this process, committed in groups: one statement a tick."""

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row, select

from arkloop.shared import fault_points, metrics
from arkloop.shared.errors import LeaseLost, Unavailable
from arkloop.shared.events import event_log
from arkloop.shared.events.stored_events import StoredEvent
from arkloop.shared.outage_log import OutageLog, reason_of
from arkloop.shared.storage.arrays import plain_array
from arkloop.shared.storage.connections import Connections
from arkloop.shared.storage.tables.runs import runs
from arkloop.worker.contract.outcomes import CancelRequested, RunFailure
from arkloop.worker.process.run_log import GATHER_SECONDS, RunLog

log = logging.getLogger(__name__)

RETRY_SECONDS = 0.2
#: Text is gathered for as long as this many commits take, but not for longer than a second.
COMMITS_PER_GATHERING = 4
MAX_GATHER_SECONDS = 1.0
#: One commit takes runs up to this many bytes, of which prompts may have some MiB each; the others
#: go with the next. While Postgres is out of reach it halves: the statement may be what takes too
#: long.
MAX_BATCH_BYTES = 16 * 1024 * 1024
LEAST_BATCH_BYTES = 64 * 1024
#: A run whose row somebody has locked for a moment goes with a later tick.
LOCKED_SECONDS = 0.02
_NO_MEMORY = "retrying to write events: no memory is left: %s"

# The rows are locked in id order against a concurrent takeover. One locked row must
# not stall the other runs: it is skipped, and its events go with a later tick. What is
# there already was stored by an earlier try whose answer got lost: the fence is the same.
# Committed events can be gone only after a failover or a restart: where the server is another one
# than that which stored a run's last events, nothing is written before they were looked for.
# The sub-selects: see shared/runs/sql/create.sql.
_WRITE = """
WITH event AS (
    SELECT unnest((SELECT %(run_ids)s::uuid[])) AS run_id,
        unnest((SELECT %(fences)s::bigint[])) AS fence,
        unnest((SELECT %(seqs)s::bigint[])) AS seq,
        unnest((SELECT %(types)s::text[])) AS type,
        unnest((SELECT %(payloads)s::text[])) AS payload,
        unnest((SELECT %(prompts)s::bytea[])) AS prompts
), locked AS (
    SELECT id, fence, state, cancel_requested_at, has_offered FROM runs
    WHERE id = ANY(%(ids)s::uuid[]) ORDER BY id FOR SHARE SKIP LOCKED
), written AS (
    INSERT INTO run_events (run_id, seq, type, payload, prompts)
    SELECT e.run_id, e.seq, e.type, e.payload, e.prompts FROM event e
    JOIN locked l ON l.id = e.run_id AND l.fence = e.fence AND l.state = 'executing'
    WHERE pg_postmaster_start_time() = %(server)s::timestamptz
    ON CONFLICT DO NOTHING
)
SELECT id, fence, state, cancel_requested_at, has_offered, pg_postmaster_start_time() AS server
FROM locked
"""
# One look into an index for each run.
_CUT_OFF = """
SELECT b.id FROM (
    SELECT unnest((SELECT %(ids)s::uuid[])) AS id, unnest((SELECT %(firsts)s::bigint[])) AS first
) AS b
WHERE (SELECT true FROM run_events e WHERE e.run_id = b.id AND e.seq = b.first - 1 LIMIT 1) IS NULL
"""


class EventWriter:
    """Commits what the runs' logs hold, then copies it to Redis; one thread."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self._wake = threading.Event()
        self._lock = threading.Lock()
        self._dirty: dict[RunLog, float] = {}  # since when, on the monotonic clock
        #: The logs of this commit, until they are written: where there is no memory, they come
        #: again, since their runs would wait for ever.
        self._taken: dict[RunLog, float] = {}
        #: When text that is being gathered must be committed, on the monotonic clock.
        self._due: dict[RunLog, float] = {}
        self._gather_seconds = GATHER_SECONDS
        self._batch_bytes = MAX_BATCH_BYTES
        self._outage = OutageLog(log, "writing events")
        threading.Thread(target=self._run, name="event-writer", daemon=True).start()

    def mark(self, run_log: RunLog) -> None:
        """Mark the log, to which events were added, for the next commit."""
        with self._lock:
            self._dirty.setdefault(run_log, time.monotonic())
        self._wake.set()

    def _run(self) -> None:
        pause: float | None = None
        while True:
            try:  # without this thread no run would continue
                self._wake.wait(pause)
                self._wake.clear()
                pause = self._tick()
            except Exception:
                pause = RETRY_SECONDS
                try:  # noqa: SIM105 - `suppress` itself needs memory
                    log.exception("event writer failed")
                except MemoryError:
                    pass

    def _tick(self) -> float | None:
        """Commit once; returns the seconds until the next commit is due (None: when events are
        added).
        """
        began = time.monotonic()
        with self._lock:
            # Those that are left of an earlier commit have waited for longer.
            self._taken, self._dirty = {**self._taken, **self._dirty, **self._taken}, {}
        for run_log, at in self._due.items():
            if at <= began:
                self._taken.setdefault(run_log, at)
        self._write_taken(began)
        if not self._due:
            return None
        return max(0.001, min(self._due.values()) - time.monotonic())

    def _write_taken(self, began: float) -> None:
        """Store what the logs hold, or a batch of it; those of others come with the next one."""
        batch: dict[RunLog, Sequence[StoredEvent]] = {}
        left, later = self._batch_bytes, dict[RunLog, float]()
        for run_log, since in self._taken.items():
            if left <= 0:
                later[run_log] = since
                continue
            self._due.pop(run_log, None)
            try:
                events, due_in = run_log.take(self._gather_seconds)
            except MemoryError as error:  # those of others may need less
                self._due[run_log] = began + RETRY_SECONDS
                self._outage.failed(_NO_MEMORY, reason_of(error))
                continue
            if events:
                batch[run_log] = events
                left -= sum(event.stored_size for event in events)
            if due_in is not None:
                self._due[run_log] = began + due_in
        if batch:
            again = self._store(batch)
            now = time.monotonic()
            for run_log in batch:
                metrics.EVENT_LAG.add(now - self._taken[run_log])
            self._due.update({run_log: now + seconds for run_log, seconds in again.items()})
            # When commits take long there is too much to do: longer pieces of text are less of it.
            self._gather_seconds = min(
                max(GATHER_SECONDS, (now - began) * COMMITS_PER_GATHERING), MAX_GATHER_SECONDS
            )
        self._taken = later
        if later:
            self._wake.set()

    def _store(self, batch: dict[RunLog, Sequence[StoredEvent]]) -> dict[RunLog, float]:
        """Commit the batch; returns the runs that have to come again, and in how many seconds."""
        try:
            skipped = self._commit(batch)
            self._outage.worked()
            self._batch_bytes = min(self._batch_bytes * 2, MAX_BATCH_BYTES)
            return dict.fromkeys(skipped, LOCKED_SECONDS)
        except (Unavailable, MemoryError) as error:
            self._batch_bytes = max(self._batch_bytes // 2, LEAST_BATCH_BYTES)
            for run_log in batch:
                run_log.give_back()
            line = "retrying to write events: Postgres unavailable: %s"
            if isinstance(error, MemoryError):
                line = _NO_MEMORY
            self._outage.failed(line, reason_of(error))
            time.sleep(RETRY_SECONDS)
            return dict.fromkeys(batch, RETRY_SECONDS)
        except Exception:
            if len(batch) > 1:
                # One of them cannot be stored, and must not take the others along.
                again: dict[RunLog, float] = {}
                for run_log, events in batch.items():
                    again.update(self._store({run_log: events}))
                return again
            [run_log] = batch
            log.exception("storing events failed", extra=run_log.subject)
            run_log.discard()
            run_log.stop.set(RunFailure("worker.crashed", "The run's events could not be stored."))
            return {}

    def _commit(self, batch: dict[RunLog, Sequence[StoredEvent]]) -> list[RunLog]:
        """Store and publish; returns the runs whose row was locked by somebody else."""
        locked: dict[UUID, Row[Any]] = {}
        for server in {run.server for run in batch}:
            of_server = {run: events for run, events in batch.items() if run.server == server}
            locked |= self._write(of_server, server)
        written: dict[UUID, Sequence[StoredEvent]] = {}
        skipped: list[RunLog] = []
        stored: list[RunLog] = []
        for run, events in batch.items():
            row = locked.get(run.run_id)
            if row is None:
                run.give_back()
                skipped.append(run)
                continue
            if row.fence != run.fence or row.state != "executing":
                run.stop.set(LeaseLost())
                run.committed()
                continue
            if run.stop.lease_lost:  # what it has committed before is gone
                run.committed()
                continue
            run.has_offered = run.has_offered or row.has_offered
            written[run.run_id] = events
            stored.append(run)
            if row.cancel_requested_at is not None:
                run.stop.set(CancelRequested())
        fault_points.reach("worker.committed")
        if written:
            metrics.EVENTS.add(sum(map(len, written.values())))
            # Before the runs go on: what they do next would take the sender's turn.
            self._connections.notify(event_log.Publish(written))
        for run in stored:
            run.committed()
        self._stop_deleted(skipped)
        if stored:
            # In a greenlet the sender runs only now; the next commit can wait for it.
            time.sleep(0)
        return skipped

    def _write(
        self, batch: Mapping[RunLog, Sequence[StoredEvent]], server: datetime | None
    ) -> dict[UUID, Row[Any]]:
        """Store the events of runs whose `server` still is the server.

        Returns the rows of those that it locked, and so has stored, or must never store.
        """
        with self._connections.statement() as tx:
            answer = tx.sql.exec_driver_sql(
                _WRITE,
                {
                    "server": server,
                    "ids": plain_array(run.run_id for run in batch),
                    "fences": plain_array(
                        run.fence for run, events in batch.items() for _ in events
                    ),
                    **event_log.columns([(run.run_id, e) for run, e in batch.items()]),
                },
            ).all()
        locked = {row.id: row for row in answer}
        if not answer or answer[0].server == server:
            return locked
        self._stop_cut_off(batch)
        intact = {run: e for run, e in batch.items() if not run.stop.lease_lost}
        for run in intact:
            run.server = answer[0].server
            # Nothing was stored, and the second try may find the row locked.
            locked.pop(run.run_id, None)
        return locked | self._write(intact, answer[0].server) if intact else locked

    def _stop_cut_off(self, batch: Mapping[RunLog, Sequence[StoredEvent]]) -> None:
        """Stop the runs whose last committed event the server does not have."""
        firsts = plain_array(events[0].seq for events in batch.values())
        with self._connections.reading() as sql:
            parameters = {"ids": plain_array(run.run_id for run in batch), "firsts": firsts}
            cut_off = set(sql.exec_driver_sql(_CUT_OFF, parameters).scalars())
        for run, events in batch.items():
            if run.run_id in cut_off:
                event_log.report_loss(run.run_id, events[0].seq, run.subject)
                run.stop.set(LeaseLost())

    def _stop_deleted(self, skipped: list[RunLog]) -> None:
        """Take those off the list whose row is not locked but gone: nothing can be written."""
        if not skipped:
            return
        with self._connections.reading() as sql:
            there = existing(sql, [run.run_id for run in skipped])
        for run in [run for run in skipped if run.run_id not in there]:
            run.stop.set(LeaseLost())
            run.discard()
            skipped.remove(run)


def existing(sql: Connection, run_ids: Sequence[UUID]) -> set[UUID]:
    """Return which of the runs have a row."""
    return set(sql.scalars(select(runs.c.id).where(runs.c.id.in_(run_ids))))
