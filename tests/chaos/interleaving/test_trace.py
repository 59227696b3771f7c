"""The trace of a thread: each step on the real system is one that the table has."""

from collections.abc import Iterator

import pytest

from arkloop.shared.runs.creation import NewMessage, NewRun
from arkloop.shared.runs.thread_queue import OnBusy
from arkloop.shared.storage.connections import Connections
from arkloop.shared.threads.content import Content
from chaos.interleaving.play import Crew
from chaos.interleaving.trace import Doing, Trace
from chaos.interleaving.world import World


@pytest.fixture(scope="module")
def crew(connections: Connections) -> Iterator[Crew]:
    """Clients whose threads no other test has in its database."""
    with connections.reading() as sql:
        made = Crew(World.make(connections), sql)
        yield made
        made.close()


def test_an_offered_message_keeps_its_turn_where_an_interrupt_makes_a_run_of_it(crew: Crew) -> None:
    """It goes to its place in the queue, not ahead of it as the run that interrupts."""
    world = crew.world
    thread_id = world.thread()
    users = (world.users[0].user_id, world.users[1].user_id)
    trace = Trace(crew.observer, thread_id, users, 50)

    for on_busy in (OnBusy.ENQUEUE, OnBusy.ENQUEUE, OnBusy.STEER, OnBusy.INTERRUPT):
        crew.creators[0](
            NewRun(
                actor=world.users[0],
                thread_id=thread_id,
                persona=crew.persona,
                route=crew.route,
                trace_id="0" * 32,
                message=NewMessage(content=Content.of(on_busy)),
                on_busy=on_busy,
            )
        )
        trace.look(Doing("create", 0, on_busy), may_be_two=False)

    assert [] == trace.faults
    assert (4, 4) == (trace.steps, len(trace.thread.runs))
