"""The visibility of runs: the copy in each run's row is always that of its thread."""

import threading
from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import insert, select, text

from arkloop.shared.actors import PERMISSIONS_OF_ROLE, Actor
from arkloop.shared.ids import new_id
from arkloop.shared.runs import queries, thread_changes
from arkloop.shared.runs.states import STATUSES, RunState
from arkloop.shared.storage.connections import Connections
from arkloop.shared.storage.pages import Place
from arkloop.shared.storage.tables.runs import runs
from arkloop.shared.storage.tables.threads import messages
from arkloop.shared.threads import threads
from tests.clients import Register, User
from tests.stored_runs import StoredRuns, ago
from tests.waiting import eventually


def actor_of(user: User, role: str = "member") -> Actor:
    return Actor(
        org_id=user.org_id, user_id=user.id, role=role, permissions=PERMISSIONS_OF_ROLE[role]
    )


@pytest.fixture
def bob(register: Register, alice: User) -> Actor:
    """A member of alice's org."""
    return actor_of(register(org_of=alice, role="member"))


def listed(
    connections: Connections, actor: Actor, status: str | None = None, limit: int = 200
) -> list[UUID]:
    """Return all pages of `limit` rows."""
    found: list[UUID] = []
    before: Place | None = None
    with connections.reading() as sql:
        while True:
            filters = {} if status is None else {"status": status}
            rows = queries.list_of_org(sql, actor, limit=limit, before=before, filters=filters).rows
            found.extend(row.id for row in rows)
            if len(rows) < limit:
                return found
            before = (rows[-1].created_at, rows[-1].id)


def change(stored: StoredRuns, thread_id: UUID, **changes: Any) -> None:
    with stored.connections.transaction() as tx:
        threads.change(tx, stored.actor, thread_id, **changes)


def test_runs_are_seen_as_their_thread_is(stored: StoredRuns, bob: Actor) -> None:
    """Runs follow their thread's visibility, including earlier runs of a thread that becomes
    private, public or deleted.
    """
    thread_id = stored.thread()
    run_id = stored.create(thread_id)

    def seen() -> tuple[bool, bool]:
        return (
            run_id in listed(stored.connections, stored.actor),
            run_id in listed(stored.connections, bob),
        )

    looks = [seen()]
    for is_private in (True, False):
        change(stored, thread_id, is_private=is_private)
        looks.append(seen())
    change(stored, thread_id, title="no matter")
    looks.append(seen())
    stored.cancel(run_id)
    with stored.connections.transaction() as tx:
        thread_changes.delete(tx, stored.actor, thread_id)
    looks.append(seen())

    assert [(True, True), (True, False), (True, True), (True, True), (False, False)] == looks


