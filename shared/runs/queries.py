"""Reading runs: one, or a page of them, as the actor may see them.

Statements are built once: to build one costs more than to execute it.
"""

from collections.abc import Collection, Mapping
from datetime import datetime
from functools import lru_cache, partial
from types import MappingProxyType
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    Connection,
    Numeric,
    RowMapping,
    Select,
    bindparam,
    case,
    exists,
    func,
    literal_column,
    or_,
    select,
    true,
)

from arkloop.shared.actors import Actor
from arkloop.shared.errors import RunNotFound, ThreadNotFound
from arkloop.shared.runs.claims import IS_SUSPECT, QUEUED
from arkloop.shared.runs.states import STATUSES, RunState
from arkloop.shared.storage.pages import (
    Page,
    Place,
    Walk,
    fitting,
    has_pairs,
    json_size,
    newest,
    newest_first,
    read,
    values,
)
from arkloop.shared.storage.tables.accounts import SUSPENDED_ORGS, users
from arkloop.shared.storage.tables.events import run_events
from arkloop.shared.storage.tables.runs import FIRST_WAITING, run_metadata, runs
from arkloop.shared.storage.tables.threads import messages, threads
from arkloop.shared.threads.visibility import IS_VISIBLE, IS_VISIBLE_OR_DELETED, seen_by

#: What a list shows: of the other 30 columns each costs a little.
_LISTED = [
    runs.c[name]
    for name in (
        *("id", "org_id", "thread_id", "parent_run_id", "created_by_user_id", "created_at"),
        *("state", "cancel_requested_at", "ended_at", "stop_reason"),
        *("error_code", "error_message", "error_retryable"),
        *("model", "persona_id", "end_user_id", "metadata", "pending_input"),
        *("input_tokens", "output_tokens", "cache_read_tokens", "cost_usd"),
    )
]
_LAST_SEQ = (
    select(func.coalesce(func.max(run_events.c.seq), 0))
    .where(run_events.c.run_id == runs.c.id)
    .scalar_subquery()
    .label("last_seq")
)
#: Of ended sub-runs; of the others what they had cost when they last waited.
_TREE_COST = literal_column(
    """(
        WITH RECURSIVE below AS (
            SELECT c.id, c.cost_usd FROM runs c WHERE c.parent_run_id = runs.id
            UNION ALL
            SELECT c.id, c.cost_usd FROM below JOIN runs c ON c.parent_run_id = below.id
        )
        SELECT runs.cost_usd + coalesce(sum(below.cost_usd), 0) FROM below
    )""",
    Numeric(),
).label("tree_cost_usd")
_BEFORE = runs.alias("runs_before")
#: The place of a run in the queue of its thread, from 1 on; null: it is not pending.
QUEUE_POSITION = case(
    (
        runs.c.state == literal_column("'pending'"),
        select(func.count() + literal_column("1"))
        .where(
            _BEFORE.c.thread_id == runs.c.thread_id,
            _BEFORE.c.state == literal_column("'pending'"),
            _BEFORE.c.position >= literal_column(str(FIRST_WAITING)),
            _BEFORE.c.position < runs.c.position,
            _BEFORE.c.ended_at.is_(None),
        )
        .correlate(runs)
        .scalar_subquery(),
    )
).label("queue_position")
_RUN_OR_DELETED = (
    select(
        *runs.c,
        _LAST_SEQ,
        QUEUE_POSITION,
        _TREE_COST,
        func.now().label("now"),
        messages.c.id.label("message_id"),
        # An unfinished text is read by its id alone: nobody must take it for the answer.
        case((~messages.c.partial, messages.c.content)).label("output"),
    )
    .join(threads, threads.c.id == runs.c.thread_id)
    .outerjoin(messages, messages.c.run_id == runs.c.id)
    .where(runs.c.id == bindparam("run_id"), IS_VISIBLE_OR_DELETED)
)
_RUN = _RUN_OR_DELETED.where(threads.c.deleted_at.is_(None))
#: Filters of a list of runs; of the first four, an index has the rows in the order of the list.
_FILTERS: Mapping[str, ColumnElement[bool]] = {
    **{
        name: runs.c[name] == bindparam(name)
        for name in ("thread_id", "parent_run_id", "end_user_id", "error_code")
    },
    **{name: runs.c[name] == bindparam(name) for name in ("persona_id", "route_id", "api_key_id")},
    "persona_key": func.split_part(runs.c.persona_id, "@", 1) == bindparam("persona_key"),
    "min_cost_usd": runs.c.cost_usd >= bindparam("min_cost_usd"),
    # A run during which the clock was set back has a duration of 0.
    "min_duration_ms": case(
        (bindparam("min_duration_ms") == literal_column("0"), runs.c.ended_at.is_not(None)),
        else_=runs.c.ended_at - runs.c.created_at
        >= bindparam("min_duration_ms") * literal_column("interval '1 ms'"),
    ),
    # A run can have an end user that its thread lacks, as sub-runs do.
    "of_end_user": exists().where(
        threads.c.id == runs.c.thread_id, threads.c.end_user_id == bindparam("of_end_user")
    ),
}
_INDEXED = ("thread_id", "parent_run_id", "end_user_id", "error_code")
_THREAD_ID = select(threads.c.id).where(threads.c.id == bindparam("thread_id"), IS_VISIBLE)


