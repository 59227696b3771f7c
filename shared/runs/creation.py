"""Creating runs: queued in their threads, those that are created at the same time together."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, RowMapping, func, select, update

from arkloop.shared import logs
from arkloop.shared.actors import Actor
from arkloop.shared.billing import budget_limits
from arkloop.shared.catalog.catalog import Catalog
from arkloop.shared.errors import (
    Conflict,
    Forbidden,
    InvalidRequest,
    InvalidState,
    RunLimitExceeded,
    ThreadBusy,
)
from arkloop.shared.runs import busy_threads, enqueued_runs, overrides, run_limits, run_spans
from arkloop.shared.runs.new_runs import (
    Created,
    NewMessage,
    NewRun,
    NewThread,
    create_all,
    create_within_limits,
)
from arkloop.shared.runs.thread_queue import OnBusy
from arkloop.shared.storage.connections import Connections, Transaction
from arkloop.shared.storage.group_commit import GroupCommit
from arkloop.shared.storage.tables.runs import FIRST_WAITING, runs
from arkloop.shared.storage.tables.threads import messages
from arkloop.shared.storage.tables.threads import threads as threads_table
from arkloop.shared.threads import thread_contexts, threads
from arkloop.shared.threads.content import stored_parts
from arkloop.shared.threads.end_users import check_fields, own_thread

__all__ = [
    "Created",
    "LastRunDeleted",
    "NewMessage",
    "NewRun",
    "NewThread",
    "RunCreator",
    "create",
    "create_all",
    "create_within_limits",
    "retry",
]

#: What an end user may override of a persona: the tools that their own page executes.
END_USER_OVERRIDES = frozenset({"tools"})

#: Messages of a thread that are neither superseded nor wait for their run.
_IS_VISIBLE = messages.c.superseded_at.is_(None) & (messages.c.position < FIRST_WAITING)
#: How often a request tries to wait for a thread in which other processes have the locks: each
#: time for a few milliseconds. After that it waits for them, with a connection of its own.
TRIES = 5


class LastRunDeleted(Conflict):
    code = "runs.last_run_deleted"
    message = (
        "The thread's last run is no longer stored, so its persona and route are unknown. Create a"
        " run with a message instead."
    )


class RunCreator:
    """Creates runs, each in the cheapest way that its limits allow; one per process."""

    def __init__(self, connections: Connections, catalog: Catalog) -> None:
        self._connections = connections
        self._catalog = catalog
        self._create_with_others = GroupCommit(self._create_all, size=lambda new: new.size)
        self._enqueue_with_others = GroupCommit(self._enqueue_all, size=lambda new: new.size)

    def __call__(self, new: NewRun) -> Created:
        """Queue a run; the workers are notified after the commit.

        Raises: as `create`.
        """
        began = time.time_ns()
        made = self._created(_of_end_user(new))
        _announce(made, new.actor, began)
        return made

    def _created(self, new: NewRun) -> Created:
        connections = self._connections.of(new.actor.org_id)
        if new.thread is not None and new.thread.external_id is not None:
            with connections.reading() as sql:
                new = _in_existing_thread(sql, new, new.thread.external_id)
        if not self._is_complex(new) and (made := self._with_others(new)) is not None:
            return made
        with connections.transaction() as tx:
            # Raised behind it: a rollback would undo that the runs were counted.
            refused = run_limits.refusal_of(tx, new.actor)
            if refused is None:
                return _create(tx, new)
        raise refused

    def _with_others(self, new: NewRun) -> Created | None:
        """Create the run together with those of other requests, if that is possible."""
        may_wait = new.thread is None and new.on_busy in (None, OnBusy.ENQUEUE)
        if not may_wait or new.on_busy is None:
            made = self._create_with_others(new)
            if isinstance(made, RunLimitExceeded):
                raise made
            if made is not None:
                return Created(made, new.thread_id, new.trace_id)
        # Its thread is busy, or its actor must not create it, or somebody has locked something.
        if not may_wait:
            return None
        for _ in range(TRIES if new.on_busy is OnBusy.ENQUEUE else 1):
            attempt = self._enqueue_with_others(new)
            if isinstance(attempt, RunLimitExceeded):
                raise attempt
            if attempt.made is not None or attempt.had_locks:
                return attempt.made
        return None

    def _is_complex(self, new: NewRun) -> bool:
        """Return whether more has to be read, in one transaction, than a single statement does."""
        return (
            new.actor.end_user_id is not None
            or new.not_before is not None
            or new.persona.max_cost_usd_per_month is not None
            or self._catalog.is_limited(new.actor.org_id)
            or (new.thread is not None and new.thread.external_id is not None)
            or (new.message is not None and new.message.content.parts is not None)
        )

    def _create_all(self, wanted: Sequence[NewRun]) -> Sequence[UUID | RunLimitExceeded | None]:
        with self._connections_of(wanted).statement() as tx:
            return create_within_limits(tx, wanted)

    def _enqueue_all(
        self, wanted: Sequence[NewRun]
    ) -> Sequence[enqueued_runs.Attempt | RunLimitExceeded]:
        with self._connections_of(wanted).statement() as tx:
            return enqueued_runs.enqueue_all(tx, wanted)

    def _connections_of(self, wanted: Sequence[NewRun]) -> Connections:
        return self._connections.of(*{new.actor.org_id for new in wanted})


def create(
    tx: Transaction,
    new: NewRun,
    check: Callable[[Created], None] = lambda _: None,
    *,
    first: Callable[[], None] = lambda: None,
) -> Created:
    """Queue a run within its budgets, or let it wait; workers are notified after the commit.

    `first` is done before it, under the lock of the limits, which comes before those of the active
    run and its thread. `check` may still refuse it, by an error. The caller rolls back where this
    raises, so that neither thread nor message is created.

    Raises:
        ThreadNotFound, Forbidden
        ThreadBusy: the thread has an active run already.
        QueueFull, NotActive: see `thread_queue`.
        BudgetExhausted: nothing is left for it.
        InvalidRequest: see `stored_parts`.
        RunLimitExceeded: see `run_limits`.
    """
    began = time.time_ns()
    run_limits.check(tx, new.actor)
    first()
    made = _create(tx, _of_end_user(new))
    check(made)
    _announce(made, new.actor, began)
    return made


def _announce(made: Created, actor: Actor, began: int) -> None:
    """Name the run in the lines and spans of what creates it, which began then (ns since 1970)."""
    logs.bind(run_id=str(made.run_id))
    if made.offered is not None:
        return  # a message for a run that exists
    run_spans.created(made.run_id, made.trace_id, actor.org_id, began=began)


def _of_end_user(new: NewRun) -> NewRun:
    """Return the run as its actor may create it; an end user creates their own alone.

    Raises:
        Forbidden: another end user's, or with what the org decides: persona, overrides, privacy.
    """
    actor = new.actor
    if actor.end_user_id is None:
        return new
    if new.end_user_id not in (None, actor.end_user_id):
        raise Forbidden("This client token is for another end user.")
    if new.persona.id != actor.persona_id:
        raise Forbidden(f"This client token is for the persona {actor.persona_id}.")
    if not (new.options or {}).keys() <= END_USER_OVERRIDES:
        raise Forbidden("Client tokens cannot override the persona.")
    thread = new.thread
    if thread is not None:
        check_fields(actor, asdict(thread))
        # One with an external id may exist already.
        if thread.external_id is None:
            thread = NewThread(**own_thread(actor, asdict(thread)))
    return replace(new, end_user_id=actor.end_user_id, thread=thread)


def _create(tx: Transaction, new: NewRun) -> Created:
    if new.message is not None:
        new = replace(new, message=_with_parts(tx.sql, new.actor, new.message))
    if new.thread is not None and new.thread.external_id is not None:
        thread, _ = threads.find_or_create(tx, new.actor, **asdict(new.thread))
        new = replace(new, thread_id=thread.id, thread=None)
    if new.not_before is not None and new.thread is not None:
        thread = threads.create(tx, new.actor, **asdict(new.thread))
        new = replace(new, thread_id=thread.id, thread=None)
    on_busy = new.on_busy or _default_of(tx.sql, new)
    if new.not_before is not None or (new.thread is None and on_busy is not OnBusy.REJECT):
        return busy_threads.create(tx, new, on_busy)
    while True:
        # Waits where another session has locked the thread, which `create_all` does not.
        if new.thread is None:
            of_thread = threads.lock(tx, new.actor, new.thread_id)
        else:
            of_thread = new.thread.end_user_id
        end_user_id = new.end_user_id or of_thread
        budget_limits.check_open(
            *(tx.sql, new.actor, new.persona, new.route, end_user_id), agent=new.agent
        )
        [run_id] = create_all(tx, [new])
        if run_id is not None:
            return Created(run_id, new.thread_id, new.trace_id)
        # Without an active run, it has ended in this very moment.
        if active := threads.active_run_id(tx.sql, new.thread_id):
            raise ThreadBusy(active_run_id=str(active))


def _default_of(sql: Connection, new: NewRun) -> OnBusy:
    """Return the `on_busy` of the run's thread."""
    if new.thread is not None:
        return OnBusy.REJECT  # nothing is active there
    stored = select(threads_table.c.on_busy).where(threads_table.c.id == new.thread_id)
    return OnBusy(sql.scalar(stored) or OnBusy.REJECT)


