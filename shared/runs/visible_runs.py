"""The visibility of runs in threads that have very many of them.

A run's row stores who sees it, and a change of the thread writes all of its runs (decision 12). For
very many that takes longer than a statement of a request may, each time that it is repeated. So
they are written in batches, each in a transaction of its own, with the metadata of their usage:

- Where a thread becomes private, its runs come first, and then the thread. The creator sees all of
  them meanwhile. If the request does not come to its end, they are seen by all again.
- Where it is deleted or becomes public, the thread comes first, with its newest runs, by a trigger.
  The request writes others for some seconds, and the sweep what is left then.
"""

import time
from contextlib import suppress
from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import RowMapping, Select, func, select, update

from arkloop.shared.actors import Actor
from arkloop.shared.errors import Unavailable
from arkloop.shared.storage.connections import Connections, Transaction
from arkloop.shared.storage.sql_files import statement
from arkloop.shared.storage.tables.runs import runs
from arkloop.shared.storage.tables.threads import threads as threads_table
from arkloop.shared.threads import threads
from arkloop.shared.threads.end_users import check_changes
from arkloop.shared.threads.visibility import visible

#: Runs that the trigger writes together with their thread (migration 0079).
WRITTEN_WITH_THREAD = 200
#: Runs that one transaction writes: some hundredths of a second, or some tenths with as much
#: metadata as a run may have.
WRITTEN_AT_ONCE = 100
#: A request ends after this time even if more is left.
REQUEST_SECONDS = 5.0
#: A pass of the sweep, too: lost runs wait for it.
PASS_SECONDS = 1.0
#: After its last request, the change of a thread to private is given up.
GIVEN_UP_AFTER = timedelta(minutes=2)

#: Behind every run.
BEHIND_ALL = 2**63 - 1

_IS_PUBLIC = threads_table.c.visible_to == threads_table.c.org_id
_THREADS_AT_ONCE = 100
_CORRECT_RUNS = statement(__package__, "correct_visible_runs")
_CORRECT_REPORTS = statement(__package__, "correct_reported_runs")
_FIND_DUE = statement(__package__, "find_threads_due")


def hide_ahead(connections: Connections, actor: Actor, thread_id: UUID) -> None:
    """Let nobody but the creator of a public thread see its ended runs, before it becomes private.

    Does nothing if they are few. The sweep undoes it if the thread stays public.

    Raises:
        ThreadNotFound, Forbidden
        Unavailable: not all are written yet; another request keeps the thread public; or Postgres
            is out of reach.
    """
    with connections.reading() as sql:
        if sql.scalar(_many(actor, thread_id)) is None:
            return
    ends_at = time.monotonic() + REQUEST_SECONDS
    _begin_hiding(connections, actor, thread_id)
    while True:
        with connections.transaction() as tx:
            is_left = _hide_some(tx, thread_id)
        if not is_left:
            return
        if time.monotonic() > ends_at:
            raise Unavailable(
                "The runs of this thread are very many and are being made private; the thread is"
                " still public. Send the request again to continue."
            ).after(1)


def _many(actor: Actor, thread_id: UUID) -> Select[Any]:
    """Select the thread if the actor sees it, it is public, and it has very many runs."""
    beyond = (
        select(runs.c.position)
        .where(runs.c.thread_id == threads_table.c.id)
        .order_by(runs.c.position.desc())
        .offset(WRITTEN_WITH_THREAD)
        .limit(1)
        .correlate(threads_table)
    )
    return select(threads_table.c.id).where(
        threads_table.c.id == thread_id,
        visible(actor),
        _IS_PUBLIC,
        beyond.scalar_subquery().is_not(None),
    )


def _begin_hiding(connections: Connections, actor: Actor, thread_id: UUID) -> None:
    """Note that runs of the thread will differ from it: none of it is corrected for some time."""
    noted = update(threads_table).where(threads_table.c.id == thread_id, _IS_PUBLIC)
    noted = noted.values(runs_due_at=func.now() + GIVEN_UP_AFTER, runs_due_upto=BEHIND_ALL)
    with connections.transaction() as tx:
        threads.lock(tx, actor, thread_id)
        check_changes(actor, {"is_private": True})
        tx.sql.execute(noted)


