"""The order in which runs of a long queue start."""

from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from uuid import UUID

import pytest
from sqlalchemy import text

from arkloop.shared.accounts import org_settings
from arkloop.shared.ids import new_id
from arkloop.shared.runs import fair_queue
from arkloop.shared.runs.fair_queue import FairQueue, place_of
from arkloop.shared.runs.states import RunState
from tests.clients import Register, User
from tests.stored_runs import StoredRuns, ago

Queue = Callable[..., list[UUID]]


@pytest.fixture(autouse=True)
def lasting_choices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Choices that are not forgotten after the two seconds that a claim may take."""
    monkeypatch.setattr(fair_queue, "CLAIM_SECONDS", 600)


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


def weigh(stored: StoredRuns, user: User, weight: int | None) -> None:
    """Set the weight of the user's org."""
    with stored.connections.transaction() as tx:
        org_settings.change(tx, user.org_id, {"weight": weight})


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
    """A flood that is spread over keys and end users does no more; every message starts a run."""
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


@pytest.mark.parametrize("group", [1, 5, 20])
def test_an_org_starts_as_many_runs_a_round_as_its_weight(
    stored: StoredRuns, queue: Queue, alice: User, register: Register, group: int
) -> None:
    """However the messages are grouped; when it has no runs left, the others have its turns."""
    orgs = [alice, register(), register()]
    weigh(stored, alice, 3)
    named = [
        run_id for org, count in zip(orgs, (12, 6, 6), strict=True) for run_id in queue(org, count)
    ]

    org_of = [stored.row(run_id)["org_id"] for run_id in start(stored, FairQueue(), named, group)]

    # Within a group the order is that of the messages.
    for at in range(max(group, 5), 21, max(group, 5)):
        counts = Counter(org_of[:at])
        assert [at * 3 / 5, at / 5, at / 5] == [counts[org.org_id] for org in orgs]
    assert {12, 6} == {*Counter(org_of).values()}


def test_behind_a_weight_a_run_waits_for_one_round(
    stored: StoredRuns, queue: Queue, alice: User, register: Register
) -> None:
    """As many starts as the weights of the others together; another weight counts at once."""
    weigh(stored, alice, 4)
    flood = queue(alice, 30)
    fair = FairQueue()
    before = start(stored, fair, flood[:7])
    [single] = queue(register(), 1, queued_at=ago(seconds=0))

    after = start(stored, fair, flood[7:12])

    assert after.index(single) <= 4
    weigh(stored, alice, None)
    [next_] = queue(register(), 1, queued_at=ago(seconds=0))
    left = [run_id for run_id in flood if run_id not in {*before, *after}]
    assert next_ in start(stored, fair, left[:2])


def test_a_turn_that_another_process_has_taken_is_given_again(
    stored: StoredRuns, queue: Queue, alice: User, register: Register
) -> None:
    """Processes that choose the same runs at the same moment keep to the weights."""
    weigh(stored, alice, 3)
    queue(alice, 30)
    # Messages of the lighter org alone: the other one's runs are chosen by both.
    light = queue(register(), 30)
    processes, worker_id = [FairQueue(), FairQueue()], stored.worker()
    started: list[object] = []
    collisions = 0

    with stored.connections.reading() as sql:
        for _ in range(6):
            wanted = [(fair, [light.pop() for _ in range(2)], ()) for fair in processes]
            while wanted:
                chosen = [
                    (fair, fair.choose(sql, named, lost), named) for fair, named, lost in wanted
                ]
                wanted = []
                for fair, ids, named in chosen:
                    lost = [run_id for run_id in ids if not stored.claim(run_id, worker_id)]
                    started += [stored.row(one)["org_id"] for one in ids if one not in lost]
                    collisions += len(lost)
                    if lost:
                        wanted.append((fair, named[: len(lost)], lost))

    assert collisions > 0
    assert {18, 6} == {*Counter(started).values()}


@pytest.mark.parametrize(
    ("visits", "begun", "expected"),
    [
        # weight, ready of a, b, c; turns of a in this round before
        ([(1, 1), (1, 1)], 0, "abababab"),
        ([(3, 3), (1, 1)], 0, "aaabaaab"),
        ([(3, 3), (1, 1)], 2, "abaaabaa"),
        ([(3, 3), (1, 1)], 3, "baaabaaa"),
        ([(3, 2), (1, 1)], 0, "aabbbbbb"),
        ([(3, 2), (1, 1)], 2, "abaaabaa"),
        ([(1, 1), (4, 2), (1, 1)], 0, "abbcacac"),
        ([(2, 1), (3, 2)], 0, "abb"),
        ([(2, 1)], 2, "aaaaaaaa"),
        ([(1, 1), (1, 1)], 5, "babababa"),
    ],
)
def test_turns_of_a_round(visits: list[tuple[int, int]], begun: int, expected: str) -> None:
    """Where an org has fewer queued runs than its weight, it has no more turns than that."""
    ids = {name: new_id() for name in "abc"}
    named = [fair_queue._Visit(ids[name], *one) for name, one in zip("abc", visits, strict=False)]

    turns = islice(fair_queue._turns(named, begun), 8)

    name_of = {org_id: name for name, org_id in ids.items()}
    assert expected == "".join(name_of[org_id] for org_id, _ in turns)


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
    """Two processes that have messages of one org do not claim the same runs."""
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
    """Runs start in turns, not in the order of creation: more runs of one end user or org do not
    count.
    """
    mine = queue(alice, 3, end_user_id="a")
    queue(alice, 9, end_user_id="b")
    queue(alice, 1, end_user_id="c")
    other = register()
    queue(other, 40)
    claimed = queue(register(), 1, state=RunState.EXECUTING)

    with stored.connections.reading() as sql:
        places = [place_of(sql, run_id) for run_id in mine]
        none = [place_of(sql, run_id) for run_id in (*claimed, new_id())]

    # Of a, b and c: 1, 1, 1; then 2, 2, 1. Of the other org as many as of this one.
    assert [(3, 5), (5, 9), (7, 13)] == places
    assert [None, None] == none
    weigh(stored, alice, 4)
    with stored.connections.reading() as sql:
        # Of the other org one for each four.
        assert [(3, 3), (5, 6), (7, 8)] == [place_of(sql, run_id) for run_id in mine]
    weigh(stored, alice, 1)
    weigh(stored, other, 3)
    with stored.connections.reading() as sql:
        assert [(3, 11), (5, 19), (7, 27)] == [place_of(sql, run_id) for run_id in mine]


def test_without_a_queue_a_message_starts_what_it_names(stored: StoredRuns, queue: Queue) -> None:
    """If that is gone, there is nothing to do."""
    named = [new_id(), new_id()]

    with stored.connections.reading() as sql:
        assert named == FairQueue().choose(sql, named)
