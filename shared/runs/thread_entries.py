"""The entries of a thread as a conversation: messages of users, and the runs that answer them."""

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import (
    JSON,
    ColumnElement,
    Connection,
    FromClause,
    Row,
    RowMapping,
    ScalarSelect,
    Select,
    String,
    Text,
    Uuid,
    and_,
    bindparam,
    case,
    exists,
    func,
    literal_column,
    select,
    true,
    union_all,
)

from arkloop.shared.events.types import RunWaitingForInput
from arkloop.shared.ids import CANONICAL, parse_id
from arkloop.shared.runs.places import MAX_MESSAGES
from arkloop.shared.storage.arrays import is_among
from arkloop.shared.storage.tables.events import run_events
from arkloop.shared.storage.tables.runs import (
    FIRST_WAITING,
    IS_ACTIVE,
    WAITS_FOR_THREAD,
    inputs,
    offered_messages,
    runs,
)
from arkloop.shared.storage.tables.threads import messages

_REQUEST_ID = run_events.c.payload.cast(JSON)["data"]["request_id"].as_string()

#: Runs of a thread among which the one is looked for to which a reply was sent before.
LATEST_RUNS = 50

# An answer whose run the retention has deleted stands for it.
# Two indexes by position are merged: however long the thread is, only a page of it is read.
# Runs that wait for their turn, or were cancelled before it, have no place in the conversation.
_ENTRIES = """
SELECT position, id AS message_id, role, content, parts, metadata, NULL::uuid AS run_id,
    NULL::text AS state
FROM messages
WHERE thread_id = %(thread_id)s AND (role = 'user' OR run_id IS NULL) AND superseded_at IS NULL
    AND position < %(before)s
UNION ALL
SELECT position, NULL, NULL, NULL, NULL, NULL, id, state
FROM runs
WHERE thread_id = %(thread_id)s AND superseded_at IS NULL
    AND position < LEAST(%(before)s, %(first_waiting)s)
ORDER BY position DESC
LIMIT %(limit)s
"""


_OF_THREAD = and_(
    messages.c.thread_id == bindparam("thread_id"), messages.c.superseded_at.is_(None)
)
_IS_OWN = and_(
    _OF_THREAD,
    messages.c.role == "user",
    messages.c.steered_into.is_(None),
    ~exists().where(offered_messages.c.message_id == messages.c.id),
)


def _round(
    before: ColumnElement[int], after: ColumnElement[int], *around: FromClause
) -> Select[Any]:
    """Return the query of `last_round`; `around` has the row in which a position is."""

    def last(column: ColumnElement[int], *conditions: ColumnElement[bool]) -> ScalarSelect[int]:
        query = select(column).where(*conditions).order_by(column.desc()).limit(1)
        return query.correlate(*around).scalar_subquery()

    is_before = messages.c.position < before
    said = last(messages.c.position, _IS_OWN, is_before, messages.c.position > after)
    run_before = last(
        runs.c.position,
        runs.c.thread_id == bindparam("thread_id"),
        runs.c.superseded_at.is_(None),
        runs.c.position < said,
    )
    # The run of an answer may have been deleted.
    answer = last(
        messages.c.position,
        *(_OF_THREAD, messages.c.role == "assistant", is_before),
        messages.c.position > func.greatest(after, run_before),
    )
    return (
        select(messages)
        .where(_IS_OWN, messages.c.position <= said)
        .where(messages.c.position > func.greatest(after, run_before, answer))
        .order_by(messages.c.position.desc())
        .limit(literal_column(str(MAX_MESSAGES)))
    )


_LAST_ROUND = _round(bindparam("before"), bindparam("after"))
# Not with OR: the other runs of the thread would be read, too.
_UNENDED = union_all(
    *(
        select(runs.c.id, runs.c.position, runs.c.persona_id, runs.c.route_id).where(
            runs.c.thread_id == bindparam("thread_id"),
            is_unended,
            runs.c.cancel_requested_at.is_(None),
        )
        for is_unended in (IS_ACTIVE, WAITS_FOR_THREAD)
    )
).subquery()
_SAID = _round(_UNENDED.c.position, literal_column("-1"), _UNENDED).lateral()
_KEY, _VALUE = bindparam("key", type_=String), bindparam("value", type_=String)


def _has_given_id(id_: ColumnElement[str]) -> ColumnElement[bool]:
    """Return whether this is the id of a message of the thread to which a client gave another."""
    return exists().where(
        messages.c.id == case((id_.regexp_match(f"^{CANONICAL.pattern}$"), id_.cast(Uuid))),
        messages.c.thread_id == bindparam("thread_id"),
        messages.c.metadata[_KEY].astext.is_not(None),
    )


