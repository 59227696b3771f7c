"""Holes in the events of runs, remembered until they are closed."""

from typing import NamedTuple
from uuid import UUID

import pytest
from sqlalchemy import delete, insert, select

from arkloop.api.streaming import holes as module
from arkloop.api.streaming.holes import Holes
from arkloop.shared.errors import EventsLost
from arkloop.shared.ids import new_id
from arkloop.shared.storage.connections import Connections
from arkloop.shared.storage.tables.events import run_events
from tests.api.streaming.followed_runs import FollowedRun
from tests.clients import User
from tests.stored_runs import StoredRuns


class Lost(NamedTuple):
    """A run without its events 3 and 5, and these rows."""

    run_id: UUID
    rows: list[dict[str, object]]


@pytest.fixture
def lost(connections: Connections, alice: User) -> Lost:
    run = FollowedRun.of(StoredRuns.of(connections, alice))
    run.write("a", "b", "c", "d", "e")
    gone = (run_events.c.run_id == run.id) & run_events.c.seq.in_((3, 5))
    with connections.transaction() as tx:
        rows = tx.sql.execute(select(run_events).where(gone).order_by(run_events.c.seq)).mappings()
        found = [dict(row) for row in rows]
        tx.sql.execute(delete(run_events).where(gone))
    return Lost(run.id, found)


def test_a_hole_is_known_until_its_events_are_back(connections: Connections, lost: Lost) -> None:
    """A cursor is refused where it stands before a hole, and a whole run by its first hole."""
    holes = Holes(connections)
    holes.check(lost.run_id, 2)
    assert holes.first(lost.run_id) is None
    holes.add(lost.run_id, 4)
    holes.add(lost.run_id, 2)

    holes.check(lost.run_id, 3)
    for cursor in (2, 4):
        with pytest.raises(EventsLost) as refused:
            holes.check(lost.run_id, cursor)
        assert {"after_seq": [cursor]} == refused.value.details
    assert 2 == holes.first(lost.run_id)

    for row, first in zip(lost.rows, (4, None), strict=True):
        with connections.transaction() as tx:
            tx.sql.execute(insert(run_events).values(row))
        assert first == holes.first(lost.run_id)
    holes.check(lost.run_id, 4)


def test_the_oldest_runs_make_room(
    connections: Connections, lost: Lost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process with many holes remembers those that it met last."""
    monkeypatch.setattr(module, "MOST_HOLES", 3)
    holes = Holes(connections)
    holes.add(lost.run_id, 2)
    holes.add(new_id(), 1)
    holes.add(lost.run_id, 4)
    holes.add(new_id(), 1)

    assert 2 == holes.first(lost.run_id)
    for _ in range(2):
        holes.add(new_id(), 1)
    assert holes.first(lost.run_id) is None
