"""The heads of runs, which their streams need, looked up for many streams at once.

When a process ends, thousands of clients come to another one within a moment.
Whatever is asked while a query is under way is asked together in the next one.
"""

import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from arkloop.shared.actors import Actor
from arkloop.shared.errors import RunNotFound, Unavailable
from arkloop.shared.storage.connections import Connections

log = logging.getLogger(__name__)

#: Runs of one query.
MOST_AT_ONCE = 500

# Of thousands of runs that wait, nothing has to travel.
_NEWS = """
SELECT known.run_id, run.org_id, run.only_for, run.ended_at, newest.seq, run.thread_id,
    run.end_user_id
FROM unnest(%(ids)s::uuid[], %(seqs)s::bigint[]) AS known (run_id, seq)
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


@dataclass(slots=True)
class _Question:
    """A question about one run, shared by all who ask at the same time."""

    answered: threading.Event = field(default_factory=threading.Event)
    head: RunHead | None = None
    error: Exception | None = None


class RunHeads:
    """Asks for heads in a thread of its own, with one database connection at a time."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self._lock = threading.Lock()
        self._asked: dict[UUID, _Question] = {}
        self._is_asking = False

    def get(self, run_id: UUID) -> RunHead | None:
        """Return the head of the run as it is now or later, None if there is no such run.

        Raises:
            Unavailable: Postgres is out of reach.
        """
        with self._lock:
            question = self._asked.get(run_id)
            if question is None:
                question = self._asked[run_id] = _Question()
            if not self._is_asking:
                self._is_asking = True
                threading.Thread(target=self._ask, name="run-heads", daemon=True).start()
        question.answered.wait()
        if question.error is not None:
            # One of its own for each: a traceback grows with each thread that raises it.
            raise type(question.error)() from question.error
        return question.head

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

    def _ask(self) -> None:
        """Query the database until no request is left."""
        while True:
            with self._lock:
                asked = {
                    run_id: self._asked.pop(run_id) for run_id in list(self._asked)[:MOST_AT_ONCE]
                }
                if not asked:
                    self._is_asking = False
                    return
            try:
                heads = self.read(list(asked))
                for run_id, question in asked.items():
                    question.head = heads.get(run_id)
            except Unavailable as error:
                for question in asked.values():
                    question.error = error
            except Exception as error:
                log.exception("run heads")
                for question in asked.values():
                    question.error = RuntimeError(str(error))
            finally:
                for question in asked.values():
                    question.answered.set()
