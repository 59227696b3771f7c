"""Changes of threads, and what becomes of their runs and of the threads below them."""

from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import func, select

from arkloop.shared.errors import ThreadBusy
from arkloop.shared.runs import thread_changes
from arkloop.shared.runs.delegation import NotDelegated, SubRun
from arkloop.shared.runs.endings import Outcome
from arkloop.shared.runs.states import RunState
from arkloop.shared.storage.tables.runs import runs
from arkloop.shared.storage.tables.threads import threads
from arkloop.shared.threads import threads as thread_rows
from tests.clients import Register, User
from tests.shared.runs.busy_thread import LATER, BusyThread
from tests.shared.runs.delegated_runs import begun, delegate, delegated
from tests.shared.runs.test_endings import completed
from tests.shared.runs.test_queries import actor_of, beside, listed
from tests.stored_runs import StoredRuns


@pytest.fixture
def bob(stored: StoredRuns, register: Register, alice: User) -> StoredRuns:
    """Runs of an admin of alice's org."""
    actor = actor_of(register(org_of=alice, role="admin"), "admin")
    return replace(stored, actor=actor)


def change(stored: StoredRuns, thread_id: UUID, **changes: Any) -> None:
    with stored.connections.transaction() as tx:
        thread_changes.change(tx, stored.actor, thread_id, **changes)


def visible_to(stored: StoredRuns, sub_run: SubRun) -> set[UUID | None]:
    """Return who sees a sub-run and its thread, by the rows of both."""
    with stored.connections.reading() as sql:
        return {
            sql.scalar(select(table.c.visible_to).where(table.c.id == id_))
            for table, id_ in ((runs, sub_run.run_id), (threads, sub_run.thread_id))
        }


def test_sub_runs_on_all_levels_are_seen_as_the_first_thread_is(
    stored: StoredRuns, bob: StoredRuns
) -> None:
    """They follow it when it becomes private, public again and deleted."""
    root = stored.claimed()
    thread_id = stored.row(root.run_id)["thread_id"]
    child = delegated(stored, root)
    grandchild = delegated(stored, stored.held(child.run_id))
    ids = {root.run_id, child.run_id, grandchild.run_id}

    for is_private, others in ((True, set()), (False, ids)):
        change(stored, thread_id, is_private=is_private)
        assert ids == set(listed(stored.connections, stored.actor))
        assert others == set(listed(stored.connections, bob.actor))
    stored.set(root.run_id, state=RunState.CANCELLED, ended_at=func.now(), owner=None)
    with stored.connections.transaction() as tx:
        thread_changes.delete(tx, stored.actor, thread_id)

    assert [] == listed(stored.connections, stored.actor)
    assert {None} == visible_to(stored, child) == visible_to(stored, grandchild)


def test_threads_of_sub_runs_that_are_gone_are_seen_as_the_first_thread_is(
    stored: StoredRuns,
) -> None:
    """Messages of sub-runs whose runs the retention has deleted are hidden with the thread."""
    root = stored.claimed()
    thread_id = stored.row(root.run_id)["thread_id"]
    child = delegated(stored, root)
    grandchild = delegated(stored, stored.held(child.run_id))
    below = [child.thread_id, grandchild.thread_id]
    with stored.connections.transaction() as tx:
        gone = [root.run_id, child.run_id, grandchild.run_id]
        tx.sql.execute(runs.delete().where(runs.c.id.in_(gone)))

    def seen() -> set[UUID | None]:
        query = select(threads.c.visible_to).where(threads.c.id.in_(below))
        with stored.connections.reading() as sql:
            return {*sql.scalars(query)}

    for is_private, whose in ((True, stored.actor.user_id), (False, stored.actor.org_id)):
        change(stored, thread_id, is_private=is_private)
        assert {whose} == seen()
    with stored.connections.transaction() as tx:
        thread_changes.delete(tx, stored.actor, thread_id)
    assert {None} == seen()


def test_a_new_sub_run_on_a_lower_level_is_taken_along(stored: StoredRuns) -> None:
    """The change to private began when the run on the second level was not there."""
    root = stored.claimed()
    child = stored.held(delegated(stored, root).run_id)
    call_id, thread_id = begun(stored, child), stored.row(root.run_id)["thread_id"]
    with stored.connections.transaction() as tx:
        grandchild = delegate(tx, stored, child, call_id)
        join = beside(stored.connections, lambda: change(stored, thread_id, is_private=True))
    join()

    assert {stored.actor.user_id} == visible_to(stored, grandchild)


