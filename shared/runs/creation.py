"""Creating runs: queued in their threads, those that are created at the same time together."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from uuid import UUID

from sqlalchemy import func, select, update

from shared import ids
from shared.actors import Actor
from shared.billing import budget_limits
from shared.catalog.catalog import Catalog
from shared.catalog.model_routes import Route
from shared.catalog.personas import Persona
from shared.errors import InvalidState, ThreadBusy
from shared.runs.overrides import Options
from shared.storage.arrays import TextArray, plain_array
from shared.storage.connections import Connections, Transaction
from shared.storage.group_commit import GroupCommit
from shared.storage.notifications import Enqueue
from shared.storage.sql_files import statement
from shared.storage.tables.runs import runs
from shared.storage.tables.threads import messages
from shared.threads import thread_contexts, threads

_CREATE = statement(__package__, "create")


@dataclass(frozen=True, slots=True, kw_only=True)
class NewRun:
    """A run to be created in a thread."""

    actor: Actor
    thread_id: UUID
    persona: Persona
    route: Route
    trace_id: str
    options: Options | None = None  # what it overrides of the persona
    end_user_id: str | None = None  # None: that of the thread
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def options_json(self) -> str | None:
        return json.dumps(self.options) if self.options else None


class RunCreator:
    """Creates runs, each in the cheapest way that its limits allow; one per process."""

    def __init__(self, connections: Connections, catalog: Catalog) -> None:
        self._connections = connections
        self._catalog = catalog
        self._create_with_others = GroupCommit(self._create_all)

    def __call__(self, new: NewRun) -> UUID:
        """Queue a run and return its id; the workers are notified after the commit.

        Raises: as `create`.
        """
        run_id = None if self._is_limited(new) else self._create_with_others(new)
        if run_id is None:
            with self._connections.transaction() as tx:
                run_id = create(tx, new)
        return run_id

    def _is_limited(self, new: NewRun) -> bool:
        return new.persona.max_cost_usd_per_month is not None or self._catalog.is_limited(
            new.actor.org_id
        )

    def _create_all(self, wanted: Sequence[NewRun]) -> list[UUID | None]:
        with self._connections.statement() as tx:
            return create_all(tx, wanted)


def create(tx: Transaction, new: NewRun) -> UUID:
    """Queue a run within its budgets and return its id; the workers are notified after the commit.

    Raises:
        ThreadNotFound, Forbidden
        ThreadBusy: the thread has an active run already.
        BudgetExhausted: nothing is left for it.
    """
    while True:
        # Waits where another session has locked the thread, which `create_all` does not.
        threads.lock(tx, new.actor, new.thread_id)
        budget_limits.check_open(tx.sql, new.actor, new.persona, new.route)
        [run_id] = create_all(tx, [new])
        if run_id is not None:
            return run_id
        # Without an active run, it has ended in this very moment.
        if active := threads.active_run_id(tx.sql, new.thread_id):
            raise ThreadBusy(active_run_id=str(active))


def create_all(tx: Transaction, wanted: Sequence[NewRun]) -> list[UUID | None]:
    """Queue the runs in one statement; the workers are notified after the commit.

    Does not check budgets. Returns None for a run that cannot be created in this way: `create`
    says why, or does it.
    """
    new_ids = [ids.new_id() for _ in wanted]
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
                "options": TextArray(new.options_json for new in wanted),
                "end_user_ids": TextArray(new.end_user_id for new in wanted),
                "metadata": TextArray(json.dumps(dict(new.metadata)) for new in wanted),
            },
        ).scalars()
    )
    tx.after_commit += [Enqueue(run_id) for run_id in new_ids if run_id in created]
    return [run_id if run_id in created else None for run_id in new_ids]


def retry(
    tx: Transaction,
    actor: Actor,
    thread_id: UUID,
    catalog: Catalog,
    *,
    trace_id: str,
) -> UUID:
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
    persona = catalog.persona(actor.org_id, persona_id, sql=tx.sql)
    route = catalog.choose_route(actor.org_id, route_id, persona, sql=tx.sql)
    new = NewRun(
        actor=actor,
        thread_id=thread_id,
        persona=persona,
        route=route,
        trace_id=trace_id,
        options=options,
        end_user_id=end_user_id,
        metadata=client_data or {},
    )
    return create(tx, new)
