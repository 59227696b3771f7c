"""Reading runs: one, or a page of them, as the actor may see them.

Statements are built once: to build one costs more than to execute it.
"""

from functools import lru_cache
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, RowMapping, Select, bindparam, case, func, select

from shared.actors import Actor
from shared.errors import RunNotFound, ThreadNotFound
from shared.runs.states import STATUSES
from shared.storage.pages import (
    Place,
    after,
    fitting,
    json_size,
    newest,
    newest_first,
    places,
    values,
)
from shared.storage.tables.accounts import users
from shared.storage.tables.events import run_events
from shared.storage.tables.runs import runs
from shared.storage.tables.threads import messages, threads
from shared.threads.visibility import visible

#: A list leaves out what may be long and is shown of a single run.
_LISTED = [column for column in runs.c if column is not runs.c.options]
_IS_VISIBLE = visible(bindparam("org_id"), bindparam("user_id"))
_LAST_SEQ = (
    select(func.coalesce(func.max(run_events.c.seq), 0))
    .where(run_events.c.run_id == runs.c.id)
    .scalar_subquery()
    .label("last_seq")
)
_RUN = (
    select(
        *runs.c,
        _LAST_SEQ,
        func.now().label("now"),
        messages.c.id.label("message_id"),
        # An unfinished text is read by its id alone: nobody must take it for the answer.
        case((~messages.c.partial, messages.c.content)).label("output"),
    )
    .join(threads, threads.c.id == runs.c.thread_id)
    .outerjoin(messages, messages.c.run_id == runs.c.id)
    .where(runs.c.id == bindparam("run_id"), _IS_VISIBLE)
)
_THREAD_ID = select(threads.c.id).where(threads.c.id == bindparam("thread_id"), _IS_VISIBLE)


def get(sql: Connection, actor: Actor, run_id: UUID) -> RowMapping:
    """Return all columns of the run, its `last_seq`, and the `message_id` and `output` that it has
    left in its thread.

    Raises:
        RunNotFound: it does not exist, or the actor must not know of it.
    """
    row = sql.execute(_RUN, {"run_id": run_id, **values(actor)})
    run = row.mappings().one_or_none()
    if run is None:
        raise RunNotFound()
    return run


def list_of_org(
    sql: Connection, actor: Actor, *, limit: int, before: Place | None, status: str | None
) -> list[RowMapping]:
    """List the org's runs that the actor may see, newest first, with their creators."""
    query = _page_of_org(status, limit, before is not None)
    return list(sql.execute(query, values(actor, before)).mappings())


@lru_cache(maxsize=100)
def _page_of_org(status: str | None, limit: int, is_deep: bool) -> Select[Any]:
    states = STATUSES[status] if status is not None else ()
    page = places(
        runs,
        limit=limit,
        is_deep=is_deep,
        one_of=[runs.c.state == state.value for state in states],
    )
    query = (
        select(*_LISTED, users.c.login, users.c.email)
        .select_from(page)
        .join(runs, runs.c.id == page.c.id)
        .join(users, users.c.id == runs.c.created_by_user_id)
        # Users who came from another org left their private threads there.
        .where(runs.c.org_id == bindparam("org_id"))
    )
    return fitting(
        newest(query, page, limit=limit),
        size=lambda of: json_size(of.c.pending_input) + json_size(of.c.metadata),
        order=newest_first,
    )


def list_of_thread(
    sql: Connection, actor: Actor, thread_id: UUID, *, limit: int, before: Place | None
) -> list[RowMapping]:
    """List the thread's runs, newest first.

    Raises:
        ThreadNotFound
    """
    if not sql.scalar(_THREAD_ID, {"thread_id": thread_id, **values(actor)}):
        raise ThreadNotFound()
    query = _page_of_thread(limit, before is not None)
    return list(sql.execute(query, {"thread_id": thread_id, **after(before)}).mappings())


@lru_cache(maxsize=100)
def _page_of_thread(limit: int, is_deep: bool) -> Select[Any]:
    query = select(
        runs.c.id, runs.c.state, runs.c.created_at, runs.c.end_user_id, runs.c.metadata
    ).where(runs.c.thread_id == bindparam("thread_id"))
    return fitting(
        newest(query, runs, limit=limit, is_deep=is_deep),
        size=lambda of: json_size(of.c.metadata),
        order=newest_first,
    )
