"""Erasures of an end user that are broken off, and repeated."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pytest
from sqlalchemy import select, text, update

from arkloop.shared.accounts import erasure
from arkloop.shared.accounts.erasure import RunsGoOn
from arkloop.shared.audit import audit_log
from arkloop.shared.errors import Unavailable
from arkloop.shared.runs import offered_messages
from arkloop.shared.storage.connections import Connections, connect
from arkloop.shared.storage.postgres import COMMAND_TIMEOUTS
from arkloop.shared.storage.tables.accounts import erasures
from arkloop.shared.storage.tables.threads import messages, threads
from arkloop.shared.threads import thread_contexts
from tests.end_users import ANN, BOB
from tests.shared.accounts.test_erasure_shared_threads import erase
from tests.shared.accounts.test_erasure_steered_runs import sum_up, summaries
from tests.shared.accounts.test_erasure_summaries import POINT, ann_asks, of, words
from tests.shared.runs.busy_thread import BusyThread
from tests.stored_runs import StoredRuns
from tests.waiting import eventually

_WAITING = """
SELECT pid FROM pg_stat_activity
WHERE datname = current_database() AND application_name = 'erasure' AND wait_event_type = 'Lock'
"""


@pytest.fixture
def command(stored: StoredRuns) -> Iterator[Connections]:
    """Connections as `arkloop end-users erase` has them."""
    opened = connect(stored.connections.settings, application="erasure", timeouts=COMMAND_TIMEOUTS)
    yield opened
    opened.close()


def waiting(connections: Connections) -> list[int]:
    """Return the sessions of the erasure that wait for a lock."""
    with connections.reading() as sql:
        return list(sql.scalars(text(_WAITING)))


def ann_has_gone(thread: BusyThread) -> bool:
    return not any("Ann" in said for said in thread.texts())


@pytest.mark.parametrize("is_early", [True, False], ids=["before the record", "after the record"])
def test_no_summary_is_left_by_an_erasure_that_is_broken_off_after_its_last_commit(
    stored: StoredRuns, command: Connections, is_early: bool
) -> None:
    """An active run sums up what that transaction deletes, by which a repetition would find it."""
    thread, connections = BusyThread(stored), stored.connections
    ann_asks(thread)
    claim = thread.claim(thread.say("Bob asks", end_user_id=BOB).run_id)
    said = select(messages.c.id).where(messages.c.thread_id == thread.id)

    def sum_up() -> None:
        with connections.statement() as tx:
            thread_contexts.move(tx, claim, POINT)

    with ThreadPoolExecutor(1) as pool, connections.transaction() as late:
        with connections.transaction() as early:
            early.sql.execute(said.with_for_update())
            with connections.transaction() as first:
                first.sql.execute(text("LOCK TABLE erasures IN SHARE MODE"))
                erased = pool.submit(erasure.erase_end_user, command, stored.actor.org_id, ANN)
                eventually(lambda: bool(waiting(connections)))
                if is_early:
                    sum_up()
            eventually(lambda: bool(records(stored) and waiting(connections)))
            if not is_early:
                sum_up()
            late.sql.execute(select(threads.c.id).where(of(thread)).with_for_update())
        eventually(lambda: ann_has_gone(thread) and bool(waiting(connections)))
        late.sql.execute(text(f"SELECT pg_cancel_backend(pid) FROM ({_WAITING}) AS waiting"))
        assert isinstance(erased.exception(60), Unavailable)

    assert [] == words(thread)


def test_an_erasure_that_is_broken_off_in_its_last_transaction_has_a_record(
    stored: StoredRuns, command: Connections
) -> None:
    """The record has what was deleted until then. The repetition has one of its own, which alone
    the audit log names.
    """
    thread, own, connections = BusyThread(stored), BusyThread(stored), stored.connections
    with connections.transaction() as tx:
        tx.sql.execute(update(threads).where(of(own)).values(end_user_id=ANN))
    ann_asks(thread)
    said = select(messages.c.id).where(messages.c.thread_id == thread.id)
    with ThreadPoolExecutor(1) as pool, connections.transaction() as tx:
        tx.sql.execute(said.with_for_update())
        erased = pool.submit(erasure.erase_end_user, command, stored.actor.org_id, ANN)
        eventually(lambda: bool(waiting(connections)))
        tx.sql.execute(text(f"SELECT pg_cancel_backend(pid) FROM ({_WAITING}) AS waiting"))
        assert isinstance(erased.exception(60), Unavailable)
    assert [(1, 0)] == records(stored)

    erasure.erase_end_user(command, stored.actor.org_id, ANN)

    assert [(1, 0), (0, 1)] == records(stored)
    of_org = erasures.c.org_id == stored.actor.org_id
    with connections.reading() as sql:
        newest = sql.scalar(select(erasures.c.id).where(of_org, erasures.c.runs == 1))
        logged = audit_log.list_(sql, stored.actor.org_id, {}, limit=9, before=None)
    assert [("end_user.erased", str(newest))] == [(row.action, row.target_id) for row in logged]


def records(stored: StoredRuns) -> list[tuple[int, int]]:
    """Return the numbers of threads and runs of each."""
    of_org = erasures.c.org_id == stored.actor.org_id
    query = select(erasures.c.threads, erasures.c.runs).where(of_org).order_by(erasures.c.id)
    with stored.connections.reading() as sql:
        return [(row.threads, row.runs) for row in sql.execute(query)]


def test_a_remark_that_comes_while_offers_are_read_leaves_no_summary(
    stored: StoredRuns, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The erasure takes back only what it has read; the rest it finds as all other messages."""
    thread = BusyThread(stored)
    run_id = thread.say("Bob asks", end_user_id=BOB).run_id
    claim = thread.claim(run_id)
    position = stored.row(run_id)["position"]
    read = offered_messages.by_run

    def read_then_remark(*args: Any, **whose: Any) -> Any:
        found = read(*args, **whose)
        thread.say("Ann remarks", "steer", end_user_id=ANN)
        sum_up(thread, claim, position, "Ann remarks.")
        return found

    with monkeypatch.context() as busy, suppress(RunsGoOn):
        busy.setattr(offered_messages, "by_run", read_then_remark)
        erase(thread)
    erase(thread)

    assert [] == summaries(thread)
