"""The order of a thread's runs, whatever the clock of Postgres has said."""

from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Connection, RowMapping, create_engine, text, update

from arkloop.shared.runs import thread_order
from arkloop.shared.storage.connections import Connections
from arkloop.shared.storage.tables.runs import runs
from tests.query_plans import Plans, sent
from tests.shared.runs.busy_thread import LATER, BusyThread
from tests.stored_runs import StoredRuns, add_copies, ago

#: Of one thread; one in ten has waited for it and was cancelled before its turn.
MANY = """
INSERT INTO runs (id, org_id, thread_id, created_by_user_id, trace_id, persona_id, route_id, model,
    position, state, created_at, queued_at, ended_at)
SELECT gen_random_uuid(), org_id, id, created_by_user_id, '', 'a@1', 'a', 'm',
    CASE WHEN i % 10 = 0 THEN (1::bigint << 52) ELSE 10 END + i,
    CASE WHEN i % 10 = 0 THEN 'cancelled' ELSE 'completed' END,
    now() - make_interval(secs => 20000 - i), now(), now()
FROM threads, generate_series(1, 20000) AS i WHERE id = :thread_id
"""


@pytest.fixture
def thread(stored: StoredRuns) -> BusyThread:
    return BusyThread(stored)


def answered(thread: BusyThread, text: str, **columns: Any) -> UUID:
    """Let a run answer this message; `columns` of its row are set then."""
    run_id = thread.say(text).run_id
    thread.stored.finish(thread.claim(run_id))
    if columns:
        thread.stored.set(run_id, **columns)
    return run_id


def newest(thread: BusyThread, run_id: UUID, but: UUID) -> UUID | None:
    with thread.stored.connections.reading() as sql:
        return thread_order.newest(sql, thread.stored.row(run_id), but=but)


def before(thread: BusyThread, run_id: UUID) -> UUID | None:
    with thread.stored.connections.reading() as sql:
        found = thread_order.before(sql, thread.stored.row(run_id))
    return None if found is None else found[0]


def following(thread: BusyThread, run_id: UUID, *, skips_failed: bool = False) -> list[UUID]:
    run = thread.stored.row(run_id)
    with thread.stored.connections.reading() as sql:
        return [one["id"] for one in thread_order.following(sql, run, skips_failed=skips_failed)]


def set_others(thread: BusyThread, run_id: UUID, **columns: Any) -> None:
    """Set these columns of all runs of the thread but this one."""
    others = update(runs).where(runs.c.thread_id == thread.id, runs.c.id != run_id)
    with thread.stored.connections.transaction() as tx:
        tx.sql.execute(others.values(columns))


def is_after(thread: BusyThread, run_id: UUID, other: UUID) -> bool:
    return thread_order.is_after(thread.stored.row(run_id), thread.stored.row(other))


def test_a_clock_that_was_set_back_changes_nothing(thread: BusyThread) -> None:
    """The last run is the one that was created last, also where its time is not the latest."""
    first = answered(thread, "1", created_at=ago(seconds=-3600))
    second = answered(thread, "2")
    third = thread.say("3").run_id
    assert second == newest(thread, second, but=third)
    fourth = thread.say("4").run_id
    thread.stored.set(third, created_at=ago(seconds=7200))

    assert third == newest(thread, third, but=fourth)
    assert [None, first, second, third] == [
        before(thread, run_id) for run_id in (first, second, third, fourth)
    ]
    assert is_after(thread, third, second) and not is_after(thread, first, second)


def test_a_run_that_was_cancelled_before_its_turn_is_behind_no_other(thread: BusyThread) -> None:
    """It can be continued itself, for as long as no other run was created after it."""
    first, second = thread.say("1").run_id, thread.say("2").run_id
    thread.stored.cancel(second)
    thread.stored.finish(thread.claim(first))
    third = thread.say("3").run_id

    assert first == newest(thread, first, but=third)
    assert second == newest(thread, second, but=third)
    assert (first, first) == (before(thread, second), before(thread, third))
    assert is_after(thread, third, second) and is_after(thread, second, first)
    fourth = thread.say("4").run_id
    assert third == newest(thread, second, but=fourth)
    thread.stored.set(third, position=10, state="completed", ended_at=ago())
    assert [third, fourth] == following(thread, second)


def test_a_run_for_later_is_behind_no_other(thread: BusyThread) -> None:
    """The conversation continues before its time has come."""
    first = answered(thread, "1")
    later = thread.say("2", not_before=LATER).run_id
    third = thread.say("3").run_id

    assert first == newest(thread, first, but=third)
    assert (first, first) == (before(thread, later), before(thread, third))
    assert [third] == following(thread, first)


@pytest.mark.parametrize(
    "columns", [{"superseded_at": ago()}, {"state": "failed"}, {"state": "cancelled"}]
)
def test_runs_that_do_not_count_are_not_among_the_next(
    thread: BusyThread, columns: dict[str, Any]
) -> None:
    """Superseded runs never count; failed and cancelled ones may be left out, however many."""
    first = answered(thread, "1")
    add_copies(thread.stored.connections, first, 30)
    set_others(thread, first, **columns)
    last = answered(thread, "2")

    assert [last] == following(thread, first, skips_failed=True)
    expected = 1 if "superseded_at" in columns else 20
    assert expected == len(following(thread, first, skips_failed=False))


def test_the_next_runs_are_looked_for_among_a_thousand(thread: BusyThread) -> None:
    """A client that repeats what always fails makes its own requests no slower."""
    first = answered(thread, "1")
    add_copies(thread.stored.connections, first, thread_order.MOST_READ)
    set_others(thread, first, state="failed")
    answered(thread, "2")

    assert [] == following(thread, first, skips_failed=True)


@pytest.mark.owner
def test_two_rows_of_a_long_thread_are_read(connections: Connections, thread: BusyThread) -> None:
    """Each by the end of an index, however many runs have been cancelled before their turn."""
    first = answered(thread, "1")
    engine = create_engine(connections.settings.database_url)  # without a limit on time
    with engine.begin() as sql:
        sql.execute(text(MANY), {"thread_id": thread.id})
    with engine.connect() as sql:
        sql.execution_options(isolation_level="AUTOCOMMIT").execute(text("VACUUM ANALYZE runs"))
    engine.dispose()
    run = thread.stored.row(first)

    def plans(ask: Callable[[Connection, RowMapping], object]) -> Plans:
        [statement] = sent(connections, lambda sql: ask(sql, run))
        return Plans(connections, statement)

    def the_next(sql: Connection, run: RowMapping) -> object:
        return thread_order.following(sql, run, skips_failed=True)

    ends = {"ix_runs_thread_id_position", "ix_runs_waiting_thread_id_position"}
    plans(lambda sql, run: thread_order.newest(sql, run, but=first)).check(ends)
    plans(lambda sql, run: thread_order.newest(sql, run, but=first, even_failed=first)).check(ends)
    plans(thread_order.before).check({*ends, "pk_runs", "pk_run_events"})
    plans(the_next).check({"ix_runs_thread_id_position"})
    thread.stored.set(first, position=1 << 52, state="cancelled")
    run = thread.stored.row(first)
    plans(the_next).check({"ix_runs_thread_id_created_at_id"})
