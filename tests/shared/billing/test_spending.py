"""The rows of a month's spending: which runs are read for a row that is missing."""

from dataclasses import replace
from decimal import Decimal
from uuid import UUID

import pytest
from sqlalchemy import Connection, text

from arkloop.shared.billing import budget_limits, budgets, spending
from arkloop.shared.billing.spending import END_USERS
from arkloop.shared.catalog import personas
from tests.shared.billing.money import SERVERS, Money

LIMITED = replace(personas.builtin()["assistant@1"], max_cost_usd_per_month=Decimal(1))
KEY = spending.api_key_scope(UUID(int=1))


class Scans:
    """The scans of runs that have ended, since this was made."""

    def __init__(self, sql: Connection) -> None:
        self._sql = sql
        # Postgres may still count those of the session's transactions before.
        self._before = self._all()

    def count(self) -> int:
        return self._all() - self._before

    def _all(self) -> int:
        query = "SELECT seq_scan + idx_scan FROM pg_stat_xact_user_tables WHERE relname = :name"
        return int(self._sql.scalar(text(query), {"name": "run_usage"}) or 0)


def test_a_personas_missing_month_reads_no_runs(money: Money) -> None:
    """What runs with its limit have spent is in its row; an org may have very many runs."""
    with money.connections.reading() as sql:
        scans = Scans(sql)
        budget_limits.check_open(sql, money.stored.actor, LIMITED, SERVERS)
        assert 0 == scans.count()


def test_the_limits_of_each_end_user_read_no_runs(money: Money) -> None:
    """They have no month of their own, with a limit or without."""
    for limit in (None, "1"):
        money.limit(limit, scope=END_USERS)
        with money.connections.reading() as sql:
            scans = Scans(sql)
            budget = budget_limits.get(sql, money.org_id, END_USERS)
            assert (0, 0) == (budget.spent_usd, scans.count())


@pytest.mark.parametrize("scope", ["org", "end_user:a"])
def test_another_missing_month_reads_its_runs(money: Money, scope: str) -> None:
    """The first one under a limit is summed up."""
    with money.connections.reading() as sql:
        scans = Scans(sql)
        budget_limits.get(sql, money.org_id, scope)
        assert 0 < scans.count()


@pytest.mark.parametrize(
    ("limited", "changed"),
    [
        *(("org", "org"), (KEY, KEY), ("end_user:a", "end_user:a")),
        *((END_USERS, END_USERS), (END_USERS, "end_user:a")),
    ],
)
def test_another_limit_of_the_month_reads_no_runs(money: Money, limited: str, changed: str) -> None:
    """What is spent under a limit is in its row, whether that is raised, lowered or removed."""
    money.limit("1", scope=limited)
    with money.connections.transaction() as tx:
        of = "end_user:a" if limited == END_USERS else limited
        spending.mark_exhausted(tx.sql, money.org_id, of)  # makes the row

    for month in (Decimal(2), Decimal("0.5"), None):
        with money.connections.transaction() as tx:
            scans = Scans(tx.sql)
            limits = {"max_cost_usd": None, "max_cost_usd_per_month": month}
            budget_limits.set_(tx, money.org_id, changed, **limits)
            assert 0 == scans.count()


def test_a_personas_first_reservation_reads_no_runs(money: Money) -> None:
    """Its row of the month is made with nothing spent."""
    claim = money.stored.claimed()
    limits = money.limits(claim, LIMITED)

    with money.connections.transaction() as tx:
        scans = Scans(tx.sql)
        budgets.reserve(tx, claim, limits, Decimal(0), Decimal("0.5"))
        assert 0 == scans.count()
    assert ("0", "0.5") == money.month(f"persona:{LIMITED.key}")
