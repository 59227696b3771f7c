"""Runs as they stand in a real Postgres, moved by the statements that move them in production."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, RowMapping, func, insert, select, update

from arkloop.shared import ids, times
from arkloop.shared.actors import PERMISSIONS_OF_ROLE, Actor
from arkloop.shared.catalog import model_routes, personas
from arkloop.shared.catalog.catalog import Catalog
from arkloop.shared.claim import Claim
from arkloop.shared.errors import LeaseLost
from arkloop.shared.events import event_log
from arkloop.shared.events.stored_events import StoredEvent, encode
from arkloop.shared.events.types import (
    Event,
    RouteCost,
    RunCancelled,
    RunCompleted,
    RunError,
    RunFailed,
    RunWaitingForInput,
)
from arkloop.shared.events.usage import Usage
from arkloop.shared.runs import claims, commands, creation, endings
from arkloop.shared.runs.creation import NewRun
from arkloop.shared.runs.endings import Ending, Outcome
from arkloop.shared.runs.states import RunState
from arkloop.shared.runs.transitions import Totals
from arkloop.shared.storage.connections import Connections, Transaction
from arkloop.shared.storage.tables.runs import runs, workers
from arkloop.shared.storage.tables.threads import messages
from arkloop.shared.storage.tables.threads import threads as threads_table
from arkloop.shared.threads import threads
from tests.clients import User

USED = Totals().plus(
    RouteCost(
        "scripted",
        "scripted-1",
        Usage(input_tokens=10, output_tokens=5, cache_read_tokens=2),
        Decimal("0.5"),
    )
)
#: The end of a run that had used that much when it was cancelled.
CANCELLED = RunCancelled(USED.usage, USED.cost_usd)


def ago(
    *, days: float = 0, hours: float = 0, minutes: float = 0, seconds: float = 0
) -> ColumnElement[Any]:
    """Return a time this long before now, by Postgres' clock."""
    length = timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)
    seconds = length.total_seconds()
    return func.now() - func.make_interval(0, 0, 0, 0, 0, 0, seconds)


