"""The event stream of a thread: the streams of its runs, one after the other.

Its client has one watch, which goes from run to run, and follows the thread itself
while no run is active. A run begins with a frame that announces it, number 0.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple
from uuid import UUID

from arkloop.api.streaming.lookups import Lookups
from arkloop.api.streaming.run_heads import RunHead
from arkloop.api.streaming.stream_hub import StreamHub
from arkloop.api.streaming.stream_pages import PING, Page
from arkloop.api.streaming.watch import Watch
from arkloop.shared.errors import EventsLost, Unavailable
from arkloop.shared.runs import next_runs
from arkloop.shared.runs.next_runs import NextRun, Place
from arkloop.shared.storage.connections import Connections

#: The type of the frame that announces a run.
ANNOUNCEMENT = "thread.run"
UNAVAILABLE_SECONDS = 1.0
#: The longest `id:` line of an event, with its frame's end.
_ID_LINE = 32

# Runs that wait for their thread have positions from there on, and so have those that were
# cancelled as they did.
_STARTS = """
SELECT wanted.run_id,
    CASE WHEN r.position >= 2251799813685248 THEN coalesce(newest.position, 0) ELSE r.position END,
    r.position < 2251799813685248, newest.id, t.id, t.org_id,
    CASE WHEN t.is_private THEN t.created_by_user_id END, NULL, 0, t.id, t.end_user_id
FROM unnest(%(thread_ids)s::uuid[], %(run_ids)s::uuid[]) AS wanted (thread_id, run_id)
JOIN threads t ON t.id = wanted.thread_id AND t.deleted_at IS NULL
LEFT JOIN runs r ON r.id = wanted.run_id AND r.thread_id = t.id
LEFT JOIN LATERAL (
    SELECT id, position FROM runs
    WHERE thread_id = t.id AND position < 2251799813685248 AND r.position >= 2251799813685248
    ORDER BY position DESC LIMIT 1
) AS newest ON true
"""


class Start(NamedTuple):
    """A thread, by which `is_seen_by` says who may read it, and a run's position in it.

    If the run has not started, it is the position of the newest one that has, `newest_id`, or 0.
    """

    thread: RunHead
    position: int | None
    has_started: bool | None
    newest_id: UUID | None


class Announced(NamedTuple):
    """A run, and the payload that announces it."""

    run_id: UUID
    position: int
    has_ended: bool
    last_seq: int
    payload: bytes


class ThreadRuns:
    """Asks for runs of threads, those of many streams at a time; `announce` makes the payload."""

    def __init__(self, connections: Connections, announce: Callable[[NextRun], bytes]) -> None:
        self._connections = connections
        self._announce = announce
        self._starts = Lookups("thread-starts", self._read_starts)
        # Each answer may have 300 KiB of messages.
        self._next = Lookups("next-runs", self._read_next, at_once=50)

    def start(self, thread_id: UUID, run_id: UUID | None) -> Start | None:
        """Return where the run is in the thread; None without the thread. Raises: Unavailable."""
        return self._starts.get((thread_id, run_id))

    def after(self, thread_id: UUID, position: int) -> Announced | None:
        """Return the next run of the thread, None if there is none yet. Raises: Unavailable."""
        return self._next.get(Place(thread_id, position))

    def _read_starts(
        self, asked: Sequence[tuple[UUID, UUID | None]]
    ) -> Mapping[tuple[UUID, UUID | None], Start]:
        arrays = {
            "thread_ids": [thread_id for thread_id, _ in asked],
            "run_ids": [run_id for _, run_id in asked],
        }
        with self._connections.reading() as sql:
            rows = sql.exec_driver_sql(_STARTS, arrays)
            return {(row[4], row[0]): Start(RunHead(*row[4:]), *row[1:4]) for row in rows}

    def _read_next(self, places: Sequence[Place]) -> Mapping[Place, Announced]:
        with self._connections.reading() as sql:
            found = next_runs.after(sql, places)
        return {place: self._announced(run) for place, run in found.items()}

    def _announced(self, run: NextRun) -> Announced:
        row = run.row
        has_ended = row.ended_at is not None
        return Announced(row.id, row.position, has_ended, row.last_seq, self._announce(run))


class ThreadStream:
    """The way of a client through the runs of a thread; `follows` them beyond those of now."""

    __slots__ = ("_follows", "_hub", "_position", "_run_id", "_runs", "_thread_id", "watch")

    def __init__(
        self,
        hub: StreamHub,
        runs: ThreadRuns,
        watch: Watch,
        position: int,
        run_id: UUID | None = None,
        *,
        follows: bool,
    ) -> None:
        """Begin behind the run at `position`; `watch` is one that awaits a run of the thread.

        `run_id` is that run if it may move: it can be active.
        """
        self._hub = hub
        self._runs = runs
        self._thread_id = watch.run_id
        self._position, self._run_id = position, run_id
        self._follows = follows
        self.watch = watch

    def resume(self, run: Announced, cursor: int) -> None:
        """Begin in this run, after the event `cursor`; the watch is not added to the hub yet."""
        self._position, self._run_id = run.position, run.run_id
        self.watch.begin(run.run_id, cursor, until=self._until(run))

    def follow_on(self) -> bytes | None:
        """Move the watch to the next run and return its announcement, b"" while there is none.

        None if nothing follows. For `sse.stream`.
        """
        watch = self.watch
        try:
            if not watch.awaits_run:
                self._hub.holes.check(watch.run_id, watch.cursor)
            run = self._next()
            # Afterwards: the run was read while the client saw the thread.
            if run is not None and not self._is_seen():
                watch.interrupt()
                return b""
        except EventsLost:
            watch.interrupt()  # the next request with this cursor gets 410
            return b""
        except Unavailable:
            time.sleep(UNAVAILABLE_SECONDS)
            return PING
        if run is not None:
            self._position, self._run_id = run.position, run.run_id
            self._hub.move(watch, run.run_id, until=self._until(run))
            return self._frame(run)
        if not self._follows:
            return None
        self._hub.move(watch, self._thread_id, self._position, awaits_run=True)
        return b""

    def _next(self) -> Announced | None:
        run = self._runs.after(self._thread_id, self._position)
        if run is not None and run.run_id == self._run_id:
            # Its end has moved the run behind the messages that it was steered with.
            self._position = run.position
            run = self._runs.after(self._thread_id, self._position)
        return run

    def _is_seen(self) -> bool:
        start = self._runs.start(self._thread_id, None)
        return start is not None and start.thread.is_seen_by(self.watch.reader)

    def pieces(self, page: Page) -> Iterator[bytes]:
        """Yield the pieces of a page, with the run in each id."""
        old, new = b"\nid: ", b"\nid: %b:" % str(self.watch.run_id).encode()
        rest = b""
        for piece in page.pieces():
            whole = rest + piece
            rest = b""
            # Of a frame in several pieces, the line with its id may be cut.
            if not piece.endswith(b"\n\n") and (at := whole.rfind(b"\n", -_ID_LINE)) >= 0:
                whole, rest = whole[:at], whole[at:]
            yield whole.replace(old, new)

    def _until(self, run: Announced) -> int | None:
        return None if self._follows and not run.has_ended else run.last_seq

    def _frame(self, run: Announced) -> bytes:
        name = b"event: %b\n" % ANNOUNCEMENT.encode() if self.watch.named else b""
        return b"%bdata: %b\nid: %b:0\n\n" % (name, run.payload, str(run.run_id).encode())