def test_a_sub_run_that_waited_for_the_thread_to_become_private_is_private(
    stored: StoredRuns,
) -> None:
    """Its start began when the thread was still public."""
    root = stored.claimed()
    call_id = begun(stored, root)
    started: list[SubRun] = []
    with stored.connections.transaction() as tx:
        thread_id = stored.row(root.run_id)["thread_id"]
        thread_changes.change(tx, stored.actor, thread_id, is_private=True)
        join = beside(stored.connections, lambda: started.append(delegated(stored, root, call_id)))
    join()

    assert {stored.actor.user_id} == visible_to(stored, started[0])


def test_a_thread_that_waited_for_a_new_sub_run_takes_it_along(stored: StoredRuns) -> None:
    """The change to private began when the sub-run was not there."""
    root = stored.claimed()
    call_id, thread_id = begun(stored, root), stored.row(root.run_id)["thread_id"]
    with stored.connections.transaction() as tx:
        child = delegate(tx, stored, root, call_id)
        join = beside(stored.connections, lambda: change(stored, thread_id, is_private=True))
    join()

    assert {stored.actor.user_id} == visible_to(stored, child)


def test_a_sub_run_ends_while_the_thread_becomes_private(stored: StoredRuns) -> None:
    """Its end has its row and needs that of its parent: there is no deadlock."""
    root = stored.claimed()
    child = delegated(stored, root)
    thread_id = stored.row(root.run_id)["thread_id"]
    with stored.connections.transaction() as tx:
        lock = select(runs.c.id).with_for_update(key_share=True)
        tx.sql.execute(lock.where(runs.c.id == child.run_id))
        join = beside(stored.connections, lambda: change(stored, thread_id, is_private=True))
        tx.sql.execute(lock.where(runs.c.id == root.run_id))
    join()

    assert {stored.actor.user_id} == visible_to(stored, child)


def test_sub_runs_of_one_parent_are_cancelled_while_the_thread_becomes_private(
    stored: StoredRuns,
) -> None:
    """Both lock them in one order: there is no deadlock."""
    root = stored.claimed()
    first, second = (delegated(stored, root) for _ in range(2))
    thread_id = stored.row(root.run_id)["thread_id"]
    with stored.connections.transaction() as tx:
        lock = select(runs.c.id).with_for_update(key_share=True)
        tx.sql.execute(lock.where(runs.c.id == first.run_id))
        join = beside(stored.connections, lambda: change(stored, thread_id, is_private=True))
        tx.sql.execute(lock.where(runs.c.id == second.run_id))
    join()

    assert {stored.actor.user_id} == visible_to(stored, first) == visible_to(stored, second)


def test_sub_runs_of_others_are_seen_by_the_creator_of_the_private_thread(
    stored: StoredRuns, bob: StoredRuns
) -> None:
    """Another user's run in a thread that was public starts them, before the change and after."""
    thread_id = stored.thread()
    root = bob.held(bob.create(thread_id))
    before = delegated(bob, root)

    change(stored, thread_id, is_private=True)
    after = delegated(bob, root)

    assert {stored.actor.user_id} == visible_to(stored, before) == visible_to(stored, after)
    assert bob.actor.user_id == stored.row(after.run_id)["created_by_user_id"]


def test_a_private_thread_of_another_member_stays_theirs(
    stored: StoredRuns, bob: StoredRuns
) -> None:
    """Below a thread that becomes private for somebody else, and public again."""
    thread_id = stored.thread()
    child = delegated(bob, bob.held(bob.create(thread_id)))
    change(bob, child.thread_id, is_private=True)

    for is_private in (True, False):
        change(stored, thread_id, is_private=is_private)
        assert {bob.actor.user_id} == visible_to(stored, child)


def owner_of(stored: StoredRuns, thread_id: UUID) -> tuple[UUID, bool, bool]:
    """Return the creator of a thread, and whether it is private and deleted."""
    columns = (threads.c.created_by_user_id, threads.c.is_private, threads.c.deleted_at)
    with stored.connections.reading() as sql:
        row = sql.execute(select(*columns).where(threads.c.id == thread_id)).one()
    return row.created_by_user_id, row.is_private, row.deleted_at is not None


