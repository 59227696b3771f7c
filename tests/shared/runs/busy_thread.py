"""A thread with messages that are sent while a run is active in it."""

import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from sqlalchemy import select

from arkloop.shared.claim import Claim
from arkloop.shared.runs.creation import Created, NewMessage, RunCreator
from arkloop.shared.runs.endings import Ending, Outcome, RunEnder
from arkloop.shared.runs.thread_queue import OnBusy
from arkloop.shared.storage.tables.runs import FIRST_WAITING, runs
from arkloop.shared.storage.tables.threads import messages
from arkloop.shared.threads import threads
from arkloop.shared.threads.content import Content
from tests.shared.runs.test_endings import completed
from tests.stored_runs import StoredRuns

LATER = datetime(2090, 1, 1, tzinfo=UTC)


class BusyThread:
    """A thread, by default a new one; what happens in it happens by the product's own functions."""

    def __init__(self, stored: StoredRuns, thread_id: UUID | None = None) -> None:
        self.stored = stored
        self.id = thread_id or stored.thread()
        self._create = RunCreator(stored.connections, stored.catalog())
        self._end = RunEnder(stored.connections)
        self.claims: dict[UUID, Claim] = {}

    def say(self, text: str, on_busy: str | None = "enqueue", **more: Any) -> Created:
        """Create a run with this message."""
        return self._create(
            replace(
                self.stored.wanted(self.id),
                message=NewMessage(content=Content.of(text)),
                on_busy=None if on_busy is None else OnBusy(on_busy),
                **more,
            )
        )

    def send(self, text: str) -> None:
        """Put a message into the thread without a run."""
        with self.stored.connections.transaction() as tx:
            threads.add_message(tx, self.stored.actor, self.id, content=text)

    def claim(self, run_id: UUID) -> Claim:
        claim = self.stored.held(run_id)
        self.claims[run_id] = claim
        return claim

    def ending(self, of: Callable[..., Ending], claim: Claim, *said: str) -> Ending:
        """Return the ending of a run that may have written events meanwhile."""
        return of(replace(claim, last_seq=self.stored.last_seq(claim.run_id)), *said)

    def end(self, ending: Ending) -> Outcome:
        """End a run as its worker does, which tries again while somebody has locked the row."""
        while (outcome := self._end(ending)) is Outcome.LOCKED:
            time.sleep(0.01)
        return outcome

    def answer(self, run_id: UUID, said: str) -> None:
        """Claim a run and complete it with this answer."""
        assert Outcome.ENDED == self.end(completed(self.claim(run_id), said))

    def active(self) -> UUID | None:
        """Return the run that is active in the thread."""
        with self.stored.connections.reading() as sql:
            return threads.active_run_id(sql, self.id)

    def texts(self) -> list[str]:
        """Return the messages of the thread in the order of their positions."""
        with self.stored.connections.reading() as sql:
            return list(
                sql.scalars(
                    select(messages.c.content)
                    .where(messages.c.thread_id == self.id, messages.c.superseded_at.is_(None))
                    .order_by(messages.c.position)
                )
            )

    def steered(self) -> list[str]:
        """Return the messages of the thread that are part of a run."""
        query = select(messages.c.content).where(messages.c.thread_id == self.id)
        with self.stored.connections.reading() as sql:
            return list(sql.scalars(query.where(messages.c.steered_into.is_not(None))))

    def waiting(self) -> list[str]:
        """Return the messages of the thread that wait, or would for ever: no run sees them."""
        query = select(messages.c.content).where(messages.c.thread_id == self.id)
        with self.stored.connections.reading() as sql:
            return list(sql.scalars(query.where(messages.c.position >= FIRST_WAITING)))

    def states(self) -> list[str]:
        """Return the states of the thread's runs in the order of their creation."""
        with self.stored.connections.reading() as sql:
            return list(
                sql.scalars(
                    select(runs.c.state).where(runs.c.thread_id == self.id).order_by(runs.c.id)
                )
            )