_GIVEN_ID = _SAID.c.metadata[_KEY].astext
_MAY_BE_IT = (
    (_GIVEN_ID == _VALUE)
    | (_SAID.c.id.cast(String) == _VALUE)
    | _has_given_id(_GIVEN_ID)
    | _has_given_id(_VALUE)
)
_MAY_ANSWER: Select[Any] = (
    select(
        *(_UNENDED.c.id, _UNENDED.c.persona_id, _UNENDED.c.route_id),
        *(_SAID.c.content, _SAID.c.parts, _SAID.c.metadata, _SAID.c.id.label("message_id")),
    )
    .select_from(_UNENDED.join(_SAID, _MAY_BE_IT))
    .order_by(_UNENDED.c.position)
)


def list_(
    sql: Connection, thread_id: UUID, *, limit: int, before: int | None
) -> Sequence[RowMapping]:
    """List the last entries before a position, the last one first, without superseded ones.

    Messages that wait for their turn are among them, their runs are not.
    An entry has either `message_id`, `role`, `content`, `parts` and `metadata`, or `run_id` and
    `state`.
    """
    places = {"before": before or 2**63 - 1, "first_waiting": FIRST_WAITING}
    given = {"thread_id": thread_id, "limit": limit, **places}
    return sql.exec_driver_sql(_ENTRIES, given).mappings().all()


def newest_run(sql: Connection, thread_id: UUID) -> UUID | None:
    """Return the last run of the thread whose turn has come, None if there is none.

    Neither one that waits for its turn, nor one that was cancelled before it.
    """
    return sql.scalar(
        select(runs.c.id)
        .where(
            runs.c.thread_id == thread_id,
            runs.c.superseded_at.is_(None),
            runs.c.position < FIRST_WAITING,
        )
        .order_by(runs.c.position.desc())
        .limit(1)
    )


def replied_run(sql: Connection, thread_id: UUID, request_id: UUID) -> UUID | None:
    """Return which of the thread's latest runs has had a reply to this request, None without one.

    Only the last `LATEST_RUNS` are looked at: a reply is sent again soon after the first time.
    """
    latest = (
        select(runs.c.id)
        .where(runs.c.thread_id == thread_id, runs.c.position < FIRST_WAITING)
        .order_by(runs.c.position.desc())
        .limit(LATEST_RUNS)
        .subquery()
    )
    return sql.scalar(
        select(inputs.c.run_id)
        .join(latest, latest.c.id == inputs.c.run_id)
        .where(inputs.c.request_id == request_id)
    )


def replied_at(sql: Connection, run_id: UUID, request_id: UUID) -> datetime | None:
    """Return when this request of a run had its reply, None without one."""
    return sql.scalar(
        select(inputs.c.created_at).where(
            inputs.c.run_id == run_id, inputs.c.request_id == request_id
        )
    )


def reply_to(sql: Connection, run_id: UUID, request_id: UUID) -> str | None:
    """Return the reply that this request of a run had, None without one."""
    return sql.scalar(
        select(inputs.c.content).where(inputs.c.run_id == run_id, inputs.c.request_id == request_id)
    )


def replies_of(
    sql: Connection, thread_id: UUID, run_ids: Collection[UUID]
) -> Sequence[Row[UUID, str, str]]:
    """Return the `content` of the replies that these runs had, if they are of the thread.

    A row also has the `run_id`, and the `payload` of the event that asked.
    """
    has_asked = (
        (run_events.c.run_id == inputs.c.run_id)
        & (run_events.c.type == RunWaitingForInput.type)
        & (_REQUEST_ID == inputs.c.request_id.cast(Text))
    )
    query = (
        select(inputs.c.run_id, inputs.c.content, run_events.c.payload)
        .join(runs, runs.c.id == inputs.c.run_id)
        .join(run_events, has_asked)
        .where(is_among(inputs.c.run_id, run_ids), runs.c.thread_id == thread_id)
    )
    return sql.execute(query).all()


def first_run(sql: Connection, thread_id: UUID, *, after: int) -> UUID | None:
    """Return the first run behind a position: the one that answers the message at it."""
    return sql.scalar(
        select(runs.c.id)
        .where(
            runs.c.thread_id == thread_id, runs.c.superseded_at.is_(None), runs.c.position > after
        )
        .order_by(runs.c.position)
        .limit(1)
    )