def _hide_some(tx: Transaction, thread_id: UUID) -> bool:
    """Hide a batch of runs, behind those that a request has hidden; return whether more are left.

    Runs that were created since then are few, and are changed with the thread.

    Raises:
        Unavailable: the thread stays public. Another request has taken the change back.
    """
    thread = _locked(tx, thread_id, _IS_PUBLIC)
    if thread is None:
        return False
    if not thread["is_being_hidden"]:
        # Nothing would show them again.
        raise Unavailable(
            "Another request has kept this thread public meanwhile. Send the request again to"
            " make it private."
        ).after(1)
    hidden_from = thread["runs_hidden_from"]
    upto = _write_some(
        *(tx, thread_id, BEHIND_ALL if hidden_from is None else hidden_from - 1),
        visible_to=thread["created_by_user_id"],
        is_private=True,
    )
    if upto is None:
        return False
    _note(tx, thread_id, runs_hidden_from=upto + 1)
    return True


def finish(connections: Connections, thread_id: UUID) -> None:
    """Correct runs of a thread that has been changed, for as long as a request may take."""
    # The thread is changed already: the sweep does what is left.
    with suppress(Unavailable):
        _correct(connections, thread_id, time.monotonic() + REQUEST_SECONDS)


def correct_left(connections: Connections) -> bool:
    """Correct runs that have another visibility than their thread; returns whether more are left.

    Raises:
        Unavailable: Postgres is out of reach.
    """
    ends_at = time.monotonic() + PASS_SECONDS
    with connections.reading() as sql:
        due = sql.exec_driver_sql(_FIND_DUE, {"most": _THREADS_AT_ONCE}).scalars().all()
    for thread_id in due:
        if _correct(connections, thread_id, ends_at) or time.monotonic() > ends_at:
            return True
    return len(due) == _THREADS_AT_ONCE


def _correct(connections: Connections, thread_id: UUID, ends_at: float) -> bool:
    """Correct runs of a thread until then, one batch at least; returns whether more are left."""
    while True:
        with connections.transaction() as tx:
            is_left = _correct_some(tx, thread_id)
        if not is_left or time.monotonic() > ends_at:
            return is_left


def _correct_some(tx: Transaction, thread_id: UUID) -> bool:
    thread = _locked(tx, thread_id, threads_table.c.runs_due_at <= func.now())
    if thread is None:
        return False
    upto = _write_some(
        *(tx, thread_id, thread["runs_due_upto"]),
        visible_to=thread["visible_to"],
        is_private=thread["is_private"],
    )
    progress: dict[str, Any] = {"runs_due_upto": upto, "runs_hidden_from": None}
    if upto is None:
        progress["runs_due_at"] = None
    _note(tx, thread_id, **progress)
    return upto is not None


def _note(tx: Transaction, thread_id: UUID, **progress: Any) -> None:
    tx.sql.execute(update(threads_table).where(threads_table.c.id == thread_id).values(progress))


def _locked(tx: Transaction, thread_id: UUID, *conditions: Any) -> RowMapping | None:
    """Lock the thread, so that nobody changes meanwhile who sees it."""
    names = ("visible_to", "is_private", "created_by_user_id", "runs_due_upto", "runs_hidden_from")
    # By the time at which the row is locked: the change may be taken back while this waits for it.
    is_ahead = threads_table.c.runs_due_at > func.clock_timestamp()
    query = select(*(threads_table.c[name] for name in names), is_ahead.label("is_being_hidden"))
    query = query.where(threads_table.c.id == thread_id, *conditions)
    return tx.sql.execute(query.with_for_update(key_share=True)).mappings().one_or_none()


def _write_some(
    tx: Transaction, thread_id: UUID, upto: int, *, visible_to: UUID | None, is_private: bool
) -> int | None:
    """Write a batch of ended runs; return up to which position others follow, None if none does."""
    values: dict[str, Any] = {"thread_id": thread_id, "upto": upto}
    of_runs = {**values, "visible_to": visible_to, "most": WRITTEN_AT_ONCE}
    since: int | None = tx.sql.exec_driver_sql(_CORRECT_RUNS, of_runs).scalar_one()
    if since is None:
        return None
    # Of a deleted thread, too: a request may have hidden its runs, whose usage stays in reports.
    of_reports = {**values, "since": since, "is_private": is_private}
    tx.sql.exec_driver_sql(_CORRECT_REPORTS, of_reports)
    return since - 1
