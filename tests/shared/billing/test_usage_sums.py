"""Sums of days and of ten minutes that are over, and the reports that are made of them."""

import random
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Connection, Table, func, insert, select, text, update

from arkloop.shared.billing import usage_reports, usage_sums
from arkloop.shared.billing.usage_reports import Period
from arkloop.shared.billing.usage_sums import Progress
from arkloop.shared.ids import new_id
from arkloop.shared.storage.connections import Connections
from arkloop.shared.storage.tables.billing import (
    run_usage,
    usage_days,
    usage_days_until,
    usage_intervals,
)
from tests.stored_runs import StoredRuns
from tests.waiting import eventually

NOW = datetime.now(UTC)
TODAY = NOW.replace(hour=0, minute=0, second=0, microsecond=0)
KEYS = [None, new_id(), new_id()]


@pytest.fixture(autouse=True)
def nothing_is_summed_up(connections: Connections) -> None:
    with connections.transaction() as tx:
        tx.sql.execute(text("TRUNCATE run_usage, usage_days, usage_intervals"))
        tx.sql.execute(update(usage_days_until).values(day=None, interval_at=None))


def use(
    connections: Connections, org_id: UUID, seed: int, count: int, *, minutes: int = 2000
) -> None:
    """Store runs of the last minutes, some with two routes of one model or of two."""
    chance = random.Random(seed)
    rows = []
    for _ in range(count):
        run = {
            "run_id": new_id(),
            "org_id": org_id,
            "user_id": org_id,
            "api_key_id": chance.choice(KEYS),
            "persona_key": chance.choice(["assistant", "careful"]),
            "ended_at": NOW - timedelta(minutes=chance.randrange(minutes) ** chance.random()),
            "usage_source": "reported",
            "month": TODAY.date().replace(day=1),
        }
        for number in range(chance.choice([1, 1, 2, 3])):
            rows.append(
                {
                    **run,
                    "route_id": f"route-{number}",
                    "model": chance.choice(["small", "large"]),
                    "input_tokens": chance.randrange(1000),
                    "output_tokens": chance.randrange(100),
                    "cost_usd": Decimal(chance.randrange(10**6)) / 10**8,
                }
            )
    with connections.transaction() as tx:
        tx.sql.execute(insert(run_usage), rows)


PERIODS = [
    Period(since=TODAY - timedelta(days=7), until=TODAY + timedelta(days=1)),
    Period(since=TODAY - timedelta(days=3), until=TODAY - timedelta(days=1)),
    Period(since=TODAY - timedelta(days=4, hours=5), until=TODAY - timedelta(hours=7)),
    Period(since=TODAY - timedelta(days=2, hours=5), until=TODAY - timedelta(days=2, hours=3)),
    Period(since=TODAY - timedelta(hours=30), until=TODAY - timedelta(hours=6)),
    Period(since=NOW - timedelta(hours=3), until=NOW),
    Period(since=NOW - timedelta(minutes=50), until=NOW - timedelta(minutes=31)),
    Period(since=NOW - timedelta(minutes=39), until=NOW - timedelta(minutes=33)),
    Period(since=TODAY - timedelta(days=5), until=TODAY, persona="careful"),
    Period(since=TODAY - timedelta(days=5, minutes=1), until=TODAY, api_key_id=KEYS[1]),
]


def reports(connections: Connections, org_id: UUID) -> list[Any]:
    with connections.reading() as sql:
        return [
            report(sql, org_id, period)
            for period in PERIODS
            for report in (usage_reports.total, usage_reports.daily, usage_reports.by_model)
        ]


def roll_up_all(connections: Connections) -> None:
    while usage_sums.roll_up(connections):
        pass


def progress(connections: Connections) -> Progress:
    with connections.reading() as sql:
        found = usage_sums.progress(sql)
    assert found is not None
    return found


