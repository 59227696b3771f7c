"""The play of one interleaving: clients, a worker and the sweep in a thread, in random order."""

import logging
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from psycopg.rows import namedtuple_row
from sqlalchemy import Connection

from arkloop.shared.catalog import model_routes, personas
from arkloop.shared.errors import ArkloopError, LeaseLost, Unavailable
from arkloop.shared.runs import (
    claims,
    commands,
    recovery,
    sweep,
    thread_queue,
    waiting_runs,
)
from arkloop.shared.runs.creation import NewMessage, NewRun, RunCreator
from arkloop.shared.runs.endings import RunEnder
from arkloop.shared.runs.states import RunState
from arkloop.shared.runs.swept_batches import Left
from arkloop.shared.runs.thread_queue import OnBusy
from arkloop.shared.threads.content import Content
from chaos.interleaving import execution
from chaos.interleaving.actor import Actor
from chaos.interleaving.schedule import Schedule
from chaos.interleaving.trace import Doing, Trace
from chaos.interleaving.verdict import verdict
from chaos.interleaving.world import World
from chaos.model.bugs import Bug

#: How often a client asks for each.
WISHES = {
    OnBusy.ENQUEUE: 4,
    OnBusy.MERGE: 3,
    OnBusy.INTERRUPT: 3,
    OnBusy.ROLLBACK: 3,
    OnBusy.STEER: 4,
    OnBusy.REJECT: 1,
}
#: The bounds of the queue that are tried: with the service's own none would ever be reached.
BOUNDS = (1, 2, 50)
AN_HOUR = timedelta(hours=1)
_LIVING = """
SELECT id, state, owner, fence, cancel_requested_at IS NOT NULL AS is_cancelled
FROM runs WHERE thread_id = %s AND ended_at IS NULL
"""


class Crew:
    """The actors, each a process with what the service has once per process."""

    def __init__(self, world: World, sql: Connection) -> None:
        names = ("client 1", "client 2", "worker", "sweep")
        self.world = world
        self.sql = sql
        self.actors = [Actor(name, world.connections, sql) for name in names]
        self.creators = [
            RunCreator(actor.connections, world.catalog(actor.connections))
            for actor in self.actors[:2]
        ]
        self.ender = RunEnder(self.actors[2].connections)
        #: Without SQLAlchemy: the rows are read after each commit.
        driver: Any = sql.connection.driver_connection
        self.observer = driver.cursor(row_factory=namedtuple_row)
        self.persona = personas.builtin()["assistant@1"]
        self.route = model_routes.load(world.connections.settings)["scripted"]

    def close(self) -> None:
        for actor in self.actors:
            actor.connections.close_pool()


@dataclass(slots=True)
class Played:
    """The result of one interleaving."""

    seed: int
    faults: list[str]
    order: list[str]
    steps: int
    compared: int
    blocked: int
    crashed: int
    accepted: int
    rules: set[str]