def get(sql: Connection, actor: Actor, run_id: UUID, *, also_deleted: bool = False) -> RowMapping:
    """Return all columns of the run, its `last_seq`, and the `message_id` and `output` that it has
    left in its thread.

    `also_deleted` finds runs of deleted threads, too.

    Raises:
        RunNotFound: it does not exist, or the actor must not know of it.
    """
    query = _RUN_OR_DELETED if also_deleted else _RUN
    row = sql.execute(query, {"run_id": run_id, **seen_by(actor)})
    run = row.mappings().one_or_none()
    if run is None:
        raise RunNotFound()
    return run


class _Shape(NamedTuple):
    """The filters of a list, without their values."""

    names: frozenset[str]
    status: str | None
    pairs: int


def list_of_org(
    sql: Connection,
    actor: Actor,
    *,
    limit: int,
    before: Place | None,
    filters: Mapping[str, Any] = MappingProxyType({}),
) -> Page:
    """List the org's runs that the actor may see, newest first, with their creators.

    `filters`: `status`, `metadata`, the keys of `_FILTERS`, and `created_after`, the first moment
    of the list, and `created_before`, the first moment after it.
    """
    if actor.end_user_id is not None:
        narrowed = _of_end_user(sql, actor, filters)
        if narrowed is None:
            return Page((), None)
        filters = narrowed
    metadata = filters.get("metadata", {})
    shape = _Shape(frozenset(filters), filters.get("status"), len(metadata))
    is_deep = before is not None
    return read(
        sql,
        {**filters, **values(actor, before)},
        metadata,
        end=_end(shape, is_deep),
        page=partial(_page, shape, limit, is_deep),
    )


def _of_end_user(
    sql: Connection, actor: Actor, filters: Mapping[str, Any]
) -> Mapping[str, Any] | None:
    """Narrow the filters to what an end user sees; None if that is nothing.

    Sub-runs are in threads of their own, which have no end user.
    """
    wanted = {"end_user_id": actor.end_user_id, **filters}
    thread_ids = {of for of in (actor.thread_id, filters.get("thread_id")) if of is not None}
    if wanted["end_user_id"] != actor.end_user_id or len(thread_ids) > 1:
        return None
    if not thread_ids:
        return {**wanted, "of_end_user": actor.end_user_id}
    [thread_id] = thread_ids
    if not sql.scalar(_THREAD_ID, {"thread_id": thread_id, **seen_by(actor)}):
        return None
    return {**filters, "thread_id": thread_id}