def _with_parts(sql: Connection, actor: Actor, message: NewMessage) -> NewMessage:
    try:
        return replace(message, parts=stored_parts(sql, actor, message.content))
    except InvalidRequest as error:
        raise InvalidRequest(**{f"message.{n}": why for n, why in error.details.items()}) from None


def _in_existing_thread(sql: Connection, new: NewRun, external_id: str) -> NewRun:
    """Return the run in the thread of this id, if it exists."""
    thread = threads.find(sql, new.actor, external_id)
    if thread is None:
        return new
    threads.check_end_user(thread, new.thread.end_user_id if new.thread else None)
    return replace(new, thread_id=thread.id, thread=None)


def retry(
    tx: Transaction,
    actor: Actor,
    thread_id: UUID,
    catalog: Catalog,
    *,
    trace_id: str,
    otherwise: Callable[[], NewRun] | None = None,
) -> Created:
    """Do the thread's last round again: its assistant turn goes, a new run comes.

    `otherwise` returns the run to create where none of the thread's runs is stored. What the org
    has given the last run stays where an end user retries it, but is not for a message behind it:
    that gets a run from an end user as if there were none before.

    Raises:
        ThreadNotFound, Forbidden, ThreadBusy, RunLimitExceeded
        InvalidState: the thread has no message.
        LastRunDeleted: nothing says which persona the new run has.
        PersonaNotFound, RouteNotFound: those of the last run are gone.
        InvalidRequest: the thread has no run, and the persona requires variables.
    """
    run_limits.check(tx, actor)
    threads.lock(tx, actor, thread_id)
    if active := threads.active_run_id(tx.sql, thread_id):
        raise ThreadBusy(active_run_id=str(active))
    last_message, last_run = _last_round(tx.sql, thread_id)
    is_new = last_run is not None and last_message["position"] > last_run["position"]
    if is_new and actor.end_user_id is not None:
        last_run = None
    has_persona = last_run is not None or otherwise is not None or actor.persona_id is not None
    if not has_persona and _had_run(tx.sql, thread_id):
        raise LastRunDeleted()
    _take_back(tx, thread_id, last_message)
    if last_run is None and otherwise is not None:
        new = replace(_of_end_user(otherwise()), on_busy=OnBusy.REJECT)
    else:
        new = _repeated(tx.sql, actor, thread_id, catalog, last_run, trace_id)
    began = time.time_ns()
    made = _create(tx, new)
    _announce(made, actor, began)
    return made


