"""The verdict of a soak notices what grows, and only that."""

import itertools
from collections import Counter

import pytest
from sqlalchemy import select, update

from arkloop.shared.delivery import deliveries, endpoints
from arkloop.shared.storage.connections import Connections
from arkloop.shared.storage.tables.delivery import webhook_deliveries
from bench.soak import samples as soak_samples
from bench.soak.verdict import TOLERANCES, most_unavailable, per_run, times, trends, unmatched
from tests.stored_runs import StoredRuns, ago


def samples(name: str, values: list[float]) -> list[dict[str, float]]:
    return [{name: value} for value in values]


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        # A process that has warmed up in the first third, and one that leaks 2 MiB a sample.
        ("memory of web 1, MiB", [50, 80, 90, 90, 90, 91, 91, 90, 91], False),
        ("memory of web 1, MiB", [90.0 + 2 * n for n in range(9)], True),
        ("files of worker 2", [20.0] * 6 + [25.0] * 3, True),
        ("rows of runs", [100.0] * 6 + [104.0] * 3, False),
        ("bytes of a row of runs", [100.0] * 6 + [120.0] * 3, True),
        ("CPU of web of a run, ms", [10.0] * 6 + [12.0] * 3, True),
        ("p99 of create, ms", [20.0] * 6 + [28.0] * 3, False),
        # Messages stay in their thread.
        ("rows of messages", [float(1000 * n) for n in range(9)], False),
    ],
)
def test_a_trend_is_growth_beyond_its_tolerance(
    name: str, values: list[float], expected: bool
) -> None:
    """The median of the last third is compared with that of the second."""
    [trend] = trends(samples(name, values))

    assert expected == trend.has_grown
    assert expected == trend.line().startswith("GROWN")


def test_one_sample_that_stands_out_is_no_growth() -> None:
    """A busy minute does not decide."""
    [trend] = trends(samples("p99 of create, ms", [20.0] * 6 + [900.0, 20.0, 21.0]))

    assert not trend.has_grown


@pytest.mark.parametrize(
    ("unavailable", "requests", "minutes", "expected"),
    [
        (5, 40, 0.5, True),
        (6, 40, 0.5, False),
        (10, 500, 0.5, True),
        (11, 500, 0.5, False),
        (70, 70_000, 60, True),
        (71, 70_000, 60, False),
        # The rate counts for every soak whose growth is judged.
        (5, 4_000, 10, False),
    ],
)
def test_some_requests_may_be_unavailable(
    unavailable: int, requests: int, minutes: float, expected: bool
) -> None:
    """One busy moment is most of what half a minute has, and little of an hour."""
    assert expected == (unavailable <= most_unavailable(requests, minutes))


def test_a_webhook_that_is_not_sent_yet_is_not_aged(
    connections: Connections, stored: StoredRuns
) -> None:
    """The retention would delete it, and the soak miss it: a busy worker sends it later."""
    org_id = stored.actor.org_id
    with connections.transaction() as tx:
        endpoint, _ = endpoints.create(
            tx,
            org_id,
            url="https://shop.example/hook",
            description="",
            event_types=endpoints.EVENT_TYPES,
        )
        for state in deliveries.STATES:
            made = deliveries.test(tx, org_id, endpoint.id)
            late = update(webhook_deliveries).where(webhook_deliveries.c.id == made.id)
            tx.sql.execute(late.values(state=state, created_at=ago(seconds=70)))

    soak_samples.age(connections, 60)
    with connections.transaction() as tx:
        deliveries.forget(tx)

    with connections.reading() as sql:
        assert ["pending"] == sql.scalars(select(webhook_deliveries.c.state)).all()


def test_a_sample_that_fails_is_a_fault() -> None:
    """A soak whose samples all failed saw no growth, and exited with 0."""
    faults = Counter[str]()
    taken: list[int] = []

    def take(number: int) -> None:
        if number == 1:
            raise TimeoutError("/metrics")
        taken.append(number)

    sampler = soak_samples.Sampler(take, faults)
    for number in range(3):
        sampler.begin(number)
        sampler.wait()
        assert sampler.is_idle

    assert [0, 2] == taken
    assert {"a sample failed: TimeoutError": 1} == faults


def test_totals_are_divided_by_the_runs_between_two_samples() -> None:
    """What counts from the start of a process shows its growth for a run, sizes that of a row."""
    totals = [("total runs", 100.0, 300.0), ("total CPU of web, s", 5.0, 7.0)]
    sizes = [("size of runs, MiB", 4.0, 4.0), ("rows of runs", 1000.0, 2048.0)]
    earlier, later = ({name: pair[side] for name, *pair in totals + sizes} for side in (0, 1))

    found = per_run(earlier, later)

    assert 10.0 == found["CPU of web of a run, ms"]
    assert 2048.0 == found["bytes of a row of runs"]
    assert not [name for name in found if name.startswith("total")]


def test_a_tolerance_without_samples_is_noticed() -> None:
    """A number that has another name in the samples could grow unseen."""
    names = [f"{begin} x" for begin in TOLERANCES if begin != "Redis keys"]
    taken = [dict.fromkeys(names, 1.0) for _ in range(9)]

    assert ["Redis keys"] == unmatched(trends(taken))
    assert [] == unmatched(trends([one | {"Redis keys": 5.0} for one in taken]))
    assert list(TOLERANCES) == unmatched(trends([]))


def test_an_interval_without_requests_has_no_latency() -> None:
    """A 0 would count as a fast one, and hide that the others have become slower."""
    assert {"p50 of create, ms": 20.0, "p99 of create, ms": 30.0} == times(
        {"create": [0.01, 0.02, 0.03], "first delta": []}
    )


def test_a_number_that_samples_lack_is_compared_with_the_rest() -> None:
    """A table becomes big enough in the middle of a soak."""
    values = itertools.chain([{}] * 4, samples("bytes of a row of runs", [100.0] * 5))

    [trend] = trends(list(values))

    assert 100.0 == trend.before == trend.after
