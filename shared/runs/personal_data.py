"""Conversations of one person, an end user of an org or a user: found, ended and deleted.

Those of an end user are all threads of theirs, and their runs in threads of others. Those of a user
are the private threads. The threads of sub-runs are part of both.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import (
    JSON,
    Column,
    ColumnElement,
    Connection,
    cast,
    delete,
    func,
    literal,
    not_,
    null,
    or_,
    select,
    union,
    update,
)

from arkloop.shared.billing import budgets, spending, usage_reports
from arkloop.shared.delivery import deliveries
from arkloop.shared.events import event_log
from arkloop.shared.events.stored_events import with_content, without_summary
from arkloop.shared.events.types import ContextCompacted, RunSteered
from arkloop.shared.runs import moved_orgs, places
from arkloop.shared.runs.states import status_of
from arkloop.shared.storage.arrays import is_among
from arkloop.shared.storage.connections import Connections, Transaction
from arkloop.shared.storage.sql_files import statement
from arkloop.shared.storage.tables.events import run_events
from arkloop.shared.storage.tables.runs import (
    FIRST_WAITING,
    agent_checkpoints,
    inputs,
    offered_messages,
    runs,
)
from arkloop.shared.storage.tables.threads import messages, threads
from arkloop.shared.threads import thread_contexts

_THREADS = statement(__package__, "threads_of_person")
_RUNS_ELSEWHERE = statement(__package__, "runs_elsewhere")
_FIRST_PLACES = statement(__package__, "first_places")
_PROMPTED_LATER = statement(__package__, "prompted_later")
_SUB_THREADS_LATER = statement(__package__, "sub_threads_later")
_FILES = statement(__package__, "files_of_threads")
_CANCEL = statement(__package__, "cancel_runs_of_person")

#: Runs that have ended, or never will: those of orgs that are in another cell.
_IS_OVER = (runs.c.ended_at.is_not(None) | runs.c.org_id.in_(moved_orgs.left())).label("is_over")

#: What an emptied message says.
ERASED = "[erased]"

_CONTENT = ("role", "content", "parts", "metadata", "partial", "created_at")
#: Each begins with the id, by which rows are sorted: by the time of their creation.
_EXPORTED: Mapping[str, Sequence[Column[Any]]] = {
    "thread": [
        threads.c[name]
        for name in ("id", "org_id", "title", "is_private", "end_user_id", "external_id")
    ]
    + [threads.c.metadata, threads.c.created_at],
    "message": [messages.c[name] for name in ("id", "thread_id", *_CONTENT)],
    "run": [
        runs.c[name] for name in ("id", "thread_id", "persona_id", "model", "end_user_id", "state")
    ]
    + [runs.c.metadata, runs.c.created_at],
    "answer": [inputs.c[name] for name in ("request_id", "run_id", "content", "created_at")],
}


def will_act(sql: Connection, *, org_id: UUID, user_id: UUID) -> bool:
    """Return whether runs of the user's own, for no end user, have not ended in the org, or can be
    made of messages that wait for a run's next step.
    """
    unended, offered = (
        select(table.c.org_id).where(
            table.c.org_id == org_id,
            table.c.created_by_user_id == user_id,
            table.c.end_user_id.is_(None),
        )
        for table in (runs, offered_messages)
    )
    unended = unended.where(runs.c.ended_at.is_(None))
    return bool(sql.scalar(select(or_(unended.exists(), offered.exists()))))


@dataclass(frozen=True, slots=True)
class Conversations:
    """Threads as a whole, and single runs in threads of others with their messages."""

    thread_ids: Sequence[UUID]
    run_ids: Sequence[UUID] = ()
    message_ids: Sequence[UUID] = ()


def of_end_user(sql: Connection, org_id: UUID, end_user_id: str) -> Conversations:
    """Find what belongs to an end user of the org."""
    whose = {"org_id": org_id, "end_user_id": end_user_id, "user_id": None}
    thread_ids = sql.exec_driver_sql(_THREADS, whose).scalars().all()
    elsewhere = {"org_id": org_id, "end_user_id": end_user_id, "thread_ids": list(thread_ids)}
    single = sql.exec_driver_sql(_RUNS_ELSEWHERE, {**elsewhere, "slot": places.SLOT}).all()
    of_runs = {row.message_id for row in single} - {None}
    sent = union(
        *(
            select(message_id).where(
                message_id.table.c.org_id == org_id,
                message_id.table.c.end_user_id == end_user_id,
                not_(is_among(message_id.table.c.thread_id, thread_ids)),
            )
            # What the end user has said to steer runs of others, and what still waits to do so.
            for message_id in (messages.c.id, offered_messages.c.message_id)
        ),
        select(messages.c.id).where(
            is_among(messages.c.id, of_runs), messages.c.end_user_id.is_(None)
        ),
    )
    return Conversations(
        thread_ids,
        run_ids=sorted({row.run_id for row in single}),
        message_ids=sorted(sql.scalars(sent)),
    )


def of_user(sql: Connection, user_id: UUID) -> Conversations:
    """Find the private threads of a user, in all orgs."""
    whose = {"org_id": None, "end_user_id": None, "user_id": user_id}
    return Conversations(sql.exec_driver_sql(_THREADS, whose).scalars().all())


def by_org(sql: Connection, found: Conversations) -> Mapping[UUID, Sequence[UUID]]:
    """Return the threads by their orgs."""
    query = select(threads.c.org_id, func.array_agg(threads.c.id)).group_by(threads.c.org_id)
    rows = sql.execute(query.where(is_among(threads.c.id, found.thread_ids)))
    return {row[0]: row[1] for row in rows}


def created_by(sql: Connection, user_id: UUID) -> Conversations:
    """Find the threads that a user has created for no end user, in all orgs."""
    own = select(threads.c.id).where(
        threads.c.created_by_user_id == user_id, threads.c.end_user_id.is_(None)
    )
    return Conversations(sql.scalars(own.order_by(threads.c.id)).all())


def exported(connections: Connections, found: Conversations) -> Iterator[dict[str, Any]]:
    """Yield each thread, message, run and answer to a run with its `type`, thread by thread.

    No connection is held meanwhile: through a pooler its transaction would end while the caller
    writes.
    """
    for thread_id in found.thread_ids:
        with connections.reading() as sql:
            entries = [
                *_rows(sql, "thread", threads.c.id == thread_id),
                *_rows(sql, "message", messages.c.thread_id == thread_id),
                *_runs(sql, runs.c.thread_id == thread_id),
            ]
        yield from entries
    with connections.reading() as sql:
        entries = [
            *_rows(sql, "message", is_among(messages.c.id, found.message_ids)),
            *_runs(sql, is_among(runs.c.id, found.run_ids)),
        ]
    yield from entries


def _runs(sql: Connection, condition: ColumnElement[bool]) -> Iterator[dict[str, Any]]:
    yield from _rows(sql, "run", condition)
    is_given = inputs.c.created_by_user_id.is_not(None)  # else the time was over
    yield from _rows(
        sql, "answer", inputs.c.run_id.in_(select(runs.c.id).where(condition)) & is_given
    )


def _rows(sql: Connection, kind: str, condition: ColumnElement[bool]) -> Iterator[dict[str, Any]]:
    columns = _EXPORTED[kind]
    rows = sql.execute(select(*columns).where(condition).order_by(columns[0])).mappings()
    for row in rows:
        shown = {"type": kind, **row}
        if kind == "run":
            shown["status"] = status_of(shown.pop("state"))
        yield shown


def cancel(tx: Transaction, found: Conversations) -> Sequence[UUID]:
    """Request the cancellation of all runs; returns the orgs in which some have not ended.

    Those that an org has left behind for another cell are not among them.
    """
    ids = {"run_ids": list(found.run_ids), "thread_ids": list(found.thread_ids)}
    return tx.sql.exec_driver_sql(_CANCEL, ids).scalars().all()


def unended(sql: Connection, found: Conversations) -> Sequence[UUID]:
    """Return the runs of these conversations that have not ended."""
    theirs = is_among(runs.c.id, found.run_ids) | is_among(runs.c.thread_id, found.thread_ids)
    return sql.scalars(select(runs.c.id).where(theirs, runs.c.ended_at.is_(None))).all()


def file_ids(sql: Connection, found: Conversations) -> set[UUID]:
    """Return the files that messages and tool results of these conversations name, and others do
    not.
    """
    theirs = {
        "thread_ids": list(found.thread_ids),
        "run_ids": list(found.run_ids),
        "message_ids": list(found.message_ids),
    }
    return {UUID(file_id) for file_id in sql.exec_driver_sql(_FILES, theirs).scalars()}


def delete_threads(tx: Transaction, thread_ids: Sequence[UUID]) -> tuple[int, int] | None:
    """Delete the threads with all that is in them; returns the numbers of messages and runs.

    Their events are collected by the sweep, as those of old runs. Does nothing, and returns None,
    if a run has not ended, unless its org has left it behind for another cell.
    """
    tx.sql.execute(select(threads.c.id).where(threads.c.id.in_(thread_ids)).with_for_update())
    of_threads = runs.c.thread_id.in_(thread_ids)
    found = tx.sql.execute(select(runs.c.id, runs.c.org_id, _IS_OVER).where(of_threads)).all()
    if not all(run.is_over for run in found):
        return None
    _release_left(tx, of_threads)
    count = select(func.count()).where(messages.c.thread_id.in_(thread_ids))
    message_count = tx.sql.scalar(count) or 0
    tx.sql.execute(delete(threads).where(threads.c.id.in_(thread_ids)))
    _forget(tx, [(run.org_id, run.id) for run in found])
    return message_count, len(found)


def prompted_later(sql: Connection, found: Conversations) -> Sequence[UUID]:
    """Return the runs of others whose stored prompts, summaries in events and checkpoints may have
    messages of the single runs.
    """
    return sql.exec_driver_sql(_PROMPTED_LATER, _from(_places(sql, found), found)).scalars().all()


def forget_prompts(tx: Transaction, run_ids: Sequence[UUID], first: Mapping[UUID, int]) -> None:
    """Forget what vendors received of these runs, how they have summed it up, and checkpoints of
    those that have ended; the runs and their events stay.

    By `first_places`, a summary of what comes before them stays, too, as it does in its thread.
    """
    have_ended = select(runs.c.id).where(is_among(runs.c.id, run_ids), runs.c.ended_at.is_not(None))
    tx.sql.execute(delete(agent_checkpoints).where(agent_checkpoints.c.run_id.in_(have_ended)))
    of_runs = is_among(run_events.c.run_id, run_ids)
    are_stored = run_events.c.prompts.is_not(None)
    tx.sql.execute(update(run_events).where(of_runs, are_stored).values(prompts=None))
    payload = cast(run_events.c.payload, JSON)
    summary, upto = payload[("data", "summary")], payload[("data", "upto_position")]
    is_summed_up = (run_events.c.type == ContextCompacted.type) & summary.is_not(None)
    key = (run_events.c.run_id, run_events.c.seq)
    query = select(
        *key,
        run_events.c.payload,
        upto.as_integer().label("upto"),
        runs.c.thread_id,
        runs.c.ended_at,
    ).join(runs, runs.c.id == key[0])
    for event in tx.sql.execute(query.where(of_runs, is_summed_up)).all():
        if event.upto < first.get(event.thread_id, 0):
            continue
        is_it = (key[0] == event.run_id) & (key[1] == event.seq)
        left = without_summary(event.payload, is_void=event.ended_at is None)
        tx.sql.execute(update(run_events).where(is_it).values(payload=left))


def delete_messages(tx: Transaction, message_ids: Sequence[UUID]) -> None:
    """Delete messages, and the offers of them. Those that have steered runs which stay are emptied,
    there and in the events of these runs.

    By their places it is known what these runs answer.
    """
    theirs = is_among(messages.c.id, message_ids)
    emptied = (
        update(messages)
        .where(is_among(messages.c.id, _empty_steered(tx, message_ids)))
        # Others are still offered: without the offer, no end of a run gives them their places.
        .where(messages.c.steered_into.is_not(None) | (messages.c.position < FIRST_WAITING))
        .values(content=ERASED, parts=null(), metadata={}, end_user_id=None)
    )
    kept = tx.sql.scalars(emptied.returning(messages.c.id)).all()
    tx.sql.execute(delete(messages).where(theirs, not_(is_among(messages.c.id, kept))))


def _empty_steered(tx: Transaction, message_ids: Collection[UUID]) -> set[UUID]:
    """Remove these messages from events of runs; returns those that had one."""
    # By ids of what does not change: in a join, Postgres may read all runs and events from end to
    # end. A run may end between two statements: whatever its end changes is read in one.
    theirs = is_among(messages.c.id, message_ids)
    thread_ids = set(tx.sql.scalars(select(messages.c.thread_id).where(theirs)))
    steered = select(runs.c.id).where(
        is_among(runs.c.thread_id, thread_ids),
        or_(
            runs.c.id.in_(select(messages.c.steered_into).where(theirs)),
            # No message refers to a run that was rolled back or retried, or has not ended.
            runs.c.superseded_at.is_not(None),
            runs.c.ended_at.is_(None),
        ),
    )
    of_steered = is_among(run_events.c.run_id, tx.sql.scalars(steered).all())
    key = (run_events.c.run_id, run_events.c.seq)
    delivered = select(*key, run_events.c.payload).where(
        of_steered, run_events.c.type == RunSteered.type
    )
    wanted, found = frozenset(message_ids), set()
    for event in tx.sql.execute(delivered).all():
        message_id = UUID(event_log.data_of(event.payload)["message_id"])
        if message_id in wanted:
            is_it = (key[0] == event.run_id) & (key[1] == event.seq)
            left = with_content(event.payload, ERASED)
            tx.sql.execute(update(run_events).where(is_it).values(payload=left))
            found.add(message_id)
    return found


def first_places(sql: Connection, found: Conversations) -> Mapping[UUID, int]:
    """Return the threads of the single runs and messages, with the first position of these, or of a
    run that was active when the first of these messages was made.

    Those of sub-runs of later runs are among them, with 0: all that they have may repeat these.
    """
    places = _places(sql, found)
    below = sql.exec_driver_sql(_SUB_THREADS_LATER, _from(places, found)).scalars()
    return places | dict.fromkeys(below, 0)


def threads_of_single(sql: Connection, found: Conversations) -> Sequence[UUID]:
    """Return the threads in which these single runs and messages are."""
    return list(_places(sql, found))


def _places(sql: Connection, found: Conversations) -> dict[UUID, int]:
    theirs = {
        "run_ids": list(found.run_ids),
        "message_ids": list(found.message_ids),
        "slot": places.SLOT,
    }
    return {row[0]: row[1] for row in sql.exec_driver_sql(_FIRST_PLACES, theirs)}


def _from(places: Mapping[UUID, int], found: Conversations) -> dict[str, Any]:
    """Return the parameters by which a statement finds the runs from these places on."""
    thread_ids, positions = list(places), list(places.values())
    return {"thread_ids": thread_ids, "positions": positions, "run_ids": list(found.run_ids)}


def forget_summaries(connections: Connections, first: Mapping[UUID, int]) -> None:
    """Delete the summaries of these threads that have what stands at these positions or later, in
    one transaction each.

    The lock waits for one that is being stored.
    """
    for thread_id, position in first.items():
        with connections.transaction() as tx:
            tx.sql.execute(select(threads.c.id).where(threads.c.id == thread_id).with_for_update())
            thread_contexts.forget(tx, thread_id, literal(position - 1))


def delete_single(tx: Transaction, found: Conversations) -> None:
    """Delete the single runs, which are over, their messages, and what `forget_prompts` forgets of
    later runs of others.
    """
    forget_prompts(tx, prompted_later(tx.sql, found), first_places(tx.sql, found))
    theirs = is_among(runs.c.id, found.run_ids)
    _release_left(tx, theirs)
    gone = delete(runs).where(theirs, _IS_OVER)
    ended = tx.sql.execute(gone.returning(runs.c.org_id, runs.c.id)).all()
    _forget(tx, [(run.org_id, run.id) for run in ended])
    delete_messages(tx, found.message_ids)


def _release_left(tx: Transaction, condition: ColumnElement[bool]) -> None:
    """Release the reservations of runs that an org has left behind for another cell, before their
    rows go: the sweep would charge them. Where the org is, they are charged.
    """
    left = select(runs.c.id, runs.c.org_id).where(condition, runs.c.ended_at.is_(None), _IS_OVER)
    found = tx.sql.execute(left.order_by(runs.c.id).with_for_update()).all()
    budgets.lock(tx, [run.id for run in found])
    for run in found:
        budgets.release(tx, org_id=run.org_id, run_id=run.id, cost_usd=budgets.NOTHING)


def _forget(tx: Transaction, run_ids: Sequence[tuple[UUID, UUID]]) -> None:
    """Forget what outlives the rows of these runs, (org, run), which are deleted already."""
    spending.forget_runs(tx.sql, run_ids)
    usage_reports.forget_runs(tx, [run_id for _, run_id in run_ids])
    for org_id in {org_id for org_id, _ in run_ids}:
        deliveries.forget_runs(tx, org_id, [run_id for of, run_id in run_ids if of == org_id])