@lru_cache(maxsize=100)
def _walk(shape: _Shape) -> Walk:
    conditions = {name: _FILTERS[name] for name in _FILTERS if name in shape.names}
    states = [runs.c.state == state.value for state in STATUSES.get(shape.status or "", ())]
    table, by = runs, []
    pairs = has_pairs(run_metadata, shape.pairs)
    if pairs and conditions.keys().isdisjoint(("thread_id", "parent_run_id")):
        table, by, rest = run_metadata, [pairs[0]], [*pairs[1:]]
        if conditions or states:
            of_run = [*conditions.values(), *([or_(*states)] if states else [])]
            rest.append(exists().where(runs.c.id == run_metadata.c.id, *of_run))
        states = []
    else:
        indexed = [name for name in _INDEXED if name in conditions][:1]
        by = [conditions.pop(name) for name in indexed]
        rest = [*conditions.values()]
        if pairs:
            rest.append(exists().where(run_metadata.c.id == runs.c.id, *pairs))
        if by and states:
            rest.append(or_(*states))
            states = []
    if "created_after" in shape.names:
        by.append(table.c.created_at >= bindparam("created_after"))
    if "created_before" in shape.names:
        by.append(table.c.created_at < bindparam("created_before"))
    is_one_range = not shape.names.isdisjoint(("thread_id", "parent_run_id"))
    of = runs if table is run_metadata else None
    return Walk(table, tuple(by), tuple(states), tuple(rest), is_one_range=is_one_range, of=of)


@lru_cache(maxsize=100)
def _end(shape: _Shape, is_deep: bool) -> Select[Any] | None:
    walk = _walk(shape)
    return walk.end(is_deep=is_deep) if walk.rest else None


@lru_cache(maxsize=100)
def _page(shape: _Shape, limit: int, is_deep: bool, is_bounded: bool) -> Select[Any]:
    page = _walk(shape).page(limit=limit, is_deep=is_deep, is_bounded=is_bounded)
    query = (
        select(*_LISTED, QUEUE_POSITION, users.c.login, users.c.email)
        .select_from(page)
        .join(runs, runs.c.id == page.c.id)
        # Row-level security hides users who have left the org.
        .outerjoin(users, users.c.id == runs.c.created_by_user_id)
        # Users who came from another org left their private threads there.
        .where(runs.c.org_id == bindparam("org_id"))
    )
    return fitting(
        newest(query, page, limit=limit),
        size=lambda of: json_size(of.c.pending_input) + json_size(of.c.metadata),
        order=newest_first,
    )


def list_of_thread(
    sql: Connection,
    actor: Actor,
    thread_id: UUID,
    *,
    limit: int,
    before: Place | None,
    filters: Mapping[str, Any] = MappingProxyType({}),
) -> Page:
    """List the thread's runs as `list_of_org` does.

    Raises:
        ThreadNotFound
    """
    if not sql.scalar(_THREAD_ID, {"thread_id": thread_id, **seen_by(actor)}):
        raise ThreadNotFound()
    filters = {**filters, "thread_id": thread_id}
    return list_of_org(sql, actor, limit=limit, before=before, filters=filters)


def creator_of(sql: Connection, run_id: UUID) -> UUID:
    """Return the user who created the run."""
    creator: UUID = sql.scalars(select(runs.c.created_by_user_id).where(runs.c.id == run_id)).one()
    return creator


def states_of(sql: Connection, run_ids: Collection[UUID]) -> dict[UUID, RunState]:
    """Return the states of runs, without those that do not exist."""
    rows = sql.execute(select(runs.c.id, runs.c.state).where(runs.c.id.in_(run_ids)))
    return {row.id: RunState(row.state) for row in rows}


def unclaimed(
    sql: Connection,
    *,
    older_than: float,
    limit: int,
    suspects: bool,
    before: datetime | None = None,
) -> list[UUID]:
    """List runs that have been queued for more than `older_than` seconds, oldest first.

    With `before` only those that were queued before then.
    """
    age = func.now() - func.make_interval(0, 0, 0, 0, 0, 0, older_than)
    return list(
        sql.scalars(
            select(runs.c.id)
            .where(
                QUEUED,
                runs.c.agent.is_(None),
                runs.c.org_id.not_in(SUSPENDED_ORGS),
                runs.c.cancel_requested_at.is_(None),
                runs.c.queued_at < age,
                true() if before is None else runs.c.queued_at < before,
                true() if suspects else ~IS_SUSPECT,
            )
            .order_by(runs.c.queued_at)
            .limit(limit)
        )
    )
