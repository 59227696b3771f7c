"""Random interleavings on the real system keep the promises, and show a bug of the table."""

from collections.abc import Iterator
from functools import partial
from uuid import UUID

import pytest
from psycopg.errors import DeadlockDetected
from sqlalchemy.exc import DBAPIError

from arkloop.shared.storage.connections import Connections
from chaos.interleaving.actor import Actor
from chaos.interleaving.play import Crew, Play, planted, refused
from chaos.interleaving.world import World
from chaos.model.bugs import BUGS

INTERLEAVINGS = 12
#: Interleavings in which a bug must have shown; the seeds are the same in each run.
TRIES = 60


@pytest.fixture(scope="module")
def crew(connections: Connections) -> Iterator[Crew]:
    """Clients, a worker and the sweep, whose runs no other test has in its database."""
    with connections.reading() as sql:
        made = Crew(World.make(connections), sql)
        yield made
        made.close()


def test_interleavings_on_the_real_system_keep_the_promises(crew: Crew) -> None:
    """Each change of a row is one that the table has, and no message is lost or answered twice."""
    for seed in range(1, INTERLEAVINGS + 1):
        played = Play(crew, seed).run()
        assert [] == played.faults, "\n".join((f"seed {seed}", *played.order))
        assert played.compared > 0


@pytest.mark.parametrize(
    "name",
    ["a request does not flag the active run", "a run that is due starts beside the active one"],
)
def test_interleavings_show_a_bug_of_the_table(crew: Crew, name: str) -> None:
    """A service that follows a wrong row is caught, as the model is."""
    [bug] = [bug for bug in BUGS if bug.name == name]

    with planted(bug):
        played = (Play(crew, seed).run() for seed in range(1, TRIES))
        faults = next((one.faults for one in played if one.faults), [])

    assert faults


def test_a_deadlock_is_no_refusal(crew: Crew) -> None:
    """An actor that Postgres takes out of a deadlock reports it, where refusals are allowed."""
    ids = (crew.world.thread(), crew.world.thread())
    clients = crew.actors[:2]

    def locks(client: Actor, one: UUID, other: UUID) -> None:
        with refused(), client.connections.transaction() as tx:
            for thread_id in (one, other):
                tx.sql.exec_driver_sql("SELECT FROM threads WHERE id = %s FOR UPDATE", (thread_id,))

    for client, order in zip(clients, (ids, ids[::-1]), strict=True):
        client.begin(partial(locks, client, *order))
    while not all(client.is_done for client in clients):
        for client in clients:
            if not client.is_done:
                client.go()

    [error] = [client.error for client in clients if client.error is not None]
    assert isinstance(error, DBAPIError)
    assert isinstance(error.orig, DeadlockDetected)
