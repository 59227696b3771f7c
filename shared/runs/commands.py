"""A run's life as the API and the sweep change it; `claims.py` has the worker's side.

The row is the truth, the Celery message is a hint. Changes here happen under
the row lock of a run that no worker holds; of a held run only the wish to
cancel is written. `status.py` draws the states.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import (
    ARRAY,
    BindParameter,
    Boolean,
    ColumnClause,
    Connection,
    RowMapping,
    Text,
    Uuid,
    bindparam,
    column,
    exists,
    func,
    insert,
    literal,
    literal_column,
    or_,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.types import TypeEngine

from shared import ids
from shared.actors import Actor
from shared.billing import budget_limits
from shared.catalog import model_routes, personas
from shared.catalog.catalog import Catalog
from shared.errors import (
    InvalidState,
    NotActive,
    NotWaiting,
    RunNotFound,
    StaleInput,
    ThreadBusy,
)
from shared.runs import approvals, unheld_endings
from shared.runs.states import RunState
from shared.runs.transitions import queued
from shared.storage import signals
from shared.storage.connections import Transaction
from shared.storage.hints import GroupedHint
from shared.storage.tables.runs import IS_ACTIVE, inputs, runs
from shared.storage.tables.threads import messages, threads
from shared.threads import threads as conversations
from shared.threads.visibility import visible

#: What the model is told where a person was asked and did not answer.
UNANSWERED = "No answer was given in time."


@dataclass(frozen=True, slots=True, kw_only=True)
class NewRun:
    """A run that somebody wants in a thread."""

    actor: Actor
    thread_id: UUID
    persona: personas.Persona
    route: model_routes.Route
    trace_id: str


def _given(name: str, type_: TypeEngine[Any]) -> tuple[BindParameter[Any], ColumnClause[Any]]:
    # A parameter with the name of a column would be taken for a value of the UPDATE.
    return bindparam(f"{name}s", type_=ARRAY(type_)), column(name, type_)


_GIVEN = [_given(name, Uuid()) for name in ("id", "org_id", "thread_id", "created_by_user_id")]
_GIVEN += [_given(name, Text()) for name in ("trace_id", "persona_id", "route_id", "model")]
_GIVEN += [_given("api_key_id", Uuid()), _given("writes_all", Boolean())]
_wanted = (
    func.unnest(*(values for values, _ in _GIVEN))
    .table_valued(*(column_ for _, column_ in _GIVEN))
    .render_derived("wanted")
)
_free = (
    select(_wanted)
    .join(threads, threads.c.id == _wanted.c.thread_id)
    .where(
        visible(_wanted.c.org_id, _wanted.c.created_by_user_id),
        or_(_wanted.c.writes_all, threads.c.created_by_user_id == _wanted.c.created_by_user_id),
        ~exists().where(runs.c.thread_id == threads.c.id, IS_ACTIVE),
    )
    .order_by(threads.c.id)
    .with_for_update(of=threads, skip_locked=True, key_share=True)
    .cte("free")
)
_place = (
    update(threads)
    .where(threads.c.id == _free.c.thread_id)
    .values(next_position=threads.c.next_position + 1, updated_at=func.now())
    .returning(_free.c.id, (threads.c.next_position - 1).label("position"), threads.c.visible_to)
    .cte("place")
)
_TAKEN_OVER = [column_.name for _, column_ in _GIVEN if column_.name != "writes_all"]
#: The threads' locks, a place in each and the runs, in one statement. No row for a run that may not
#: be, or whose thread somebody has locked. Built once: that costs more than to execute it.
_CREATE = (
    upsert(runs)
    .from_select(
        [*_TAKEN_OVER, "position", "visible_to", "state", "created_at", "queued_at"],
        select(
            *(_free.c[name] for name in _TAKEN_OVER),
            _place.c.position,
            _place.c.visible_to,
            literal(RunState.QUEUED.value),
            # Not the time at which the statement began: it may have waited for a thread's lock
            # until after the end of the run before.
            func.clock_timestamp(),
            func.clock_timestamp(),
        ).join_from(_free, _place, _free.c.id == _place.c.id),
    )
    # A run that came at the same time; this one has taken a place for nothing then.
    .on_conflict_do_nothing(index_elements=["thread_id"], index_where=IS_ACTIVE)
    .returning(runs.c.id)
)


# ---- by the API ----------------------------------------------------------------------


def create_all(tx: Transaction, wanted: Sequence[NewRun]) -> list[UUID | None]:
    """Queue the runs in one statement, and tell the workers after the commit.

    Without a look at what may be spent: for orgs and personas without limits. None for a run that
    cannot be created in this way: `create` says why, or does it.
    """
    ids_ = [ids.new_id() for _ in wanted]
    values = {
        "ids": ids_,
        "org_ids": [new.actor.org_id for new in wanted],
        "thread_ids": [new.thread_id for new in wanted],
        "created_by_user_ids": [new.actor.user_id for new in wanted],
        "trace_ids": [new.trace_id for new in wanted],
        "persona_ids": [new.persona.id for new in wanted],
        "route_ids": [new.route.id for new in wanted],
        "models": [new.route.model for new in wanted],
        "api_key_ids": [new.actor.api_key_id for new in wanted],
        "writes_alls": [new.actor.writes_all for new in wanted],
    }
    created = set(tx.sql.scalars(_CREATE, values))
    tx.after_commit += [GroupedHint(tx.connections.enqueue, id_) for id_ in ids_ if id_ in created]
    return [id_ if id_ in created else None for id_ in ids_]


def create(tx: Transaction, new: NewRun) -> UUID:
    """Queue a run of the thread and tell the workers after the commit.

    Raises:
        ThreadNotFound, Forbidden
        ThreadBusy: the thread has an active run already.
        BudgetExhausted: nothing is left for it.
    """
    while True:
        # Waits, while somebody else has the thread, where `create_all` does not.
        conversations.lock(tx, new.actor, new.thread_id)
        budget_limits.check_open(tx.sql, new.actor, new.persona, new.route)
        [run_id] = create_all(tx, [new])
        if run_id is not None:
            return run_id
        # Without one, it has ended in this very moment.
        if active := conversations.active_run_id(tx.sql, new.thread_id):
            raise ThreadBusy(active_run_id=str(active))


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
    conversations.lock(tx, actor, thread_id)
    if active := conversations.active_run_id(tx.sql, thread_id):
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
        select(runs.c.id, runs.c.persona_id, runs.c.route_id)
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
    persona_id, route_id = (last_run.persona_id, last_run.route_id) if last_run else (None, None)
    persona = catalog.persona(actor.org_id, persona_id, sql=tx.sql)
    route = catalog.choose_route(actor.org_id, route_id, persona, sql=tx.sql)
    new = NewRun(actor=actor, thread_id=thread_id, persona=persona, route=route, trace_id=trace_id)
    return create(tx, new)


_REQUEST_CANCEL = (
    update(runs)
    .where(
        runs.c.id == bindparam("run_id"),
        runs.c.state == literal_column("'executing'"),
        threads.c.id == runs.c.thread_id,
        visible(bindparam("actor_org_id"), bindparam("actor_id")),
        or_(
            bindparam("writes_all", type_=Boolean),
            runs.c.created_by_user_id == bindparam("actor_id"),
        ),
    )
    .values(
        cancel_requested_at=func.coalesce(runs.c.cancel_requested_at, func.now()),
        cancel_requested_by=func.coalesce(runs.c.cancel_requested_by, bindparam("actor_id")),
    )
    .returning(runs.c.owner, runs.c.cancel_requested_by)
)


def cancel_executing(tx: Transaction, actor: Actor, run_id: UUID) -> bool:
    """Ask the owner of an executing run to end it, in one statement.

    False, and nothing done, if it is not executing or not the actor's to cancel.
    """
    wish = tx.sql.execute(
        _REQUEST_CANCEL,
        {
            "run_id": run_id,
            "actor_org_id": actor.org_id,
            "actor_id": actor.user_id,
            "writes_all": actor.writes_all,
        },
    ).one_or_none()
    if wish is None:
        return False
    tx.after_commit.append(lambda: signals.send_cancel(tx.connections, run_id, *wish))
    return True


def cancel(tx: Transaction, actor: Actor, run_id: UUID) -> None:
    """End a queued or waiting run now; ask the owner of an executing one to.

    Does nothing for a run that has ended.

    Raises:
        RunNotFound, Forbidden
    """
    run = _lock(tx.sql, actor, run_id)
    if run["state"] in (RunState.QUEUED, RunState.WAITING):
        unheld_endings.end(tx, run, RunState.CANCELLED)
    elif run["state"] == RunState.EXECUTING:
        cancel_executing(tx, actor, run_id)


def answer(
    tx: Transaction, actor: Actor, run_id: UUID, content: str, request_id: UUID | None
) -> None:
    """Store a person's answer and queue the run again.

    The same answer to the same `request_id` again changes nothing.

    Raises:
        RunNotFound, Forbidden
        NotWaiting: no request is open any more. NotActive: the run has ended.
        StaleInput: the request is another one, or has another answer.
        InvalidRequest: a malformed reply to a request for approval.
    """
    run = _lock(tx.sql, actor, run_id)
    if request_id is not None:
        stored = tx.sql.scalar(
            select(inputs.c.content).where(
                inputs.c.run_id == run_id, inputs.c.request_id == request_id
            )
        )
        if stored is not None:
            if stored != content:
                raise StaleInput()
            return
    if RunState(run["state"]).is_terminal:
        raise NotActive()
    if run["state"] != RunState.WAITING:
        raise NotWaiting()
    if request_id not in (None, UUID(run["pending_input"]["request_id"])):
        raise StaleInput()
    if run["input_expires_at"] <= tx.sql.scalar(select(func.clock_timestamp())):
        raise NotWaiting("The input request has expired.")  # the sweep will say what comes of it
    if run["pending_input"]["kind"] == "tool_confirmation":
        approvals.read(content)  # what cannot be understood is refused while it can be corrected
    _go_on(tx, run, content, actor.user_id)


def go_on_unanswered(tx: Transaction, run: RowMapping) -> None:
    """Queue a waiting run again whose request nobody has answered in time; by the sweep."""
    is_approval = run["pending_input"]["kind"] == "tool_confirmation"
    denial = json.dumps({"decision": "deny", "reason": UNANSWERED})
    _go_on(tx, run, denial if is_approval else UNANSWERED, None)


def _go_on(tx: Transaction, run: RowMapping, content: str, user_id: UUID | None) -> None:
    """Store what the open request gets, from this user or from nobody, and queue the run again."""
    tx.sql.execute(
        insert(inputs).values(
            run_id=run["id"],
            request_id=UUID(run["pending_input"]["request_id"]),
            content=content,
            created_by_user_id=user_id,
        )
    )
    waited = func.extract("epoch", func.now() - runs.c.waiting_since) * 1000
    tx.sql.execute(
        update(runs)
        .where(runs.c.id == run["id"])
        .values(
            **queued("input"),
            waiting_ms=runs.c.waiting_ms + waited,
            waiting_since=None,
            input_expires_at=None,
            pending_input=None,
        )
    )
    tx.after_commit.append(lambda: signals.send_input(tx.connections, run["id"], run["owner"]))
    tx.after_commit.append(GroupedHint(tx.connections.enqueue, run["id"]))


# ---- pieces --------------------------------------------------------------------------


def _lock(sql: Connection, actor: Actor, run_id: UUID) -> RowMapping:
    run = (
        sql.execute(
            select(*runs.c)
            .join(threads, threads.c.id == runs.c.thread_id)
            .where(runs.c.id == run_id, visible(actor.org_id, actor.user_id))
            .with_for_update(of=runs)
        )
        .mappings()
        .one_or_none()
    )
    if run is None:
        raise RunNotFound()
    actor.check_may_write(run["created_by_user_id"])
    return run
