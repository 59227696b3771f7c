"""Threads and their messages.

Everything in a thread has a position, taken from the thread's row under its
lock: messages when they are sent, a run's answer when the run is created.
"""

from collections.abc import Mapping
from contextlib import nullcontext
from functools import lru_cache, partial
from types import MappingProxyType
from typing import Any
from uuid import UUID

from sqlalchemy import (
    Connection,
    Row,
    bindparam,
    exists,
    func,
    literal,
    literal_column,
    null,
    or_,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import IntegrityError
from sqlalchemy.sql import Select

from arkloop.shared import client_data
from arkloop.shared.actors import Actor
from arkloop.shared.errors import NameTaken, ThreadNotFound
from arkloop.shared.ids import new_id
from arkloop.shared.storage.connections import Transaction
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
from arkloop.shared.storage.postgres import seeing_all
from arkloop.shared.storage.tables.runs import IS_ACTIVE, runs
from arkloop.shared.storage.tables.threads import (
    HAS_EXTERNAL_ID,
    UNIQUE_EXTERNAL_ID,
    messages,
    thread_metadata,
    threads,
)
from arkloop.shared.threads.content import Content, stored_parts
from arkloop.shared.threads.end_users import check_changes, check_fields, own_thread
from arkloop.shared.threads.visibility import IS_VISIBLE, seen_by, visible

_ACTIVE_RUN_ID = (
    select(runs.c.id)
    .where(runs.c.thread_id == threads.c.id, IS_ACTIVE)
    .correlate(threads)
    .scalar_subquery()
    .label("active_run_id")
)


def create(tx: Transaction, actor: Actor, **fields: Any) -> Row[Any]:
    """Create a thread with these columns; returns it as `get` does."""
    made = _insert(tx.sql, actor, fields)
    assert made is not None  # without an `external_id` nothing is in its way
    return made


def find_or_create(
    tx: Transaction, actor: Actor, *, external_id: str, **fields: Any
) -> tuple[Row[Any], bool]:
    """Return the thread of this `external_id` that the actor sees, else create it.

    Returns it as `get` does, and whether it is new. An id is unique among the threads that the org
    shares, and among the private ones of each user, which come first: that somebody else has a
    private thread of this id is not revealed.

    Raises:
        ThreadNotFound: the thread of this id is not one of the actor, who is an end user.
        NameTaken: it has another end user than the one that is given, or is the actor's private
            one in another org.
        Forbidden: see `check_fields`.
    """
    check_fields(actor, fields)
    while True:
        if thread := find(tx.sql, actor, external_id):
            check_end_user(thread, fields.get("end_user_id"))
            return thread, False
        if thread := _insert(tx.sql, actor, {**fields, "external_id": external_id}):
            return thread, True
        if actor.end_user_id is not None and not find(tx.sql, actor, external_id):
            raise ThreadNotFound()
        if _has_private_elsewhere(tx.sql, actor, external_id):
            raise NameTaken(
                external_id=["is the id of your private thread in another organization"]
            )
        # It was created at the same time: now it can be read.


def _has_private_elsewhere(sql: Connection, actor: Actor, external_id: str) -> bool:
    """Return whether the actor has a private thread of this id in another org of theirs."""
    elsewhere = exists().where(
        threads.c.visible_to == actor.reader_of_private,
        threads.c.external_id == external_id,
        threads.c.org_id != actor.org_id,
    )
    with seeing_all(sql):
        return bool(sql.scalar(select(elsewhere)))


def check_end_user(thread: Row[Any], end_user_id: str | None) -> None:
    """Check that a found thread is not another end user's: they choose external ids, too.

    Raises:
        NameTaken
    """
    if end_user_id is not None and thread.end_user_id not in (None, end_user_id):
        raise NameTaken(external_id=["is the id of a thread of another end user"])


def find(sql: Connection, actor: Actor, external_id: str) -> Row[Any] | None:
    """Return the thread of this `external_id` that the actor sees, as `get` does, or None."""
    return sql.execute(
        _select()
        .where(
            visible(actor),
            threads.c.visible_to.in_((actor.org_id, actor.reader_of_private)),
            threads.c.external_id == external_id,
        )
        .order_by(threads.c.is_private.desc())
        .limit(1)
    ).one_or_none()


def _insert(sql: Connection, actor: Actor, fields: Mapping[str, Any]) -> Row[Any] | None:
    """Insert a thread; None if the one that has its `external_id` was created meanwhile."""
    fields = own_thread(actor, fields)
    thread_id = sql.scalar(
        insert(threads)
        .values(id=new_id(), org_id=actor.org_id, created_by_user_id=actor.user_id, **fields)
        .on_conflict_do_nothing(
            index_elements=["visible_to", "external_id"], index_where=HAS_EXTERNAL_ID
        )
        .returning(threads.c.id)
    )
    return sql.execute(_select().where(threads.c.id == thread_id)).one() if thread_id else None


def get(sql: Connection, actor: Actor, thread_id: UUID) -> Row[Any]:
    """Return the thread's row with `active_run_id`. Raises: ThreadNotFound."""
    thread = sql.execute(
        _select().where(threads.c.id == thread_id, IS_VISIBLE), seen_by(actor)
    ).one_or_none()
    if thread is None:
        raise ThreadNotFound()
    return thread


def list_(
    sql: Connection,
    actor: Actor,
    *,
    limit: int,
    before: Place | None,
    filters: Mapping[str, Any] = MappingProxyType({}),
) -> Page:
    """List the threads that the actor may see, newest first.

    `filters`: `parent_run_id`, `external_id`, `end_user_id` and `metadata`; without any of them
    those of sub-runs are left out.
    """
    if actor.end_user_id is not None:
        if filters.get("end_user_id", actor.end_user_id) != actor.end_user_id:
            return Page((), None)
        filters = {**filters, "end_user_id": actor.end_user_id}
        if actor.thread_id is not None:
            filters["id"] = actor.thread_id
    metadata = filters.get("metadata", {})
    shape = (frozenset(filters), len(metadata))
    is_deep = before is not None
    return read(
        sql,
        {**filters, **values(actor, before)},
        metadata,
        end=_end(*shape, is_deep),
        page=partial(_page, *shape, limit, is_deep),
    )


@lru_cache(maxsize=100)
def _walk(names: frozenset[str], pair_count: int) -> Walk:
    """Return the walk for these filters. Built once, which costs more than to execute it."""
    equal = [
        threads.c[name] == bindparam(name)
        for name in ("id", "parent_run_id", "external_id", "end_user_id")
        if name in names
    ]
    if not pair_count:
        by, rest = equal[:1] or [threads.c.parent_run_id.is_(None)], equal[1:]
        # Threads of one parent are all seen by those who see the parent.
        is_one_range = "parent_run_id" in names
        return Walk(threads, tuple(by), rest=tuple(rest), is_one_range=is_one_range)
    pair, *others = has_pairs(thread_metadata, pair_count)
    if equal:
        others.append(exists().where(threads.c.id == thread_metadata.c.id, *equal))
    return Walk(thread_metadata, (pair,), rest=tuple(others), of=threads)


@lru_cache(maxsize=100)
def _end(names: frozenset[str], pair_count: int, is_deep: bool) -> Select[Any] | None:
    walk = _walk(names, pair_count)
    return walk.end(is_deep=is_deep) if walk.rest else None


@lru_cache(maxsize=100)
def _page(
    names: frozenset[str], pair_count: int, limit: int, is_deep: bool, is_bounded: bool
) -> Select[Any]:
    walk = _walk(names, pair_count)
    page = walk.page(limit=limit, is_deep=is_deep, is_bounded=is_bounded)
    query = (
        _select()
        .join(page, page.c.id == threads.c.id)
        # Users who came from another org left their private threads there.
        .where(threads.c.org_id == bindparam("org_id"))
    )
    return fitting(
        newest(query, page, limit=limit),
        size=lambda of: json_size(of.c.metadata),
        order=newest_first,
    )


def change(
    tx: Transaction,
    actor: Actor,
    thread_id: UUID,
    *,
    metadata: Mapping[str, str | None] = MappingProxyType({}),
    **changes: Any,
) -> Row[Any]:
    """Set these columns and merge `metadata`; returns the thread as it is then.

    Raises:
        ThreadNotFound, Forbidden
        NameTaken: another thread has its `external_id`.
        InvalidRequest: the thread would have too much metadata.
    """
    lock(tx, actor, thread_id)
    check_changes(actor, changes)
    if metadata:
        before = select(threads.c.metadata).where(threads.c.id == thread_id)
        changes["metadata"] = client_data.merged(tx.sql.execute(before).scalar_one(), metadata)
    if changes:
        changed = update(threads).where(threads.c.id == thread_id)
        # Threads below give up an `external_id` that a private thread has, also one in another org.
        scope = seeing_all(tx.sql) if "is_private" in changes else nullcontext()
        try:
            with scope:
                tx.sql.execute(changed.values(**changes, updated_at=func.now()))
        except IntegrityError as error:
            if UNIQUE_EXTERNAL_ID not in str(error.orig):
                raise
            raise NameTaken(external_id=["is already the id of another thread"]) from error
    return tx.sql.execute(_select().where(threads.c.id == thread_id)).one()


def lock(tx: Transaction, actor: Actor, thread_id: UUID) -> str | None:
    """Hold the thread's row until the transaction ends; returns its end user.

    Raises:
        ThreadNotFound
        Forbidden: it is somebody else's, and the actor is a member.
    """
    thread = tx.sql.execute(
        select(threads.c.created_by_user_id, threads.c.end_user_id)
        .where(threads.c.id == thread_id, visible(actor))
        # No stronger: a worker that gives its run's thread a message must not have to
        # wait here, for a change of who sees the thread waits for that run.
        .with_for_update(key_share=True)
    ).one_or_none()
    if thread is None:
        raise ThreadNotFound()
    actor.check_may_write("the thread", thread.created_by_user_id)
    end_user_id: str | None = thread.end_user_id
    return end_user_id


def take_position(tx: Transaction, actor: Actor, thread_id: UUID) -> int:
    """Take the thread's next position for a message or a run; locks as `lock` does.

    Raises:
        ThreadNotFound, Forbidden
    """
    position: int | None = tx.sql.scalar(
        update(threads)
        .where(
            threads.c.id == thread_id,
            visible(actor),
            or_(literal(actor.writes_all), threads.c.created_by_user_id == actor.user_id),
        )
        .values(next_position=threads.c.next_position + 1, updated_at=func.now())
        .returning(threads.c.next_position - 1)
    )
    if position is None:
        lock(tx, actor, thread_id)  # says why
        raise ThreadNotFound()
    return position


def active_run_id(sql: Connection, thread_id: UUID) -> UUID | None:
    """Return the run of the thread that has not ended, None if there is none."""
    return sql.scalar(select(runs.c.id).where(runs.c.thread_id == thread_id, IS_ACTIVE))


def add_message(
    tx: Transaction,
    actor: Actor,
    thread_id: UUID,
    *,
    content: str | Content,
    metadata: Mapping[str, str] = MappingProxyType({}),
) -> Row[Any]:
    """Put the user's message at the end. A run that is active does not see it.

    Raises:
        ThreadNotFound, Forbidden
        InvalidRequest: see `stored_parts`.
    """
    if isinstance(content, str):
        content = Content.of(content)
    parts = stored_parts(tx.sql, actor, content)
    position = take_position(tx, actor, thread_id)
    return tx.sql.execute(
        insert(messages)
        .values(
            id=new_id(),
            org_id=actor.org_id,
            thread_id=thread_id,
            created_by_user_id=actor.user_id,
            position=position,
            role="user",
            content=content.text,
            parts=null() if parts is None else parts,
            metadata=dict(metadata),
        )
        .returning(*messages.c)
    ).one()


def list_messages(
    sql: Connection, actor: Actor, thread_id: UUID, *, limit: int, before: int | None
) -> list[Row[Any]]:
    """List the last messages before a position, the last one first, without superseded ones.

    Raises:
        ThreadNotFound
    """
    get(sql, actor, thread_id)
    query = _page_of_messages(limit, before is not None)
    return list(sql.execute(query, {"thread_id": thread_id, "before": before}))


@lru_cache(maxsize=100)
def _page_of_messages(limit: int, is_deep: bool) -> Select[Any]:
    query = select(messages).where(
        messages.c.thread_id == bindparam("thread_id"), messages.c.superseded_at.is_(None)
    )
    if is_deep:
        query = query.where(messages.c.position < bindparam("before"))
    # Literal: see `pages.newest`.
    page = query.order_by(messages.c.position.desc()).limit(literal_column(str(int(limit))))
    return fitting(
        page,
        size=lambda of: func.octet_length(of.c.content) + json_size(of.c.metadata),
        order=lambda of: [of.c.position.desc()],
    )


def _select() -> Select[Any]:
    return select(threads, _ACTIVE_RUN_ID)
