"""Reading runs: one, or a page of them, as the actor may see them."""

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, Connection, RowMapping, Select, func, select, tuple_

from shared.actors import Actor
from shared.errors import RunNotFound, ThreadNotFound
from shared.status import STATUSES
from shared.tables import run_events, runs, threads, users

Place = tuple[datetime, UUID]


def get(sql: Connection, actor: Actor, run_id: UUID) -> RowMapping:
    """All columns of the run and its `last_seq`.

    Raises:
        RunNotFound: it does not exist, or the actor must not know of it.
    """
    last_seq = (
        select(func.coalesce(func.max(run_events.c.seq), 0))
        .where(run_events.c.run_id == runs.c.id)
        .scalar_subquery()
        .label("last_seq")
    )
    row = sql.execute(
        select(*runs.c, last_seq, func.now().label("now"))
        .join(threads, threads.c.id == runs.c.thread_id)
        .where(runs.c.id == run_id, actor.sees())
    )
    run = row.mappings().one_or_none()
    if run is None:
        raise RunNotFound()
    return run


def list_of_org(
    sql: Connection, actor: Actor, *, limit: int, before: Place | None, status: str | None
) -> list[RowMapping]:
    """The org's runs that the actor sees, newest first, with who created them."""
    conditions = [runs.c.org_id == actor.org_id]
    if status is not None:
        conditions.append(runs.c.state.in_(STATUSES[status]))
    query = (
        select(*runs.c, users.c.login, users.c.email)
        .join(threads, threads.c.id == runs.c.thread_id)
        .join(users, users.c.id == runs.c.created_by_user_id)
        .where(actor.sees(), *conditions)
    )
    return _page(sql, query, limit, before)


def list_of_thread(
    sql: Connection, actor: Actor, thread_id: UUID, *, limit: int, before: Place | None
) -> list[RowMapping]:
    """The thread's runs, newest first.

    Raises:
        ThreadNotFound
    """
    if not sql.scalar(select(threads.c.id).where(threads.c.id == thread_id, actor.sees())):
        raise ThreadNotFound()
    query = select(runs.c.id, runs.c.state, runs.c.created_at).where(runs.c.thread_id == thread_id)
    return _page(sql, query, limit, before)


def _page(
    sql: Connection, query: Select[Any], limit: int, before: Place | None
) -> list[RowMapping]:
    place: ColumnElement[Any] = tuple_(runs.c.created_at, runs.c.id)
    if before is not None:
        query = query.where(place < before)
    query = query.order_by(runs.c.created_at.desc(), runs.c.id.desc()).limit(limit)
    return list(sql.execute(query).mappings())
