"""Random interleavings on the real system keep the promises, and show a bug of the table."""

from collections.abc import Iterator

import pytest

from arkloop.shared.storage.connections import Connections
from chaos.interleaving.play import Crew, Play, planted
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


@pytest.mark.parametrize("name", ["a request does not flag the active run"])
def test_interleavings_show_a_bug_of_the_table(crew: Crew, name: str) -> None:
    """A service that follows a wrong row is caught, as the model is."""
    [bug] = [bug for bug in BUGS if bug.name == name]

    with planted(bug):
        played = (Play(crew, seed).run() for seed in range(1, TRIES))
        faults = next((one.faults for one in played if one.faults), [])

    assert faults