@pytest.mark.parametrize("limit", [1, 2, 3, 200])
def test_pages_are_one_list_of_what_is_seen(stored: StoredRuns, bob: Actor, limit: int) -> None:
    """Public and private ones are listed newest first, among each other, each exactly once."""
    private, public = stored.thread(), stored.thread()
    change(stored, private, is_private=True)
    states = [RunState.COMPLETED, RunState.FAILED, RunState.CANCELLED]
    expected: list[tuple[UUID, bool, RunState]] = []
    for number in range(12):
        state, is_private = states[number % 3], number % 2 == 0
        run_id = stored.create(private if is_private else public)
        # Pairs of one time: the id decides.
        stored.set(run_id, state=state, created_at=ago(days=30 - number // 2), ended_at=ago(days=1))
        expected.append((run_id, is_private, state))
    with stored.connections.reading() as sql:
        order = list(sql.scalars(select(runs.c.id).order_by(runs.c.created_at.desc())))
    expected.sort(key=lambda one: order.index(one[0]))

    def of(actor: Actor, status: str | None = None) -> list[UUID]:
        mine = actor is stored.actor
        return [
            run_id
            for run_id, is_private, state in expected
            if (mine or not is_private) and (status is None or state in STATUSES[status])
        ]

    for actor in (stored.actor, bob):
        assert of(actor) == by_day(of(actor), listed(stored.connections, actor, limit=limit))
        for status in STATUSES:
            found = listed(stored.connections, actor, status, limit)
            assert of(actor, status) == by_day(of(actor, status), found)


def by_day(expected: list[UUID], found: list[UUID]) -> list[UUID]:
    """Return what was found; of equal times the order is that of the ids, which was not
    requested.
    """
    assert len(found) == len(set(found))
    return found if set(found) != set(expected) else expected


def test_both_states_of_a_status_are_one_list(stored: StoredRuns) -> None:
    """A list by status has the runs of both of its states, newest first."""
    run_ids = [stored.create() for _ in range(4)]
    for run_id in run_ids[::2]:
        stored.claim(run_id)

    assert run_ids[::-1] == listed(stored.connections, stored.actor, "running", limit=3)


def test_another_orgs_private_threads_stay_there(
    stored: StoredRuns, register: Register, alice: User
) -> None:
    """Somebody who came from another org sees there no more what was theirs alone."""
    thread_id = stored.thread()
    change(stored, thread_id, is_private=True)
    stored.create(thread_id)
    moved = Actor(
        org_id=register().org_id,
        user_id=alice.id,
        role="member",
        permissions=PERMISSIONS_OF_ROLE["member"],
    )

    assert [] == listed(stored.connections, moved)
    with stored.connections.reading() as sql:
        assert [] == threads.list_(sql, moved, limit=10, before=None).rows


def test_older_code_creates_runs_that_are_seen(stored: StoredRuns, bob: Actor) -> None:
    """While a deploy is under way: it does not know the column."""
    thread_id = stored.thread()
    change(stored, thread_id, is_private=True)
    run_id = new_id()
    with stored.connections.transaction() as tx:
        tx.sql.execute(
            text(
                "INSERT INTO runs (id, org_id, thread_id, created_by_user_id, trace_id, persona_id,"
                " route_id, model, position, state, queued_at) VALUES (:id, :org,"
                " :thread, :user, 't', 'p', 'r', 'm', 1, 'queued', now())"
            ),
            {
                "id": run_id,
                "org": stored.actor.org_id,
                "thread": thread_id,
                "user": stored.actor.user_id,
            },
        )

    assert [run_id] == listed(stored.connections, stored.actor)
    assert [] == listed(stored.connections, bob)


def waits_for_a_lock(connections: Connections) -> bool:
    waiting = "SELECT count(*) FROM pg_locks l JOIN pg_stat_activity a USING (pid)"
    waiting += " WHERE NOT l.granted AND a.datname = current_database()"
    with connections.reading() as sql:
        return bool(sql.scalar(text(waiting)))


def beside(connections: Connections, act: Callable[[], object]) -> Callable[[], None]:
    """Begin it on a thread of its own and return when it waits for a lock; call the rest to join.

    Its error is raised there.
    """
    failed: list[Exception] = []

    def run() -> None:
        try:
            act()
        except Exception as error:
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    eventually(lambda: waits_for_a_lock(connections) or not thread.is_alive())

    def join() -> None:
        thread.join()
        assert [] == failed

    return join


def test_a_run_that_waited_for_its_thread_to_become_private_is_private(
    stored: StoredRuns, bob: Actor
) -> None:
    """Its creation began when the thread was still public."""
    thread_id = stored.thread()
    with stored.connections.transaction() as tx:
        threads.change(tx, stored.actor, thread_id, is_private=True)
        join = beside(stored.connections, lambda: stored.create(thread_id))
    join()

    assert 1 == len(listed(stored.connections, stored.actor))
    assert [] == listed(stored.connections, bob)


def test_a_thread_that_waited_for_a_new_run_takes_it_along(stored: StoredRuns, bob: Actor) -> None:
    """The change began when the run was not there."""
    thread_id = stored.thread()
    with stored.connections.transaction() as tx:
        threads.take_position(tx, stored.actor, thread_id)
        join = beside(stored.connections, lambda: change(stored, thread_id, is_private=True))
        tx.sql.execute(
            text(
                "INSERT INTO runs (id, org_id, thread_id, created_by_user_id, trace_id, persona_id,"
                " route_id, model, position, state, queued_at) VALUES (gen_random_uuid(), :org,"
                " :thread, :user, 't', 'p', 'r', 'm', 1, 'queued', now())"
            ),
            {"org": stored.actor.org_id, "thread": thread_id, "user": stored.actor.user_id},
        )
    join()

    assert 1 == len(listed(stored.connections, stored.actor))
    assert [] == listed(stored.connections, bob)


def test_a_run_ends_while_its_thread_becomes_private(stored: StoredRuns, bob: Actor) -> None:
    """Its worker holds the run and has a message for the thread; the change holds the
    thread and waits for the run: there is no deadlock, and both are done.
    """
    thread_id = stored.thread()
    claim = stored.held(stored.create(thread_id))
    with stored.connections.transaction() as tx:
        tx.sql.execute(
            text("UPDATE runs SET state = 'completed', ended_at = now() WHERE id = :id"),
            {"id": claim.run_id},
        )
        join = beside(stored.connections, lambda: change(stored, thread_id, is_private=True))
        answer = {"id": new_id(), "org_id": claim.org_id, "thread_id": thread_id}
        answer |= {"run_id": claim.run_id, "position": claim.position, "role": "assistant"}
        tx.sql.execute(insert(messages).values(**answer, content="said"))
    join()

    assert [("said", False)] == stored.messages(claim.run_id)
    assert [claim.run_id] == listed(stored.connections, stored.actor, "completed")
    assert [] == listed(stored.connections, bob)
