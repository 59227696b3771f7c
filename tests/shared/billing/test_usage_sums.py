"""Sums of days that are over, and the reports that are made of them."""

import random
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import func, insert, select, text, update

from arkloop.shared.billing import usage_sums, usage_reports
from arkloop.shared.billing.usage_reports import Period
from arkloop.shared.ids import new_id
from arkloop.shared.storage.connections import Connections
from arkloop.shared.storage.tables.billing import run_usage, usage_days_until
from arkloop.shared.storage.tables.billing import usage_days as table
from tests.stored_runs import StoredRuns

TODAY = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
KEYS = [None, new_id(), new_id()]


@pytest.fixture(autouse=True)
def nothing_is_summed_up(connections: Connections) -> None:
    with connections.transaction() as tx:
        tx.sql.execute(text("DELETE FROM usage_days"))
        tx.sql.execute(update(usage_days_until).values(day=None))


def use(connections: Connections, org_id: UUID, seed: int, count: int) -> None:
    """Store runs of the last six days, some with two routes of one model or of two."""
    chance = random.Random(seed)
    rows = []
    for _ in range(count):
        run = {
            "run_id": new_id(),
            "org_id": org_id,
            "user_id": org_id,
            "api_key_id": chance.choice(KEYS),
            "persona_key": chance.choice(["assistant", "careful"]),
            "ended_at": TODAY + timedelta(hours=12) - timedelta(minutes=chance.randrange(6 * 1440)),
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


@pytest.mark.parametrize("seed", range(3))
def test_reports_are_the_same_before_and_after(stored: StoredRuns, seed: int) -> None:
    """Reports do not change by summing up, whatever the period's edges and filters."""
    connections, org_id = stored.connections, stored.actor.org_id
    use(connections, org_id, seed, 300)
    before = reports(connections, org_id)

    usage_sums.roll_up(connections)
    assert before == reports(connections, org_id)
    with connections.transaction() as tx:
        # What is summed up is read from there.
        tx.sql.execute(
            run_usage.delete().where(
                run_usage.c.org_id == org_id,
                run_usage.c.ended_at >= TODAY - timedelta(days=3),
                run_usage.c.ended_at < TODAY - timedelta(days=1),
            )
        )

    assert before[3:6] == reports(connections, org_id)[3:6]
    assert before[:3] == reports(connections, org_id)[:3]


def test_a_day_is_summed_up_once_it_is_over(stored: StoredRuns) -> None:
    """Past days are summed up once; today is not, since its runs still end."""
    connections = stored.connections
    use(connections, stored.actor.org_id, 7, 50)
    usage_sums.roll_up(connections)
    with connections.reading() as sql:
        rows = sql.scalar(select(func.count()).select_from(table))
        last = sql.scalar(select(func.max(table.c.day)))
        until = usage_sums.until(sql)
    usage_sums.roll_up(connections)

    assert last is not None
    assert until is not None
    assert last < until <= datetime.now(UTC).date()
    with connections.reading() as sql:
        assert rows == sql.scalar(select(func.count()).select_from(table))


def test_each_pass_sums_up_some_days(stored: StoredRuns) -> None:
    """Passes sum up some days each, from the first with runs, until only today is left."""
    connections = stored.connections
    use(connections, stored.actor.org_id, 8, 50)
    with connections.transaction() as tx:
        old = run_usage.c.ended_at - timedelta(days=usage_sums.DAYS_OF_A_PASS)
        tx.sql.execute(update(run_usage).values(ended_at=old))
    seen: list[date | None] = []
    more: list[bool] = []
    for _ in range(3):
        more.append(usage_sums.roll_up(connections))
        with connections.reading() as sql:
            seen.append(usage_sums.until(sql))

    assert [True, False, False] == more
    assert seen[0] is not None
    assert seen[1] is not None
    assert seen[0] < seen[1] == seen[2]
    assert TODAY.date() - seen[1] <= timedelta(days=1)  # yesterday is not over for an hour


def use_run(sql: Any, run_id: UUID, org_id: UUID, ended: datetime) -> None:
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