@pytest.mark.parametrize("is_private", [False, True])
def test_a_private_thread_that_is_deleted_with_the_one_above_stays_its_creator_s(
    stored: StoredRuns, bob: StoredRuns, is_private: bool
) -> None:
    """The export and the erasure of that person find it, and those of another one do not."""
    thread_id = stored.thread()
    root = bob.held(bob.create(thread_id))
    child = delegated(bob, root)
    change(bob, child.thread_id, is_private=True)
    change(stored, thread_id, is_private=is_private)
    stored.set(root.run_id, state=RunState.CANCELLED, ended_at=func.now(), owner=None)

    with stored.connections.transaction() as tx:
        thread_changes.delete(tx, stored.actor, thread_id)

    assert (bob.actor.user_id, True, True) == owner_of(stored, child.thread_id)
    assert {None} == visible_to(stored, child)


def test_a_deleted_thread_stays_private_when_the_one_above_becomes_public(
    stored: StoredRuns,
) -> None:
    """The erasure of its creator finds it."""
    root = stored.claimed()
    thread_id = stored.row(root.run_id)["thread_id"]
    child = delegated(stored, root)
    change(stored, thread_id, is_private=True)
    stored.set(child.run_id, state=RunState.CANCELLED, ended_at=func.now(), owner=None)
    with stored.connections.transaction() as tx:
        thread_changes.delete(tx, stored.actor, child.thread_id)

    change(stored, thread_id, is_private=False)

    assert (stored.actor.user_id, True, True) == owner_of(stored, child.thread_id)


def test_an_external_id_that_is_taken_holds_no_change_up(stored: StoredRuns) -> None:
    """The thread of a sub-run that becomes private gives its `external_id` up."""
    root = stored.claimed()
    child = delegated(stored, root)
    change(stored, child.thread_id, external_id="x")
    with stored.connections.transaction() as tx:
        fields = {"is_private": True, "external_id": "x"}
        taken = thread_rows.create(tx, stored.actor, **fields).id

    change(stored, stored.row(root.run_id)["thread_id"], is_private=True)

    with stored.connections.reading() as sql:
        rows = sql.execute(
            select(threads.c.id, threads.c.external_id).where(
                threads.c.id.in_([taken, child.thread_id])
            )
        )
        assert {taken: "x", child.thread_id: None} == dict(map(tuple, rows))


def test_a_sub_run_ends_while_the_thread_of_its_parent_is_deleted(stored: StoredRuns) -> None:
    """Its end has its row and needs that of its parent, which has ended: there is no deadlock."""
    root = stored.claimed()
    child = delegated(stored, root)
    thread_id = stored.row(root.run_id)["thread_id"]
    stored.set(root.run_id, state=RunState.CANCELLED, ended_at=func.now(), owner=None)

    def delete() -> None:
        with stored.connections.transaction() as tx:
            thread_changes.delete(tx, stored.actor, thread_id)

    with stored.connections.transaction() as tx:
        lock = select(runs.c.id).with_for_update(key_share=True)
        tx.sql.execute(lock.where(runs.c.id == child.run_id))
        join = beside(stored.connections, delete)
        tx.sql.execute(lock.where(runs.c.id == root.run_id))
    join()

    assert {None} == visible_to(stored, child)


def test_a_run_whose_thread_is_deleted_starts_no_sub_run(stored: StoredRuns) -> None:
    """A sub-run may still be active when its parent has ended and the thread of that goes."""
    root = stored.claimed()
    child = stored.held(delegated(stored, root).run_id)
    stored.set(root.run_id, state=RunState.CANCELLED, ended_at=func.now(), owner=None)
    with stored.connections.transaction() as tx:
        thread_changes.delete(tx, stored.actor, stored.row(root.run_id)["thread_id"])

    with pytest.raises(NotDelegated, match="deleted"):
        delegated(stored, child)


