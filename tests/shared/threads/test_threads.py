"""Threads under concurrency: what only two transactions at once can show."""

import threading
from collections.abc import Callable
from contextlib import suppress
from uuid import UUID

import pytest
from sqlalchemy import text

from arkloop.api.auth import bearer
from arkloop.shared.actors import Actor
from arkloop.shared.errors import ThreadBusy, ThreadNotFound
from arkloop.shared.runs import thread_changes
from arkloop.shared.storage.connections import Connections
from arkloop.shared.threads import threads
from tests.clients import User
from tests.waiting import eventually, in_parallel


@pytest.fixture
def actor(alice: User) -> Actor:
    with alice.client.application.app_context():
        return bearer.authenticator().identify(alice.token)


def test_positions_have_no_holes_and_no_repeats(
    connections: Connections, alice: User, actor: Actor
) -> None:
    """Twenty at once get 1 to 20."""
    thread_id = UUID(alice.thread())

    def take(_: int) -> int:
        with connections.transaction() as tx:
            return threads.take_position(tx, actor, thread_id)

    assert list(range(1, 21)) == sorted(in_parallel(20, take))


def test_a_position_that_is_rolled_back_is_given_again(
    connections: Connections, alice: User, actor: Actor
) -> None:
    """A position that is rolled back is given again, so that positions have no hole."""
    thread_id = UUID(alice.thread())
    with suppress(KeyError), connections.transaction() as tx:
        threads.take_position(tx, actor, thread_id)
        raise KeyError

    with connections.transaction() as tx:
        assert 1 == threads.take_position(tx, actor, thread_id)


def test_a_thread_is_not_deleted_under_a_run_that_begins(
    connections: Connections, alice: User, actor: Actor, make_run: Callable[..., UUID]
) -> None:
    """The delete waits for the run's transaction, and then sees its run."""
    thread = alice.thread()
    thread_id = UUID(thread)
    caught: list[Exception] = []

    def delete() -> None:
        try:
            with connections.transaction() as tx:
                thread_changes.delete(tx, actor, thread_id)
        except Exception as error:
            caught.append(error)

    with connections.transaction() as tx:
        threads.take_position(tx, actor, thread_id)
        deleting = threading.Thread(target=delete)
        deleting.start()
        eventually(lambda: _waiting_for_locks(connections) == 1)
        tx.sql.execute(
            text(
                "INSERT INTO runs (id, org_id, thread_id, created_by_user_id, trace_id, persona_id,"
                " route_id, model, position, state, queued_at) VALUES (gen_random_uuid(), :org,"
                " :thread, :user, 't', 'p', 'r', 'm', 1, 'queued', now())"
            ),
            {"org": alice.org_id, "thread": thread_id, "user": alice.id},
        )
    deleting.join()

    assert [ThreadBusy] == [type(error) for error in caught]


def test_nothing_begins_in_a_thread_that_is_being_deleted(
    connections: Connections, alice: User, actor: Actor
) -> None:
    """A message or run waits for the delete, and then finds no thread."""
    thread_id = UUID(alice.thread())
    caught: list[Exception] = []

    def say() -> None:
        try:
            with connections.transaction() as tx:
                threads.add_message(tx, actor, thread_id, content="too late")
        except Exception as error:
            caught.append(error)

    with connections.transaction() as tx:
        thread_changes.delete(tx, actor, thread_id)
        saying = threading.Thread(target=say)
        saying.start()
        eventually(lambda: _waiting_for_locks(connections) == 1)
    saying.join()

    assert [ThreadNotFound] == [type(error) for error in caught]


def _waiting_for_locks(connections: Connections) -> int:
    with connections.reading() as sql:
        waiting = "SELECT count(*) FROM pg_locks l JOIN pg_stat_activity a USING (pid)"
        waiting += " WHERE NOT l.granted AND a.datname = current_database()"
        return int(sql.scalar(text(waiting)) or 0)