def asking_run(sql: Connection, thread_id: UUID, request_id: str) -> UUID | None:
    """Return which of the latest runs of a thread has made this request, None without one.

    It is looked for in their events, one run after another, since one that was over without a reply
    is stored nowhere else.
    """
    latest = (
        select(runs.c.id, runs.c.position)
        .where(runs.c.thread_id == thread_id, runs.c.position < FIRST_WAITING)
        .order_by(runs.c.position.desc())
        .limit(LATEST_RUNS)
        .subquery()
    )
    asked = (
        select(run_events.c.seq)
        .where(
            run_events.c.run_id == latest.c.id,
            run_events.c.type == RunWaitingForInput.type,
            _REQUEST_ID == request_id,
        )
        .limit(1)
        .lateral()
    )
    query = select(latest.c.id).join(asked, true()).order_by(latest.c.position.desc())
    return sql.scalar(query.limit(1))


def newest_message(sql: Connection, thread_id: UUID) -> Row[Any] | None:
    """Return the last message of a user in the thread, None if there is none.

    One whose run waits for its turn, or for its time, is not there yet.
    """
    is_there = messages.c.position < FIRST_WAITING
    return sql.execute(_of_users(thread_id).where(is_there).limit(1)).one_or_none()


def last_round(sql: Connection, thread_id: UUID, *, before: int, after: int) -> Sequence[Row[Any]]:
    """Return the last message of a user between these positions, and those in front of it that
    belong to the same run, such as those that have joined it: the last one first.

    Messages that runs were steered with, or that are offered to one, are none of these.
    """
    return sql.execute(
        _LAST_ROUND, {"thread_id": thread_id, "before": before, "after": after}
    ).all()


def find_message(sql: Connection, thread_id: UUID, key: str, value: str) -> Row[Any] | None:
    """Return the last message of a user with this id or this pair of metadata, None without."""
    return sql.execute(_with_id(thread_id, key, value).limit(1)).one_or_none()


def find_messages(sql: Connection, thread_id: UUID, key: str, value: str) -> Sequence[Row[Any]]:
    """Return the last messages of users with this id or this pair of metadata, the last one first.

    Each run that a client has for a message, or for another content under its id, adds one.
    """
    return sql.execute(_with_id(thread_id, key, value).limit(LATEST_RUNS)).all()


def unended_runs(sql: Connection, thread_id: UUID, key: str, value: str) -> Sequence[Row[Any]]:
    """Return the runs that are to answer the message with this id or this pair of metadata.

    They are in their order, are active or wait for their turn, and are not being cancelled. A row
    has the run's `id`, `persona_id` and `route_id`, and the message's `content`, `parts`,
    `metadata` and `message_id`. The messages of a run are those of `last_round`.

    The value of a pair may be the id of an earlier message, and means the same as that one's then.
    """
    given = {"thread_id": thread_id, "key": key, "value": value}
    rows = sql.execute(_MAY_ANSWER, given).all()
    ids = {row.message_id: row.metadata.get(key, str(row.message_id)) for row in rows}
    first = _first_ids(sql, thread_id, key, {value, *ids.values()}) if rows else {}
    return [row for row in rows if first[ids[row.message_id]] == first[value]]


def _first_ids(
    sql: Connection, thread_id: UUID, key: str, values: Collection[str]
) -> Mapping[str, str]:
    """Return, by each of these values, the one of the message that was the first of them all.

    A value that is the id of a message leads to the value of that, which may lead further.
    """
    first = {value: value for value in values}
    given_id = messages.c.metadata[key].astext
    while ids := {id_ for id_ in map(parse_id, first.values()) if id_ is not None}:
        query = select(messages.c.id, given_id.label("given_id")).where(
            messages.c.thread_id == thread_id, is_among(messages.c.id, ids), given_id.is_not(None)
        )
        earlier = {str(row.id): row.given_id for row in sql.execute(query)}
        if not earlier:
            break
        first = {value: earlier.get(id_, id_) for value, id_ in first.items()}
    return first


def _with_id(thread_id: UUID, key: str, value: str) -> Select[Any]:
    has_pair = messages.c.metadata[key].astext == value
    return _of_users(thread_id).where(has_pair | (messages.c.id.cast(String) == value))


def _of_users(thread_id: UUID) -> Select[Any]:
    return (
        select(
            *(messages.c.id, messages.c.position, messages.c.created_at),
            *(messages.c.content, messages.c.parts, messages.c.metadata),
        )
        .where(
            messages.c.thread_id == thread_id,
            messages.c.role == "user",
            messages.c.superseded_at.is_(None),
        )
        .order_by(messages.c.position.desc())
    )