def _last_round(sql: Connection, thread_id: UUID) -> tuple[RowMapping, RowMapping | None]:
    """Find the thread's last message and last run. Raises: InvalidState: it has no message."""
    last_message = (
        select(messages.c.id, messages.c.role, messages.c.position)
        .where(messages.c.thread_id == thread_id, _IS_VISIBLE)
        .order_by(messages.c.position.desc())
        .limit(1)
    )
    found = sql.execute(last_message).mappings().one_or_none()
    if found is None:
        raise InvalidState()
    names = ("persona_id", "route_id", "options", "end_user_id", "metadata", "position")
    last_run = (
        select(*(runs.c[name] for name in names))
        .where(runs.c.thread_id == thread_id, runs.c.position < FIRST_WAITING)
        .order_by(runs.c.position.desc())
        .limit(1)
    )
    return found, sql.execute(last_run).mappings().one_or_none()


def _take_back(tx: Transaction, thread_id: UUID, last_message: RowMapping) -> None:
    """Mark what the last round has brought as superseded: the assistant's message, and runs."""
    if last_message["role"] == "assistant":
        tx.sql.execute(
            update(messages)
            .where(messages.c.id == last_message["id"])
            .values(superseded_at=func.now())
        )
    # Runs of this round without an assistant message (failed, cancelled) go as well:
    # their tool turns must not be part of what the new run sees.
    last_position = (
        select(func.coalesce(func.max(messages.c.position), 0))
        .where(messages.c.thread_id == thread_id, _IS_VISIBLE)
        .scalar_subquery()
    )
    tx.sql.execute(
        update(runs)
        .where(
            runs.c.thread_id == thread_id,
            runs.c.position > last_position,
            runs.c.position < FIRST_WAITING,
            runs.c.superseded_at.is_(None),
        )
        .values(superseded_at=func.now())
    )
    # What those were steered with is said by the user alone again.
    gone = select(runs.c.id).where(runs.c.thread_id == thread_id, runs.c.superseded_at.is_not(None))
    tx.sql.execute(
        update(messages).where(messages.c.steered_into.in_(gone)).values(steered_into=None)
    )
    thread_contexts.forget(tx, thread_id, last_position)


