"""The order in which runs of a long queue start."""

from collections import Counter
from collections.abc import Callable, Iterator
from uuid import UUID

import pytest
from sqlalchemy import text

from arkloop.shared.ids import new_id
from arkloop.shared.runs.fair_queue import FairQueue, place_of
from arkloop.shared.runs.states import RunState
from tests.clients import Register, User
from tests.stored_runs import StoredRuns, ago

Queue = Callable[..., list[UUID]]


@pytest.fixture
def queue(stored: StoredRuns, make_run: Callable[..., UUID], register: Register) -> Iterator[Queue]:
    """Call it for queued runs of a user, each in a thread of its own; no others are queued."""

    def new(user: User, count: int, **columns: object) -> list[UUID]:
        return [
            make_run(
                *(user, user.thread()),
                **{"state": RunState.QUEUED, "queued_at": ago(seconds=1000 - number), **columns},
            )
            for number in range(count)
        ]

    _empty(stored)
    yield new
    _empty(stored)


def _empty(stored: StoredRuns) -> None:
    with stored.connections.transaction() as tx:
        tx.sql.execute(
            text(
                "UPDATE runs SET state = 'cancelled', ended_at = now()"
                " WHERE state IN ('queued', 'executing')"
            )
        )


def start(stored: StoredRuns, fair: FairQueue, named: list[UUID], group: int = 1) -> list[UUID]:
    """Return the runs in the order in which messages that name these start them."""
    worker_id = stored.worker()
    started = []
    for first in range(0, len(named), group):
        with stored.connections.reading() as sql:
            chosen = fair.choose(sql, named[first : first + group])
        assert len(chosen) == len({*chosen})
        started += [run_id for run_id in chosen if stored.claim(run_id, worker_id)]
    return started


@pytest.mark.parametrize("group", [1, 7])
def test_a_flood_of_one_org_delays_the_run_of_another_by_one_round(
    stored: StoredRuns, queue: Queue, alice: User, register: Register, group: int
) -> None:
    """Also if it is spread over keys and end users; every message starts a run."""
    keys = [new_id() for _ in range(3)]
    flood = [
        run_id
        for user in range(8)
        for run_id in queue(alice, 5, end_user_id=f"u{user}", api_key_id=keys[user % 3])
    ]
    fair = FairQueue()
    before = start(stored, fair, flood[:14], group)
    [single] = queue(register(), 1, queued_at=ago(seconds=0))

    after = start(stored, fair, [*flood[14:], single], group)

    assert after.index(single) < 2 * max(group, 2)
    assert {*flood, single} == {*before, *after}


def test_each_org_has_its_turn(
    stored: StoredRuns, queue: Queue, alice: User, register: Register
) -> None:
    """Once in a round, for as long as it has queued runs, whatever the messages name."""
    orgs = [alice, register(), register()]
    named = [run_id for org in orgs for run_id in queue(org, 6)]

    started = start(stored, FairQueue(), named)

    org_of = [stored.row(run_id)["org_id"] for run_id in started]
    assert 18 == len(started)
    assert all(3 == len({*org_of[at : at + 3]}) for at in range(0, 18, 3))


def test_each_end_user_of_an_org_has_their_turn(
    stored: StoredRuns, queue: Queue, alice: User
) -> None:
    """Runs without an end user are one end user's."""
    users = ["a", "b", None]
    named = [run_id for user in users for run_id in queue(alice, 4, end_user_id=user)]

    started = [stored.row(run_id) for run_id in start(stored, FairQueue(), named, 4)]

    for at in (4, 8, 12):
        counts = Counter(run["end_user_id"] for run in started[:at])
        assert 3 == len(counts) and max(counts.values()) - min(counts.values()) <= 1


def test_a_named_run_is_taken_if_it_is_as_good(
    stored: StoredRuns, queue: Queue, alice: User
) -> None:
    """So two processes that have messages of one org do not claim the same runs."""
    runs = queue(alice, 6)
    one, other = runs[:3], runs[3:]

    with stored.connections.reading() as sql:
        assert (one, other) == (FairQueue().choose(sql, one), FairQueue().choose(sql, other))


def test_what_is_chosen_and_not_yet_claimed_is_not_chosen_again(
    stored: StoredRuns, queue: Queue, alice: User
) -> None:
    """Claims come in groups, a moment after the choice."""
    fair, gone = FairQueue(), [new_id() for _ in range(3)]
    runs = queue(alice, 3)

    with stored.connections.reading() as sql:
        chosen = [fair.choose(sql, [name])[0] for name in gone]

    assert {*runs} == {*chosen}


def test_a_place_counts_what_starts_before_at_most(
    stored: StoredRuns, queue: Queue, alice: User, register: Register
) -> None:
    """In turns, and not in the order of creation: more runs of one end user or org do not count."""
    mine = queue(alice, 3, end_user_id="a")
    queue(alice, 9, end_user_id="b")
    queue(alice, 1, end_user_id="c")
    queue(register(), 40)
    claimed = queue(register(), 1, state=RunState.EXECUTING)

    with stored.connections.reading() as sql:
        places = [place_of(sql, run_id) for run_id in mine]
        none = [place_of(sql, run_id) for run_id in (*claimed, new_id())]

    # Of a, b and c: 1, 1, 1; then 2, 2, 1. Of the other org as many as of this one.
    assert [(3, 5), (5, 9), (7, 13)] == places
    assert [None, None] == none


def test_without_a_queue_a_message_starts_what_it_names(stored: StoredRuns, queue: Queue) -> None:
    """If that is gone, there is nothing to do."""
    named = [new_id(), new_id()]

    with stored.connections.reading() as sql:
        assert named == FairQueue().choose(sql, named)
