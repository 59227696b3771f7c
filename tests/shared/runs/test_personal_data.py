"""Conversations of an end user: which threads belong to them."""

from dataclasses import replace
from uuid import UUID

import pytest
from sqlalchemy import func, select, update

from arkloop.shared.runs import personal_data, thread_changes
from arkloop.shared.runs.personal_data import Conversations
from arkloop.shared.runs.states import RunState
from arkloop.shared.storage.tables.runs import runs
from arkloop.shared.storage.tables.threads import threads
from tests.clients import Register, User
from tests.shared.runs.busy_thread import LATER, BusyThread
from tests.shared.runs.delegated_runs import delegated
from tests.shared.runs.test_queries import actor_of, beside
from tests.stored_runs import StoredRuns


def test_threads_of_sub_runs_outlive_their_runs(stored: StoredRuns) -> None:
    """Threads on all levels are an end user's after the retention has deleted the runs."""
    root = stored.claimed()
    child = delegated(stored, root)
    grandchild = delegated(stored, stored.held(child.run_id))
    thread_id = stored.row(root.run_id)["thread_id"]
    # That of the root last: the others are found by it if an erasure is broken off.
    expected = [*sorted([child.thread_id, grandchild.thread_id]), thread_id]
    of_org = runs.c.org_id == stored.actor.org_id
    with stored.connections.transaction() as tx:
        named = update(threads).where(threads.c.id == thread_id).values(end_user_id="ann")
        tx.sql.execute(named)

    def found() -> list[object]:
        with stored.connections.reading() as sql:
            return [*personal_data.of_end_user(sql, stored.actor.org_id, "ann").thread_ids]

    assert expected == found()
    with stored.connections.transaction() as tx:
        assert 3 == tx.sql.execute(runs.delete().where(of_org)).rowcount
    assert expected == found()


def test_private_threads_of_others_below_a_users_are_not_the_users(
    stored: StoredRuns, register: Register, alice: User
) -> None:
    """They stay another member's when the thread at the top becomes private."""
    bob = replace(stored, actor=actor_of(register(org_of=alice, role="admin"), "admin"))
    thread_id = stored.thread()
    root = bob.held(bob.create(thread_id))
    mine, theirs = delegated(bob, root), delegated(bob, root)
    for actor, changed in ((bob.actor, theirs.thread_id), (stored.actor, thread_id)):
        with stored.connections.transaction() as tx:
            thread_changes.change(tx, actor, changed, is_private=True)

    with stored.connections.reading() as sql:
        found = [personal_data.of_user(sql, one.actor.user_id) for one in (stored, bob)]

    assert [[mine.thread_id, thread_id], [theirs.thread_id]] == [one.thread_ids for one in found]


@pytest.mark.parametrize("is_gone", [False, True])
def test_threads_that_a_user_has_shared_are_not_private(stored: StoredRuns, is_gone: bool) -> None:
    """They stay the org's below a private thread, until they are deleted with it."""
    root = stored.claimed()
    thread_id = stored.row(root.run_id)["thread_id"]
    shared, private = (delegated(stored, root).thread_id for _ in range(2))
    for changed, is_private in ((thread_id, True), (shared, False)):
        with stored.connections.transaction() as tx:
            thread_changes.change(tx, stored.actor, changed, is_private=is_private)
    if is_gone:
        stored.set(root.run_id, state=RunState.CANCELLED, ended_at=func.now(), owner=None)
        with stored.connections.transaction() as tx:
            thread_changes.delete(tx, stored.actor, thread_id)

    with stored.connections.reading() as sql:
        found = personal_data.of_user(sql, stored.actor.user_id).thread_ids

    below = [shared, private] if is_gone else [private]
    assert [*sorted(below), thread_id] == found


def cancel(stored: StoredRuns, *thread_ids: UUID) -> None:
    with stored.connections.transaction() as tx:
        personal_data.cancel(tx, Conversations(thread_ids))


def test_runs_are_cancelled_while_a_sub_run_ends(stored: StoredRuns) -> None:
    """The end of the sub-run has its row and needs that of its parent: there is no deadlock."""
    root = stored.claimed()
    child = delegated(stored, root)
    thread_id = UUID(str(stored.row(root.run_id)["thread_id"]))
    with stored.connections.transaction() as tx:
        lock = select(runs.c.id).with_for_update(key_share=True)
        tx.sql.execute(lock.where(runs.c.id == child.run_id))
        join = beside(stored.connections, lambda: cancel(stored, thread_id, child.thread_id))
        tx.sql.execute(lock.where(runs.c.id == root.run_id))
    join()

    for run_id in (root.run_id, child.run_id):
        assert stored.row(run_id)["cancel_requested_at"] is not None


@pytest.mark.parametrize("is_scheduled", [False, True])
def test_runs_of_a_busy_thread_are_cancelled_in_the_order_of_its_queue(
    stored: StoredRuns, is_scheduled: bool
) -> None:
    """The end of the active run needs those that wait next; scheduled ones are locked before."""
    thread = BusyThread(stored)
    more = {"not_before": LATER} if is_scheduled else {}
    active = thread.say("first").run_id
    waiting = thread.say("second", **more).run_id
    # Where Postgres finds the rows is not the order in which they are locked.
    stored.set(waiting if is_scheduled else active, metadata={"moved": "yes"})
    first, second = (waiting, active) if is_scheduled else (active, waiting)
    with stored.connections.transaction() as tx:
        lock = select(runs.c.id).with_for_update(key_share=True)
        tx.sql.execute(lock.where(runs.c.id == first))
        join = beside(stored.connections, lambda: cancel(stored, thread.id))
        tx.sql.execute(lock.where(runs.c.id == second))
    join()

    for run_id in (active, waiting):
        assert stored.row(run_id)["cancel_requested_at"] is not None