def _repeated(
    sql: Connection,
    actor: Actor,
    thread_id: UUID,
    catalog: Catalog,
    last_run: RowMapping | None,
    trace_id: str,
) -> NewRun:
    """Return a run like the last one; without one, a run of the actor's persona."""
    last: Mapping[Any, Any] = last_run or {"persona_id": actor.persona_id}
    persona = catalog.persona(actor.org_id, last["persona_id"], sql=sql)
    route_id, advises = last.get("route_id"), actor.end_user_id is None
    route = catalog.choose_route(actor.org_id, route_id, persona, sql=sql, advises=advises)
    return NewRun(
        actor=actor,
        thread_id=thread_id,
        persona=persona,
        route=route,
        trace_id=trace_id,
        options=overrides.check(persona, route, {}) if last_run is None else last["options"],
        end_user_id=actor.end_user_id or last.get("end_user_id"),
        metadata=last.get("metadata") or {},
        on_busy=OnBusy.REJECT,
    )


def _had_run(sql: Connection, thread_id: UUID) -> bool:
    """Return whether the thread had a run, which need not be stored any more."""
    # Every message and every run has a place of its own: people's messages do not fill them all.
    said = select(func.count()).where(
        messages.c.thread_id == thread_id,
        messages.c.role == "user",
        messages.c.position < FIRST_WAITING,
    )
    taken = select(threads_table.c.next_position - 1 > said.scalar_subquery())
    return bool(sql.scalar(taken.where(threads_table.c.id == thread_id)))
