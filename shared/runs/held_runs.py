"""A run that an agent worker holds, while a transaction of its requests has locked the row."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import RowMapping, delete, func, select, update

from arkloop.shared.claim import Claim
from arkloop.shared.errors import OutdatedFence, RunNotFound
from arkloop.shared.events import event_log
from arkloop.shared.events.stored_events import StoredEvent, encode
from arkloop.shared.events.types import Event
from arkloop.shared.runs.states import RunState
from arkloop.shared.runs.transitions import recorded_totals
from arkloop.shared.storage.connections import Transaction
from arkloop.shared.storage.tables.events import run_events
from arkloop.shared.storage.tables.runs import agent_runs, runs


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """The run after a write."""

    state: str
    cancel_requested: bool
    next_seq: int


class HeldRun:
    """A run whose row is locked, and whose fence is that of the request."""

    def __init__(self, tx: Transaction, row: RowMapping, last_seq: int, now: datetime) -> None:
        self.tx = tx
        self.row = row
        self.id: UUID = row["id"]
        self.last_seq = last_seq
        self.now = now
        self.written_bytes = 0

    def store(self, *happened: Event) -> None:
        """Write events with the next numbers."""
        if happened:
            event_log.store(self.tx, {self.id: self.number(happened)})

    def number(self, happened: Sequence[Event]) -> list[StoredEvent]:
        """Give events the next numbers, for the caller to store."""
        stored = [encode(self.last_seq + i, event, self.now) for i, event in enumerate(happened, 1)]
        self.last_seq += len(stored)
        self.written_bytes += sum(event.size for event in stored)
        return stored

    def claim(self) -> Claim:
        """Return the claim under which the agent worker holds the run."""
        row = self.row
        same = ("org_id", "thread_id", "persona_id", "route_id", "model", "trace_id", "options")
        also = ("end_user_id", "position", "fence", "attempt", "queued_at", "api_key_id")
        return Claim(
            run_id=self.id,
            parent_run_id=row["parent_run_id"],
            last_seq=self.last_seq,
            claimed_at=self.now,
            used_seconds=0,
            is_suspect=False,
            **{name: row[name] for name in (*same, *also)},
        )

    def let_go(self, values: dict[str, Any]) -> None:
        """End the claim with these values of the row."""
        totals = recorded_totals(self.tx.sql, self.id)
        changed = update(runs).where(runs.c.id == self.id)
        self.tx.sql.execute(changed.values(**values, **totals.columns()))
        # Its deadline is too early after a wait. The next worker gets a new one with the run, and
        # until then, claimed or not, the run has none.
        self.tx.sql.execute(delete(agent_runs).where(agent_runs.c.run_id == self.id))

    def written(self, state: str) -> Written:
        """Return the run in this state."""
        is_active = not RunState(state).is_terminal
        cancel = is_active and self.row["cancel_requested_at"] is not None
        return Written(state=str(state), cancel_requested=cancel, next_seq=self.last_seq + 1)


def lock(tx: Transaction, org_id: UUID, agent: str, run_id: UUID, fence: int) -> HeldRun:
    """Lock a run of the agent.

    Raises:
        RunNotFound: the agent has no such run.
        OutdatedFence: the run was claimed again since.
    """
    row = (
        tx.sql.execute(
            select(*runs.c)
            .where(runs.c.id == run_id, runs.c.org_id == org_id, runs.c.agent == agent)
            .with_for_update()
        )
        .mappings()
        .one_or_none()
    )
    if row is None:
        raise RunNotFound()
    if row["fence"] != fence:
        raise OutdatedFence(run_state=row["state"])
    return of_row(tx, row)


def of_row(tx: Transaction, row: RowMapping) -> HeldRun:
    """Return the run of a row that is locked already: what others wrote before that counts."""
    last_seq, now = tx.sql.execute(
        select(func.coalesce(func.max(run_events.c.seq), 0), func.clock_timestamp()).where(
            run_events.c.run_id == row["id"]
        )
    ).one()
    return HeldRun(tx, row, last_seq, now)
