"""Creating runs: queued in their threads, those that are created at the same time together."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import Connection, func, select, update

from arkloop.shared import ids, plugins
from arkloop.shared.actors import Actor
from arkloop.shared.billing import budget_limits
from arkloop.shared.catalog.catalog import Catalog
from arkloop.shared.catalog.model_routes import Route
from arkloop.shared.catalog.personas import Persona
from arkloop.shared.errors import Forbidden, InvalidRequest, InvalidState, ThreadBusy
from arkloop.shared.runs import agent_queue
from arkloop.shared.runs.overrides import Options
from arkloop.shared.storage.arrays import TextArray, plain_array
from arkloop.shared.storage.connections import Connections, Transaction
from arkloop.shared.storage.group_commit import GroupCommit
from arkloop.shared.storage.sql_files import statement
from arkloop.shared.storage.tables.runs import runs
from arkloop.shared.storage.tables.threads import messages
from arkloop.shared.threads import thread_contexts, threads
from arkloop.shared.threads.content import Content, Part, stored_parts
from arkloop.shared.threads.end_users import check_fields, own_thread

_CREATE = statement(__package__, "create")
#: What an end user may override of a persona: the tools that their own page executes.
END_USER_OVERRIDES = frozenset({"tools"})


@dataclass(frozen=True, slots=True, kw_only=True)
class NewThread:
    """A thread to be created together with a run in it, unless one has its `external_id`."""

    title: str | None = None
    is_private: bool = False
    end_user_id: str | None = None
    external_id: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class NewMessage:
    """A message of the user, to be created together with a run that answers it.

    `parts` are those of the content as they are stored: see `stored_parts`.
    """

    content: Content
    parts: Sequence[Part] | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class NewRun:
    """A run to be created in a thread; with `thread` that one is created, too, as `thread_id`."""

    actor: Actor
    thread_id: UUID
    thread: NewThread | None = None
    message: NewMessage | None = None
    persona: Persona
    route: Route
    trace_id: str
    options: Options | None = None  # what it overrides of the persona
    end_user_id: str | None = None  # None: that of the thread
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def agent(self) -> str | None:
        """The agent whose workers execute it; None: the service's own workers."""
        name = self.persona.agent
        return None if name in plugins.names("agents") else name

    @property
    def size(self) -> int:
        """Characters, about."""
        said = len(self.message.content.text) if self.message else 0
        return said + sum(len(str(value)) for value in (self.options or {}).values())


class Created(NamedTuple):
    """A run that was created, and its thread."""

    run_id: UUID
    thread_id: UUID


class RunCreator:
    """Creates runs, each in the cheapest way that its limits allow; one per process."""

    def __init__(self, connections: Connections, catalog: Catalog) -> None:
        self._connections = connections
        self._catalog = catalog
        self._create_with_others = GroupCommit(self._create_all, size=lambda new: new.size)

    def __call__(self, new: NewRun) -> Created:
        """Queue a run; the workers are notified after the commit.

        Raises: as `create`.
        """
        new = _of_end_user(new)
        if new.thread is not None and new.thread.external_id is not None:
            with self._connections.reading() as sql:
                new = _in_existing_thread(sql, new, new.thread.external_id)
        if not self._is_complex(new):
            run_id = self._create_with_others(new)
            if run_id is not None:
                return Created(run_id, new.thread_id)
        with self._connections.transaction() as tx:
            return _create(tx, new)

    def _is_complex(self, new: NewRun) -> bool:
        """Return whether more has to be read, in one transaction, than a single statement does."""
        return (
            new.actor.end_user_id is not None
            or new.persona.max_cost_usd_per_month is not None
            or self._catalog.is_limited(new.actor.org_id)
            or (new.thread is not None and new.thread.external_id is not None)
            or (new.message is not None and new.message.content.parts is not None)
        )

    def _create_all(self, wanted: Sequence[NewRun]) -> list[UUID | None]:
        with self._connections.statement() as tx:
            return create_all(tx, wanted)


def create(tx: Transaction, new: NewRun) -> Created:
    """Queue a run within its budgets; the workers are notified after the commit.

    The caller rolls back where it raises, so that neither thread nor message is created.

    Raises:
        ThreadNotFound, Forbidden
        ThreadBusy: the thread has an active run already.
        BudgetExhausted: nothing is left for it.
        InvalidRequest: see `stored_parts`.
    """
    return _create(tx, _of_end_user(new))


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
    while True:
        # Waits where another session has locked the thread, which `create_all` does not.
        if new.thread is None:
            of_thread = threads.lock(tx, new.actor, new.thread_id)
        else:
            of_thread = new.thread.end_user_id
        end_user_id = new.end_user_id or of_thread
        budget_limits.check_open(tx.sql, new.actor, new.persona, new.route, end_user_id)
        [run_id] = create_all(tx, [new])
        if run_id is not None:
            return Created(run_id, new.thread_id)
        # Without an active run, it has ended in this very moment.
        if active := threads.active_run_id(tx.sql, new.thread_id):
            raise ThreadBusy(active_run_id=str(active))