@dataclass(slots=True)
class Play:
    """The tasks of one interleaving."""

    crew: Crew
    seed: int
    thread_id: UUID = field(init=False)
    dice: random.Random = field(init=False)
    trace: Trace = field(init=False)
    bound: int = field(init=False)
    said: int = 0
    crashed: int = 0
    #: By the text of a message: the run that its client was given, and that which may be instead.
    accepted: dict[str, tuple[UUID, UUID]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        world = self.crew.world
        self.dice = random.Random(self.seed)
        self.thread_id = world.thread()
        users = (world.users[0].user_id, world.users[1].user_id)
        bound = self.bound = self.dice.choice(BOUNDS)
        self.trace = Trace(self.crew.observer, self.thread_id, users, bound)

    def run(self) -> Played:
        """Play the interleaving to its end, and judge what is left."""
        whole, thread_queue.MAX_WAITING = thread_queue.MAX_WAITING, self.bound
        errors = _Errors(self.trace.faults)
        service = logging.getLogger("arkloop")
        service.addHandler(errors)
        try:
            return self._run()
        finally:
            service.removeHandler(errors)
            thread_queue.MAX_WAITING = whole

    def _run(self) -> Played:
        schedule = Schedule(
            self.dice,
            crashes=self.dice.choice((0, 1)),
            on_crash=self._on_crash,
            after=lambda doing, is_doubtful: self.trace.look(doing, may_be_two=is_doubtful),
        )
        tasks = (self._client(0), self._client(1), self._worker(), self._sweep())
        for actor, task in zip(self.crew.actors, tasks, strict=True):
            actor.does = Doing("begin")
            actor.begin(task)
        schedule.play(self.crew.actors)
        faults = self.trace.faults
        self.trace.look(Doing("rest"), may_be_two=True)
        faults += [
            f"{actor.name} {actor.does}: {actor.error!r}"
            for actor in self.crew.actors
            if actor.error is not None
        ]
        self._settle(schedule)
        faults += verdict(self.crew.observer, self.thread_id, self.accepted)
        return Played(
            self.seed,
            faults,
            schedule.steps,
            len(schedule.steps),
            self.trace.steps,
            schedule.blocked,
            self.crashed,
            len(self.accepted),
            self.trace.rules,
        )

    def _on_crash(self, _actor: Actor) -> None:
        self.crashed += 1

    # ---- clients ---------------------------------------------------------------------

    def _client(self, client: int) -> Callable[[], None]:
        wishes = [self.dice.random() for _ in range(self.dice.choice((1, 1, 2)))]

        def task() -> None:
            for wish in wishes:
                if wish < 0.72:
                    self._create(client)
                elif wish < 0.86:
                    self._cancel(client)
                else:
                    self._answer(client)

        return task

    def _create(self, client: int) -> None:
        crew = self.crew
        on_busy = self.dice.choices([*WISHES], [*WISHES.values()])[0]
        is_later = self.dice.random() < 0.15
        self.said += 1
        text = f"message {self.said}"
        crew.actors[client].does = Doing("create", client, on_busy, is_later)
        new = NewRun(
            actor=crew.world.users[client],
            thread_id=self.thread_id,
            persona=crew.persona,
            route=crew.route,
            trace_id="0" * 32,
            message=NewMessage(content=Content.of(text)),
            on_busy=on_busy,
            not_before=datetime.now(UTC) + AN_HOUR if is_later else None,
        )
        with refused():
            made = crew.creators[client](new)
            fallback = made.offered[1] if made.offered else made.run_id
            self.accepted[text] = (made.run_id, fallback)

    def _cancel(self, client: int) -> None:
        actor = self.crew.actors[client]
        actor.does = Doing("look", client)
        living = self._living(actor)
        if not living:
            return
        run_id = self.dice.choice(living).id
        actor.does = Doing("cancel", client, run_id=run_id)
        with refused(), actor.connections.transaction() as tx:
            commands.cancel(tx, self.crew.world.users[client], run_id)

    def _answer(self, client: int) -> None:
        actor = self.crew.actors[client]
        actor.does = Doing("look", client)
        for run in self._living(actor):
            if run.state == RunState.WAITING:
                actor.does = Doing("answer", client, run_id=run.id)
                with refused(), actor.connections.transaction() as tx:
                    commands.answer(tx, self.crew.world.users[client], run.id, "yes", None)

    def _living(self, actor: Actor) -> list[Any]:
        with actor.connections.reading() as sql:
            return list(sql.exec_driver_sql(_LIVING, (self.thread_id,)))

    # ---- the worker ------------------------------------------------------------------

    def _worker(self) -> Callable[[], None]:
        looks = self.dice.choice((1, 2, 3))

        def task() -> None:
            for _ in range(looks):
                parks, steps = self.dice.random() < 0.15, self.dice.choice((0, 1, 1, 2))
                self._work(parks=parks, steps=steps)

        return task

    def _work(self, *, parks: bool, steps: int = 0) -> None:
        """Claim the queued run, if there is one, and execute it."""
        worker = self.crew.actors[2]
        worker.does = Doing("look")
        queued = [run.id for run in self._living(worker) if run.state == RunState.QUEUED]
        if not queued:
            return
        worker.does = Doing("claim", run_id=queued[0])
        claimed = claims.claim(worker.connections, queued, self.crew.world.worker_id)
        if (claim := claimed.get(queued[0])) is None:
            return
        with refused():
            for _ in range(steps):
                claim = execution.step(worker, claim)
            if not parks or not execution.park(worker, claim):
                execution.end(worker, self.crew.ender, claim)

    # ---- the sweep -------------------------------------------------------------------

    def _sweep(self) -> Callable[[], None]:
        looks = self.dice.choice((0, 1, 1))
        doubts = self.dice.random() < 0.2

        def task() -> None:
            for _ in range(looks):
                self._settle_once(doubts=doubts)

        return task

    def _settle_once(self, *, doubts: bool) -> None:
        """Do what the sweep does for such a thread; with `doubts` a living worker is lost, too."""
        actor = self.crew.actors[3]
        connections = actor.connections
        worker = self.crew.actors[2]
        actor.does = Doing("look")
        living = self._living(actor)
        for run in living:
            if run.state == RunState.EXECUTING and (doubts or worker.is_done):
                actor.does = Doing("recover", run_id=run.id)
                recovery.recover_orphan(connections, run.id, run.owner, run.fence, False)
            if run.state == RunState.SCHEDULED:
                actor.does = Doing("clock")
                with connections.statement() as tx:
                    tx.sql.exec_driver_sql(_PASS, (run.id,))
                actor.does = Doing("due", run_id=run.id)
                waiting_runs.start_due(connections)
        if any(run.is_cancelled for run in living):
            actor.does = Doing("sweep: cancel")
            with connections.transaction() as tx:
                sweep._cancel_unheld(tx, Left())

    def _settle(self, schedule: Schedule) -> None:
        """End all that is left, one thing after the other; nothing crashes any more."""
        schedule.crashes = 0

        actors = self.crew.actors
        for _ in range(MANY):
            living = self.crew.observer.execute(_LIVING, (self.thread_id,)).fetchall()
            states = {run.state for run in living}
            if not states:
                return
            actor, task = actors[3], lambda: self._settle_once(doubts=True)
            if RunState.QUEUED in states:
                actor, task = actors[2], lambda: self._work(parks=False)
            elif RunState.WAITING in states:
                actor, task = actors[0], lambda: self._answer(0)
            actor.does = Doing("look")
            actor.begin(task)
            schedule.play([actor])
            if actor.error is not None:
                self.trace.faults.append(f"{actor.name} {actor.does}: {actor.error!r}")
                return
        self.trace.faults.append("progress: something is left")


class _Errors(logging.Handler):
    """The errors that the service logs and survives: faults, too."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__(logging.ERROR)
        self._faults = faults

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        self._faults.append(f"{record.getMessage()}: {error!r}")


#: Rounds in which everything that was accepted must have ended.
MANY = 40
_PASS = "UPDATE runs SET not_before = now() - interval '1 second' WHERE id = %s"


@contextmanager
def refused() -> Iterator[None]:
    """Let the service refuse a request, as it may; Postgres is always there."""
    try:
        yield
    except Unavailable:
        raise  # a deadlock, or a lock that nobody frees
    except (ArkloopError, LeaseLost):
        pass


@contextmanager
def planted(bug: Bug) -> Iterator[None]:
    """Let the service of this process follow a table with a bug."""
    whole = thread_queue.RULES
    thread_queue.RULES = tuple(bug.table().rules)
    try:
        yield
    finally:
        thread_queue.RULES = whole
