"""The heads of runs, which their streams need, looked up for many streams at once.

Threads have heads, too: the position of their newest run, and who may read it.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from arkloop.api.streaming.lookups import Lookups
from arkloop.shared.actors import Actor
from arkloop.shared.errors import RunNotFound
from arkloop.shared.storage.connections import Connections

# Of thousands of runs that wait, nothing has to travel.
# Queries within unnest: a plan for these runs is no better than one for any, and Postgres would
# make it at each call, for all partitions of events.
_NEWS = """
SELECT known.run_id, run.org_id, run.only_for, run.ended_at, newest.seq, run.thread_id,
    run.end_user_id
FROM unnest((SELECT %(ids)s::uuid[]), (SELECT %(seqs)s::bigint[])) AS known (run_id, seq)
LEFT JOIN LATERAL (
    SELECT r.org_id, CASE WHEN t.is_private THEN t.created_by_user_id END AS only_for, r.ended_at,
        t.id AS thread_id, t.end_user_id
    FROM runs r JOIN threads t ON t.id = r.thread_id
    WHERE r.id = known.run_id AND t.deleted_at IS NULL
) AS run ON true
CROSS JOIN LATERAL (
    SELECT coalesce(max(e.seq), 0) AS seq FROM run_events e WHERE e.run_id = known.run_id
) AS newest
WHERE run.org_id IS NULL OR run.only_for IS NOT NULL OR run.ended_at IS NOT NULL
    OR newest.seq > known.seq
"""


# Runs that wait for their thread have positions from there on: they may start in another order.
_THREAD_NEWS = """
SELECT known.thread_id, thread.org_id, thread.only_for, NULL, newest.position, known.thread_id,
    thread.end_user_id
FROM unnest(%(ids)s::uuid[], %(positions)s::bigint[]) AS known (thread_id, position)
LEFT JOIN LATERAL (
    SELECT t.org_id, CASE WHEN t.is_private THEN t.created_by_user_id END AS only_for,
        t.end_user_id
    FROM threads t WHERE t.id = known.thread_id AND t.deleted_at IS NULL
) AS thread ON true
CROSS JOIN LATERAL (
    SELECT coalesce(
        (SELECT r.position FROM runs r
            WHERE r.thread_id = known.thread_id AND r.position > known.position
                AND r.position < 2251799813685248
            ORDER BY r.position DESC LIMIT 1),
        0
    ) AS position
) AS newest
WHERE thread.org_id IS NULL OR thread.only_for IS NOT NULL OR newest.position > known.position
"""


class RunHead(NamedTuple):
    """A run's newest event and who may read it: all of the org, or `only_for` one user, and the
    end user of its thread.
    """

    run_id: UUID
    org_id: UUID
    only_for: UUID | None
    ended_at: datetime | None
    last_seq: int
    thread_id: UUID
    end_user_id: str | None

    def is_seen_by(self, actor: Actor) -> bool:
        """Return whether the actor may see the run; `IS_VISIBLE` is the same in SQL."""
        return (
            self.org_id == actor.org_id
            and self.only_for in (None, actor.reader_of_private)
            and actor.end_user_id in (None, self.end_user_id)
            and actor.thread_id in (None, self.thread_id)
        )


class RunHeads:
    """Asks for the heads of many at a time, with one database connection."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self._lookups = Lookups("run-heads", self.read)

    def get(self, run_id: UUID) -> RunHead | None:
        """Return the head of the run as it is now or later, None if there is no such run.

        Raises:
            Unavailable: Postgres is out of reach.
        """
        return self._lookups.get(run_id)

    def get_seen(self, run_id: UUID, actor: Actor) -> RunHead:
        """Return the head of a run. Raises: RunNotFound: none that the actor sees; Unavailable."""
        head = self.get(run_id)
        if head is None or not head.is_seen_by(actor):
            raise RunNotFound()
        return head

    def read(self, run_ids: Sequence[UUID]) -> dict[UUID, RunHead]:
        """Return the heads of the existing runs among these, in one query. Raises: Unavailable."""
        # Each has at least 0 events.
        news = self.news(dict.fromkeys(run_ids, -1))
        return {run_id: head for run_id, head in news.items() if head is not None}

    def news(self, known: Mapping[UUID, int]) -> dict[UUID, RunHead | None]:
        """Return the heads of the runs that have events beyond the known number, have ended, or are
        no longer visible to all readers; None stands for a run that is gone. Raises: Unavailable.
        """
        arrays = {"ids": list(known), "seqs": list(known.values())}
        with self._connections.reading() as sql:
            rows = sql.exec_driver_sql(_NEWS, arrays)
            return {row[0]: None if row[1] is None else RunHead(*row) for row in rows}

    def thread_news(self, known: Mapping[UUID, int]) -> dict[UUID, RunHead | None]:
        """Return the heads of threads, as `news` does: their numbers are positions of runs."""
        arrays = {"ids": list(known), "positions": list(known.values())}
        with self._connections.reading() as sql:
            rows = sql.exec_driver_sql(_THREAD_NEWS, arrays)
            return {row[0]: None if row[1] is None else RunHead(*row) for row in rows}
