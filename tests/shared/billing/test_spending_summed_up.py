"""Costs of a month, of an org and a key, read from the sums of usage where there are some."""

import random
from collections.abc import Iterable
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Connection, delete, insert, text, update

from arkloop.shared.billing import spending, usage_sums
from arkloop.shared.ids import new_id
from arkloop.shared.storage.connections import Connections
from arkloop.shared.storage.tables.billing import run_usage, usage_days_until
from arkloop.shared.storage.tables.billing import spending as spending_table
from tests.shared.billing.money import Money

KEYS = [None, new_id(), new_id()]
SCOPES = [spending.ORG, *(spending.api_key_scope(key) for key in KEYS if key is not None)]


@pytest.fixture(autouse=True)
def nothing_is_summed_up(connections: Connections) -> None:
    with connections.transaction() as tx:
        tx.sql.execute(text("TRUNCATE run_usage, usage_days, usage_intervals"))
        tx.sql.execute(update(usage_days_until).values(day=None, interval_at=None))


def this_month() -> date:
    return datetime.now(UTC).date().replace(day=1)


def store(connections: Connections, org_id: UUID, seed: int) -> list[dict[str, Any]]:
    """Store runs of some days; some reserved in another month than that of their end.

    The first seed has all of this month and the end of the one before.
    """
    chance, now = random.Random(seed), datetime.now(UTC)
    days = now.day + 3 if seed == 0 else 8  # each is summed up in 144 intervals
    rows = [run(org_id, key, now, this_month(), 7) for key in KEYS]
    first = now - timedelta(days=days)
    rows.append(run(org_id, KEYS[1], first, first.date().replace(day=1), 11))
    for _ in range(400):
        ended_at = now - timedelta(minutes=chance.randrange(days * 1440) ** chance.uniform(0.2, 1))
        month = ended_at.date().replace(day=1)
        if chance.random() < 0.1:
            month = (month - timedelta(days=1)).replace(day=1)
        rows.append(run(org_id, chance.choice(KEYS), ended_at, month, chance.randrange(10**6)))
    # Postgres' clock was ahead at their end.
    rows.append(run(org_id, KEYS[1], now + timedelta(days=40), this_month(), 3))
    later = now + timedelta(days=70)
    rows.append(run(org_id, KEYS[1], later, later.date().replace(day=1), 5))
    with connections.transaction() as tx:
        tx.sql.execute(insert(run_usage), rows)
    return rows


def run(
    org_id: UUID, api_key_id: UUID | None, ended_at: datetime, month: date, cost: int
) -> dict[str, Any]:
    return {
        "run_id": new_id(),
        "route_id": "scripted",
        "org_id": org_id,
        "user_id": org_id,
        "api_key_id": api_key_id,
        "persona_key": "assistant",
        "model": "scripted-1",
        "usage_source": "reported",
        "cost_usd": Decimal(cost) / 10**8,
        "ended_at": ended_at,
        "month": month,
    }


def expected(rows: Iterable[dict[str, Any]]) -> dict[str, Decimal]:
    """Return what each scope has spent this month, run by run."""
    spent = dict.fromkeys(SCOPES, Decimal(0))
    for row in rows:
        if row["month"] == this_month() <= row["ended_at"].date():
            spent[spending.ORG] += row["cost_usd"]
            if row["api_key_id"] is not None:
                spent[spending.api_key_scope(row["api_key_id"])] += row["cost_usd"]
    return spent


def read(sql: Connection, org_id: UUID) -> dict[str, Decimal]:
    rows = spending.now(sql, org_id, SCOPES, are_limited=False)
    return {row.scope: row.spent_usd for row in rows}


@pytest.mark.parametrize("seed", range(3))
def test_a_month_is_the_same_before_and_after(
    money: Money, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """What a month has cost does not change by summing up, nor while that is under way; a row of
    `spending` begins with the same.
    """
    monkeypatch.setattr(usage_sums, "PASS_SECONDS", 0.15)
    spent = expected(store(money.connections, money.org_id, seed))
    assert all(usd > 0 for usd in spent.values())

    is_left = True
    while is_left:
        with money.connections.transaction() as tx:
            assert spent == read(tx.sql, money.org_id)
            one = {(scope, this_month()): (Decimal(1), Decimal(0)) for scope in SCOPES}
            made = spending.move(tx.sql, money.org_id, one)
            assert spent == {row.scope: row.spent_usd - 1 for row in made}
            tx.sql.execute(delete(spending_table))
        is_left = usage_sums.roll_up(money.connections)
    with money.connections.reading() as sql:
        assert spent == read(sql, money.org_id)


_READ = text(
    """
    SELECT coalesce(sum(seq_tup_read + idx_tup_fetch), 0) FROM pg_stat_xact_user_tables
    WHERE relname = ANY(:tables)
    """
)


def tuples_read(sql: Connection, org_id: UUID, scope: str, *tables: str) -> int:
    """Return how many rows of these tables are read for what the scope has spent."""
    sql.execute(text("SET LOCAL enable_seqscan = off"))  # the tables are small
    before = sql.scalar(_READ, {"tables": list(tables)})
    spending.now(sql, org_id, [scope], are_limited=False)
    return int(sql.scalar(_READ, {"tables": list(tables)}) - before)


def test_a_month_that_is_summed_up_reads_few_runs(money: Money) -> None:
    """Runs are read that have ended since the last sum, or count in another month. A key reads its
    own runs and sums.
    """
    rows = store(money.connections, money.org_id, seed=1)
    while usage_sums.roll_up(money.connections):
        pass
    recent = datetime.now(UTC) - usage_sums.OVER - 2 * usage_sums.INTERVAL
    few = sum(
        recent <= row["ended_at"] or row["month"] != row["ended_at"].date().replace(day=1)
        for row in rows
    )

    summed_up = ("usage_days", "usage_intervals")
    with money.connections.transaction() as tx:
        read = tuples_read(tx.sql, money.org_id, spending.ORG, "run_usage")
        assert read <= few < len(rows) / 2
        assert 0 < tuples_read(tx.sql, money.org_id, spending.ORG, *summed_up)
        none = spending.api_key_scope(new_id())
        assert 0 == tuples_read(tx.sql, money.org_id, none, *summed_up)