def create_all(tx: Transaction, wanted: Sequence[NewRun]) -> list[UUID | None]:
    """Queue the runs in one statement; the workers are notified after the commit.

    Does not check budgets. Returns None for a run that cannot be created in this way: `create`
    says why, or does it.
    """
    new_ids = [ids.new_id() for _ in wanted]
    # What stands for none is not inserted.
    opened = [new.thread or NewThread() for new in wanted]
    said = [new.message or NewMessage(content=Content("")) for new in wanted]
    created = set(
        tx.sql.exec_driver_sql(
            _CREATE,
            {
                "ids": plain_array(new_ids),
                "org_ids": plain_array(new.actor.org_id for new in wanted),
                "thread_ids": plain_array(new.thread_id for new in wanted),
                "user_ids": plain_array(new.actor.user_id for new in wanted),
                "api_key_ids": plain_array(new.actor.api_key_id for new in wanted),
                "write_all": plain_array(new.actor.writes_all for new in wanted),
                "trace_ids": TextArray(new.trace_id for new in wanted),
                "persona_ids": TextArray(new.persona.id for new in wanted),
                "route_ids": TextArray(new.route.id for new in wanted),
                "models": TextArray(new.route.model for new in wanted),
                "agents": TextArray(new.agent for new in wanted),
                "options": _json_array(new.options or None for new in wanted),
                "end_user_ids": TextArray(new.end_user_id for new in wanted),
                "metadata": _json_array(new.metadata for new in wanted),
                "message_ids": plain_array(new.message and ids.new_id() for new in wanted),
                "contents": TextArray(message.content.text for message in said),
                "parts": _json_array(message.parts for message in said),
                "message_metadata": _json_array(message.metadata for message in said),
                "open_threads": plain_array(new.thread is not None for new in wanted),
                "titles": TextArray(thread.title for thread in opened),
                "are_private": plain_array(thread.is_private for thread in opened),
                "thread_end_user_ids": TextArray(thread.end_user_id for thread in opened),
                "thread_metadata": _json_array(thread.metadata for thread in opened),
            },
        ).scalars()
    )
    tx.after_commit += [
        agent_queue.announce(run_id, new.actor.org_id, new.agent)
        for run_id, new in zip(new_ids, wanted, strict=True)
        if run_id in created
    ]
    return [run_id if run_id in created else None for run_id in new_ids]


def _with_parts(sql: Connection, actor: Actor, message: NewMessage) -> NewMessage:
    try:
        return replace(message, parts=stored_parts(sql, actor, message.content))
    except InvalidRequest as error:
        raise InvalidRequest(**{f"message.{n}": why for n, why in error.details.items()}) from None


def _in_existing_thread(sql: Connection, new: NewRun, external_id: str) -> NewRun:
    """Return the run in the thread of this id, if it exists."""
    thread = threads.find(sql, new.actor, external_id)
    return new if thread is None else replace(new, thread_id=thread.id, thread=None)


def _json_array(values: Iterable[Any]) -> TextArray:
    return TextArray(None if value is None else json.dumps(value) for value in values)


def retry(
    tx: Transaction,
    actor: Actor,
    thread_id: UUID,
    catalog: Catalog,
    *,
    trace_id: str,
) -> Created:
    """Do the thread's last round again: its assistant turn goes, a new run comes.

    Raises:
        ThreadNotFound, Forbidden, ThreadBusy
        InvalidState: the thread has no message.
        PersonaNotFound, RouteNotFound: those of the last run are gone.
    """
    threads.lock(tx, actor, thread_id)
    if active := threads.active_run_id(tx.sql, thread_id):
        raise ThreadBusy(active_run_id=str(active))
    visible = (messages.c.thread_id == thread_id) & messages.c.superseded_at.is_(None)
    last_message = tx.sql.execute(
        select(messages.c.id, messages.c.role)
        .where(visible)
        .order_by(messages.c.position.desc())
        .limit(1)
    ).one_or_none()
    if last_message is None:
        raise InvalidState()
    if last_message.role == "assistant":
        tx.sql.execute(
            update(messages)
            .where(messages.c.id == last_message.id)
            .values(superseded_at=func.now())
        )
    last_run = tx.sql.execute(
        select(
            *(runs.c[name] for name in ("persona_id", "route_id", "options")),
            *(runs.c[name] for name in ("end_user_id", "metadata")),
        )
        .where(runs.c.thread_id == thread_id)
        .order_by(runs.c.position.desc())
        .limit(1)
    ).one_or_none()
    # Runs of this round without an assistant message (failed, cancelled) go as well:
    # their tool turns must not be part of what the new run sees.
    last_position = (
        select(func.coalesce(func.max(messages.c.position), 0)).where(visible).scalar_subquery()
    )
    tx.sql.execute(
        update(runs)
        .where(
            runs.c.thread_id == thread_id,
            runs.c.position > last_position,
            runs.c.superseded_at.is_(None),
        )
        .values(superseded_at=func.now())
    )
    thread_contexts.forget(tx, thread_id, last_position)
    persona_id, route_id, options, end_user_id, client_data = last_run or (None,) * 5
    if last_run is None:
        persona_id = actor.persona_id
    persona = catalog.persona(actor.org_id, persona_id, sql=tx.sql)
    route = catalog.choose_route(actor.org_id, route_id, persona, sql=tx.sql)
    new = NewRun(
        actor=actor,
        thread_id=thread_id,
        persona=persona,
        route=route,
        trace_id=trace_id,
        options=options,
        end_user_id=actor.end_user_id or end_user_id,
        metadata=client_data or {},
    )
    # What the org gave the run stays, also where an end user retries it.
    return _create(tx, new)