@pytest.mark.parametrize("seed", range(2))
def test_reports_are_the_same_before_and_after(
    stored: StoredRuns, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Reports do not change by summing up, whatever the period's edges and filters, nor do they
    while it is under way.
    """
    monkeypatch.setattr(usage_sums, "PASS_SECONDS", 0.15)
    connections, org_id = stored.connections, stored.actor.org_id
    use(connections, org_id, seed, 300, minutes=3 * 1440)
    before = reports(connections, org_id)

    while usage_sums.roll_up(connections):
        assert before == reports(connections, org_id)
    assert before == reports(connections, org_id)
    assert NOW - progress(connections).interval <= usage_sums.OVER + usage_sums.INTERVAL


@pytest.mark.parametrize(
    ("gone", "left"),
    [
        ("usage_intervals", {"interval_at": None}),  # the version before knew none
        ("usage_intervals", {"interval_at": NOW - timedelta(days=3)}),  # its worker added the day
        ("usage_days", {"day": None}),  # an operator has all sums made again
    ],
)
def test_reports_are_the_same_after_what_others_have_left(
    stored: StoredRuns, gone: str, left: dict[str, Any]
) -> None:
    """Summing up continues from what an older version or an operator has left."""
    connections, org_id = stored.connections, stored.actor.org_id
    use(connections, org_id, 4, 100)
    before = reports(connections, org_id)
    roll_up_all(connections)
    with connections.transaction() as tx:
        tx.sql.execute(text(f"TRUNCATE {gone}"))
        tx.sql.execute(update(usage_days_until).values(**left))
    assert gone == "usage_days" or before == reports(connections, org_id)

    roll_up_all(connections)

    assert before == reports(connections, org_id)


@pytest.mark.parametrize("ahead", [timedelta(hours=1), timedelta(days=3)])
def test_reports_have_what_ends_after_the_clock_was_set_back(
    stored: StoredRuns, monkeypatch: pytest.MonkeyPatch, ahead: timedelta
) -> None:
    """What was summed up in the future, and since midnight, is summed up again."""
    connections, org_id = stored.connections, stored.actor.org_id
    use(connections, org_id, 5, 100)
    with monkeypatch.context() as patch:
        patch.setattr(usage_sums, "_now", lambda sql: datetime.now(UTC) + ahead)
        roll_up_all(connections)
    assert progress(connections).interval > datetime.now(UTC)
    with connections.transaction() as tx:
        use_run(tx.sql, new_id(), org_id, datetime.now(UTC) - timedelta(seconds=1))

    roll_up_all(connections)

    now = datetime.now(UTC)
    # In the first minutes of a day nothing of it is summed up, and the day before is.
    midnight = usage_sums.start_of(now.date())
    assert progress(connections).interval <= max(midnight, now - usage_sums.OVER)
    with connections.reading() as sql:
        period = Period(since=TODAY - timedelta(days=10), until=now)
        assert 101 == usage_reports.total(sql, org_id, period)["runs"]


def test_a_clock_before_the_first_usage_forgets_nothing(
    stored: StoredRuns, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No run has ended by it yet, and to sum up the empty years since then would take hours."""
    connections, org_id = stored.connections, stored.actor.org_id
    use(connections, org_id, 6, 50)
    roll_up_all(connections)
    done, days = progress(connections), count(connections, usage_days)
    monkeypatch.setattr(usage_sums, "_now", lambda sql: datetime(2020, 1, 1, tzinfo=UTC))

    assert not usage_sums.add_next(connections)
    assert (done, days) == (progress(connections), count(connections, usage_days))


def test_a_clock_that_was_ahead_over_midnight_is_no_cause_to_begin_again_for_ever(
    stored: StoredRuns,
) -> None:
    """Without a run that has ended since, there is nothing to sum up, nor to forget."""
    connections, org_id = stored.connections, stored.actor.org_id
    with connections.transaction() as tx:
        later = TODAY + timedelta(days=3)
        tx.sql.execute(update(usage_days_until).values(day=later, interval_at=None))
    assert not usage_sums.add_next(connections)

    with connections.transaction() as tx:
        use_run(tx.sql, new_id(), org_id, datetime.now(UTC) - timedelta(seconds=1))
    assert usage_sums.add_next(connections)
    assert progress(connections).day <= datetime.now(UTC).date()


def test_what_is_summed_up_is_not_read_again(stored: StoredRuns) -> None:
    """Whole days are read from their sums, and the time after them from those of its intervals."""
    connections, org_id = stored.connections, stored.actor.org_id
    use(connections, org_id, 3, 300)
    roll_up_all(connections)
    done = progress(connections)
    whole = Period(since=TODAY - timedelta(days=10), until=done.interval)
    with connections.reading() as sql:
        before = usage_reports.daily(sql, org_id, whole), usage_reports.by_model(sql, org_id, whole)
    with connections.transaction() as tx:
        used = run_usage.c.org_id == org_id
        tx.sql.execute(run_usage.delete().where(used, run_usage.c.ended_at < done.interval))

    with connections.reading() as sql:
        after = usage_reports.daily(sql, org_id, whole), usage_reports.by_model(sql, org_id, whole)
    assert before == after
    assert sum(day["runs"] for day in before[0].values()) > 100


def test_a_day_and_an_interval_are_summed_up_once_they_are_over(
    stored: StoredRuns, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Days and intervals are summed up once; those of now are not, since runs still end."""
    connections = stored.connections
    use(connections, stored.actor.org_id, 7, 50)
    with connections.transaction() as tx:
        use_run(tx.sql, new_id(), stored.actor.org_id, TODAY - timedelta(hours=25))
    roll_up_all(connections)
    rows = [count(connections, table) for table in (usage_days, usage_intervals)]
    with connections.reading() as sql:
        last_day = sql.scalar(select(func.max(usage_days.c.day)))
        last_interval = sql.scalar(select(func.max(usage_intervals.c.began_at)))
    done = progress(connections)
    monkeypatch.setattr(usage_sums, "OVER", usage_sums.OVER * 2)  # another one may be over by now
    roll_up_all(connections)

    assert last_day < done.day <= datetime.now(UTC).date()
    assert last_interval < done.interval <= datetime.now(UTC) - usage_sums.OVER / 2
    assert rows == [count(connections, table) for table in (usage_days, usage_intervals)]


def test_intervals_of_days_that_are_summed_up_do_not_stay(stored: StoredRuns) -> None:
    """Intervals stay for two days, since a report may have begun before the sum of their day."""
    use(stored.connections, stored.actor.org_id, 8, 200, minutes=3 * 1440)

    roll_up_all(stored.connections)

    oldest = select(func.min(usage_intervals.c.began_at))
    with stored.connections.reading() as sql:
        began_at = sql.scalar(oldest)
    done = progress(stored.connections)
    assert done.interval - usage_sums.KEPT <= began_at < usage_sums.start_of(done.day)


def test_each_pass_adds_some(stored: StoredRuns, monkeypatch: pytest.MonkeyPatch) -> None:
    """Passes end after a while, with what they have added, until all is added."""
    monkeypatch.setattr(usage_sums, "PASS_SECONDS", 0.0)
    connections = stored.connections
    first = TODAY - timedelta(days=4)
    with connections.transaction() as tx:
        use_run(tx.sql, new_id(), stored.actor.org_id, first)
    more, seen = [], []
    for _ in range(146):
        more.append(usage_sums.roll_up(connections))
        seen.append(progress(connections))

    # The first pass finds that day; then come its intervals, and the day itself.
    intervals = [first + usage_sums.INTERVAL * number for number in range(145)]
    assert [*intervals, intervals[-1]] == [found.interval for found in seen]
    assert [first.date()] * 145 == [found.day for found in seen[:145]]
    assert first.date() + timedelta(days=1) == seen[-1].day
    assert all(more)


def test_an_interval_waits_for_transactions_that_began_in_it(
    stored: StoredRuns, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs that one ended may appear only at its commit, and are counted then."""
    connections, org_id = stored.connections, stored.actor.org_id
    roll_up_all(connections)
    # The interval of now is over at once, or would be, if its transactions were.
    monkeypatch.setattr(usage_sums, "OVER", -usage_sums.INTERVAL)
    with connections.transaction() as tx:
        ended = datetime.now(UTC)
        use_run(tx.sql, new_id(), org_id, ended)
        usage_sums.roll_up(connections)
        assert progress(connections).interval <= ended

    def is_summed_up() -> bool:
        usage_sums.roll_up(connections)
        return progress(connections).interval > ended

    eventually(is_summed_up)
    with connections.reading() as sql:
        period = Period(since=TODAY - timedelta(days=1), until=progress(connections).interval)
        assert 1 == usage_reports.total(sql, org_id, period)["runs"]


@pytest.mark.parametrize(
    ("interval", "now", "due"),
    [
        ("11T00:00", "11T00:19", None),
        ("11T00:00", "11T00:20", ("11T00:00", "11T00:10")),
        ("11T00:10", "11T00:29", None),
        ("11T00:10", "11T05:00", ("11T00:10", "11T00:20")),
        ("11T23:50", "12T00:40", ("11T23:50", "12T00:00")),
        ("12T00:00", "12T00:10", "11"),
        ("11T23:50", "13T09:00", ("11T23:50", "12T00:00")),  # all its intervals come first
    ],
)
def test_what_is_due(interval: str, now: str, due: str | tuple[str, str] | None) -> None:
    """The first day that is not summed up is 11 January."""

    def at(moment: str) -> datetime:
        return datetime.fromisoformat(f"2026-01-{moment}:00Z")

    found = Progress(date(2026, 1, 11), at(interval)).due(at(now))

    match due:
        case None:
            assert found is None
        case (since, until):
            assert (at(since), at(until)) == found
        case day:
            assert date.fromisoformat(f"2026-01-{day}") == found


def use_run(sql: Connection, run_id: UUID, org_id: UUID, ended: datetime) -> None:
    sql.execute(
        insert(run_usage).values(
            run_id=run_id,
            route_id="r",
            org_id=org_id,
            user_id=org_id,
            persona_key="assistant",
            model="m",
            usage_source="reported",
            cost_usd=1,
            ended_at=ended,
            month=date(ended.year, ended.month, 1),
        )
    )


def count(connections: Connections, table: Table) -> int:
    with connections.reading() as sql:
        return sql.scalar(select(func.count()).select_from(table)) or 0