def test_a_message_that_is_offered_in_a_deleted_thread_starts_no_run(stored: StoredRuns) -> None:
    """The end of a sub-run that outlives the thread at the top cancels the run of the message."""
    root = stored.claimed()
    child = delegated(stored, root)
    below = BusyThread(stored)
    below.id = child.thread_id
    claim = below.claim(child.run_id)
    offered = below.say("a", "steer").offered
    assert offered is not None
    stored.set(root.run_id, state=RunState.CANCELLED, ended_at=func.now(), owner=None)
    with stored.connections.transaction() as tx:
        thread_changes.delete(tx, stored.actor, stored.row(root.run_id)["thread_id"])

    assert Outcome.ENDED == below.end(below.ending(completed, claim, "A"))

    assert "cancelled" == stored.state(offered[1])
    assert ["run.cancelled"] == stored.types(offered[1])
    assert offered[1] not in stored.sent
    assert "a" not in below.texts()


def test_runs_that_wait_end_with_their_thread(stored: StoredRuns) -> None:
    """They are cancelled, those that are pending and those that are scheduled."""
    thread = BusyThread(stored)
    first, pending, later = thread.say("a"), thread.say("b"), thread.say("c", not_before=LATER)
    stored.set(first.run_id, state=RunState.COMPLETED, ended_at=func.now())

    with stored.connections.transaction() as tx:
        thread_changes.delete(tx, stored.actor, thread.id)

    assert ["completed", "cancelled", "cancelled"] == thread.states()
    for run in (pending, later):
        assert ["run.cancelled"] == stored.types(run.run_id)
        assert stored.row(run.run_id)["ended_at"] is not None


def test_a_thread_with_an_active_run_keeps_what_waits(stored: StoredRuns) -> None:
    """It is not deleted."""
    thread = BusyThread(stored)
    active, later = thread.say("a"), thread.say("b", not_before=LATER)

    with stored.connections.transaction() as tx, pytest.raises(ThreadBusy) as caught:
        thread_changes.delete(tx, stored.actor, thread.id)

    assert {"active_run_id": str(active.run_id)} == caught.value.details
    assert "scheduled" == stored.state(later.run_id)


@pytest.mark.parametrize("is_aged", [False, True])
def test_runs_that_people_start_below_a_thread_are_its_own(
    stored: StoredRuns, is_aged: bool
) -> None:
    """A thread with an active one below it stays; those that wait end, and sub-runs do not count.

    The retention may have deleted the runs between.
    """
    root = stored.claimed()
    thread_id = stored.row(root.run_id)["thread_id"]
    first, second = (delegated(stored, root) for _ in range(2))
    ended = {"state": RunState.COMPLETED, "ended_at": func.now(), "owner": None}
    stored.set(root.run_id, **ended)
    stored.set(first.run_id, **ended)
    if is_aged:
        with stored.connections.transaction() as tx:
            tx.sql.execute(runs.delete().where(runs.c.id.in_([root.run_id, first.run_id])))
    below = BusyThread(stored)
    below.id = first.thread_id
    active, later = below.say("a"), below.say("b", not_before=LATER)

    with stored.connections.transaction() as tx, pytest.raises(ThreadBusy) as caught:
        thread_changes.delete(tx, stored.actor, thread_id)
    assert {"active_run_id": str(active.run_id)} == caught.value.details
    assert "scheduled" == stored.state(later.run_id)

    stored.set(active.run_id, **ended)
    with stored.connections.transaction() as tx:
        thread_changes.delete(tx, stored.actor, thread_id)
    assert ["cancelled", "queued"] == [*map(stored.state, (later.run_id, second.run_id))]
    assert ["run.cancelled"] == stored.types(later.run_id)


def test_a_run_whose_time_comes_while_its_thread_is_deleted_ends(stored: StoredRuns) -> None:
    """Its row is locked before its thread's by both: there is no deadlock."""
    thread = BusyThread(stored)
    later = thread.say("a", not_before=LATER)

    def delete() -> None:
        with stored.connections.transaction() as tx:
            thread_changes.delete(tx, stored.actor, thread.id)

    with stored.connections.transaction() as tx:
        lock = select(runs.c.id).where(runs.c.id == later.run_id)
        tx.sql.execute(lock.with_for_update(key_share=True))
        join = beside(stored.connections, delete)
        lock = select(threads.c.id).where(threads.c.id == thread.id)
        tx.sql.execute(lock.with_for_update(key_share=True))
    join()

    assert ["cancelled"] == thread.states()