@dataclass(frozen=True)
class StoredRuns:
    """Runs in the database; `sent` are those announced to workers, instead of by Celery."""

    connections: Connections
    actor: Actor
    sent: list[UUID] = field(default_factory=list)

    @classmethod
    def of(cls, connections: Connections, user: User) -> "StoredRuns":
        actor = Actor(
            org_id=user.org_id,
            user_id=user.id,
            role="owner",
            permissions=PERMISSIONS_OF_ROLE["owner"],
        )
        sent: list[UUID] = []
        own = replace(connections, enqueue=sent.extend)
        return cls(own, actor, sent)

    # ---- making and moving ----

    def catalog(self) -> Catalog:
        """Return what runs can be made with."""
        return Catalog(self.connections, model_routes.load(self.connections.settings))

    def thread(self) -> UUID:
        with self.connections.transaction() as tx:
            return UUID(str(threads.create(tx, self.actor).id))

    def wanted(self, thread_id: UUID | None = None) -> NewRun:
        """Return a plain run that is to be created in the thread, or in a new one."""
        return NewRun(
            actor=self.actor,
            thread_id=thread_id or self.thread(),
            persona=personas.builtin()["assistant@1"],
            route=model_routes.load(self.connections.settings)["scripted"],
            trace_id="0" * 32,
        )

    def create(self, thread_id: UUID | None = None, **columns: Any) -> UUID:
        new = self.wanted(thread_id)
        with self.connections.transaction() as tx:
            run_id = creation.create(tx, new).run_id
        if columns:
            self.set(run_id, **columns)
        return run_id

    def worker(self, **columns: Any) -> UUID:
        """Insert a worker's row; without its lock in Postgres, which only a living process
        holds.

        It is heard an hour ahead: on a busy machine, a test takes longer than a lease.
        """
        worker_id = ids.new_id()
        values = {"id": worker_id, "hostname": "test", "pid": 1, "lock_key": 1}
        values = {**values, "seen_at": func.now() + timedelta(hours=1), **columns}
        with self.connections.transaction() as tx:
            tx.sql.execute(insert(workers).values(**values))
        return worker_id

    def claim(self, run_id: UUID, worker_id: UUID | None = None) -> Claim | None:
        worker_id = worker_id or self.worker()
        return claims.claim(self.connections, [run_id], worker_id).get(run_id)

    def held(self, run_id: UUID, worker_id: UUID | None = None) -> Claim:
        """Let a worker have the run."""
        claim = self.claim(run_id, worker_id)
        assert claim is not None
        return claim

    def claimed(self, worker_id: UUID | None = None, *, seen_at: Any = None) -> Claim:
        """Create a run that a worker holds; `seen_at` is when it was heard last."""
        worker_id = worker_id or self.worker()
        claim = self.held(self.create(), worker_id)
        if seen_at is not None:
            self.set_worker(worker_id, seen_at=seen_at)
        return claim

    def set_worker(self, worker_id: UUID, **columns: Any) -> None:
        with self.connections.transaction() as tx:
            tx.sql.execute(update(workers).where(workers.c.id == worker_id).values(**columns))

    def write(self, claim: Claim, *happened: Event) -> list[StoredEvent]:
        """Store events as its worker has numbered them."""
        stored = numbered(self.last_seq(claim.run_id), *happened)
        with self.connections.transaction() as tx:
            event_log.store(tx, {claim.run_id: stored})
        return stored

    def park(
        self, claim: Claim, request_id: UUID, *, expires_in: float = 3600, **fields: Any
    ) -> bool:
        """Let the run wait, as its worker would; `fields` are those of what it asks."""
        pending = {"request_id": str(request_id), "kind": "question", "prompt": "?", **fields}
        shown = times.rfc3339(times.now() + timedelta(seconds=expires_in))
        asked = RunWaitingForInput(**{"expires_at": shown, **pending})
        with self.connections.transaction() as tx:
            return claims.park(
                tx,
                claim,
                numbered(claim.last_seq, asked),
                pending_input=pending,
                expires_at=func.now() + func.make_interval(0, 0, 0, 0, 0, 0, expires_in),
                totals=Totals(),
            )

    def finish(
        self,
        claim: Claim,
        state: RunState = RunState.COMPLETED,
        message: tuple[UUID, str] | None = None,
        error: RunError | None = None,
        *,
        with_followers: bool = False,
    ) -> bool:
        """End the run as its worker would, with `USED`, and start the next one if any waits."""
        last: Event = RunCompleted(None, USED.usage, USED.cost_usd, "stop")
        if error is not None:
            last = RunFailed(error, USED.usage, USED.cost_usd)
        elif state == RunState.CANCELLED:
            last = CANCELLED
        stored = numbered(self.last_seq(claim.run_id), last)
        how = {"message": message, "error": error}
        if with_followers:
            with self.connections.transaction() as tx:
                return end_run(tx, claim, state, stored, with_followers=True, **how)
        with self.connections.statement() as tx:
            return end_run(tx, claim, state, stored, **how)

    def set(self, run_id: UUID, **columns: Any) -> None:
        with self.connections.transaction() as tx:
            tx.sql.execute(update(runs).where(runs.c.id == run_id).values(**columns))

    def cancel(self, run_id: UUID) -> None:
        with self.connections.transaction() as tx:
            commands.cancel(tx, self.actor, run_id)

    def answer(self, run_id: UUID, content: str, request_id: UUID | None = None) -> None:
        with self.connections.transaction() as tx:
            commands.answer(tx, self.actor, run_id, content, request_id)

    # ---- looking ----

    def row(self, run_id: UUID) -> RowMapping:
        with self.connections.reading() as sql:
            return sql.execute(select(*runs.c).where(runs.c.id == run_id)).mappings().one()

    def state(self, run_id: UUID) -> str:
        return str(self.row(run_id)["state"])

    def events(self, run_id: UUID) -> list[StoredEvent]:
        with self.connections.reading() as sql:
            return event_log.read_table(sql, run_id, 0)

    def published(self, run_id: UUID, after_seq: int = 0) -> list[StoredEvent]:
        """Return what Redis has of its events."""
        stream = self.connections.keys.events(run_id)
        entries = self.connections.redis.xrange(stream, f"({after_seq}-0")
        return [
            StoredEvent(int(entry.partition("-")[0]), fields["type"], fields["payload"])
            for entry, fields in entries
        ]

    def types(self, run_id: UUID) -> list[str]:
        return [event.type for event in self.events(run_id)]

    def last_seq(self, run_id: UUID) -> int:
        with self.connections.reading() as sql:
            return event_log.last_seq(sql, run_id)

    def messages(self, run_id: UUID) -> Sequence[tuple[str, bool]]:
        """Return (content, partial) of what the run left in its thread."""
        with self.connections.reading() as sql:
            rows = sql.execute(
                select(messages.c.content, messages.c.partial).where(messages.c.run_id == run_id)
            )
            return [(row.content, row.partial) for row in rows]


def add_copies(connections: Connections, run_id: UUID, count: int) -> None:
    """Add copies of a run to its thread, behind it and without events or usage."""
    own = {"id": "gen_random_uuid()", "position": "r.position + n"}
    names = [column.name for column in runs.columns]
    values = ", ".join(own.get(name, f"r.{name}") for name in names)
    with connections.transaction() as tx:
        copies = f"SELECT {values} FROM runs r, generate_series(1, %s) n WHERE r.id = %s"
        inserted = f"INSERT INTO runs ({', '.join(names)}) {copies}"
        tx.sql.exec_driver_sql(inserted, (count, run_id))
        of_run = select(runs.c.thread_id).where(runs.c.id == run_id).scalar_subquery()
        taken = update(threads_table).where(threads_table.c.id == of_run)
        tx.sql.execute(taken.values(next_position=threads_table.c.next_position + count))


def end_run(
    tx: Transaction,
    claim: Claim,
    state: RunState,
    stored: Sequence[StoredEvent],
    *,
    with_followers: bool = False,
    **how: Any,
) -> bool:
    """End it with `USED`; False if it is being cancelled. Raises: LeaseLost."""
    [outcome] = endings.end(
        tx,
        [Ending(claim=claim, state=state, stored=stored, totals=USED, **how)],
        with_followers=with_followers,
    )
    if outcome is Outcome.LOST:
        raise LeaseLost()
    return outcome is Outcome.ENDED


def numbered(last_seq: int, *happened: Event) -> list[StoredEvent]:
    return [encode(last_seq + i, event, times.now()) for i, event in enumerate(happened, 1)]
