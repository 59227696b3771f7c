"""The queries of budgets, usage and credits read an index, even with very many orgs."""

import re
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from uuid import UUID

import pytest
from sqlalchemy import NullPool, create_engine, text

from arkloop.shared.accounts import accounts
from arkloop.shared.billing import (
    budget_limits,
    budgets,
    credits,
    end_user_limits,
    spending,
    usage_reports,
    usage_sums,
)
from arkloop.shared.billing.usage_reports import Period
from arkloop.shared.catalog import personas
from arkloop.shared.ids import new_id
from arkloop.shared.runs import claims
from arkloop.shared.storage.connections import Connections
from arkloop.shared.times import now
from tests.query_plans import Plans, noted, only
from tests.shared.billing.money import SERVERS, Money
from tests.stored_runs import StoredRuns

pytestmark = pytest.mark.owner

LIMITED = replace(personas.builtin()["assistant@1"], max_cost_usd_per_month=Decimal(10))
HOUR_BY_HOUR = "now() - n * interval '1 hour'"
ITS_MONTH = f"date_trunc('month', ({HOUR_BY_HOUR}) AT TIME ZONE 'UTC')"

_OF_OTHERS = """
INSERT INTO run_usage (run_id, route_id, org_id, user_id, api_key_id, persona_key, model,
    usage_source, cost_usd, month)
SELECT gen_random_uuid(), 'r', :org_id, :org_id, CASE WHEN n % 2 = 0 THEN gen_random_uuid() END,
    'assistant', 'm', 'reported', 1, date_trunc('month', now() AT TIME ZONE 'UTC')
FROM generate_series(1, 50) AS n
"""
_FILL = (
    "INSERT INTO orgs (id, name) SELECT gen_random_uuid(), 'o' FROM generate_series(1, 2000)",
    "INSERT INTO budgets (org_id, scope, max_cost_usd_per_month) SELECT id, 'org', 1 FROM orgs",
    "INSERT INTO credit_balances (org_id, balance) SELECT id, 1000 FROM orgs WHERE name = 'o'",
    "INSERT INTO spending (org_id, scope, month) SELECT id, 'org', date '2026-01-01' + n * 31"
    " FROM orgs CROSS JOIN generate_series(1, 5) AS n",
    "INSERT INTO holds (run_id, org_id, month, scopes, cost_usd, held_usd)"
    " SELECT gen_random_uuid(), id, now(), '{org}', 0, 0 FROM orgs",
    f"""
    INSERT INTO run_usage (run_id, route_id, org_id, user_id, persona_key, model, usage_source,
        cost_usd, ended_at, month)
    SELECT gen_random_uuid(), 'r', id, id, 'assistant', 'm', 'reported', 1, {HOUR_BY_HOUR},
        {ITS_MONTH}
    FROM orgs CROSS JOIN generate_series(1, 10) AS n
    """,
    f"""
    INSERT INTO run_usage (run_id, route_id, org_id, user_id, persona_key, model, usage_source,
        cost_usd, ended_at, month, end_user_id)
    SELECT gen_random_uuid(), 'r', :org, :org, 'assistant', 'm', 'reported', 1, {HOUR_BY_HOUR},
        {ITS_MONTH}, 'user ' || n % 1000
    FROM generate_series(1, 20000) AS n
    """,
    """
    INSERT INTO usage_days
    SELECT org_id, ended_at::date, 'assistant', NULL, NULL, count(*), 0, 0, 0, 0, 0, count(*), 1
    FROM run_usage GROUP BY org_id, ended_at::date
    """,
    """
    INSERT INTO usage_intervals
    SELECT org_id, date_trunc('hour', ended_at), 'assistant', NULL, NULL, count(*), 0, 0, 0, 0, 0,
        count(*), 1
    FROM run_usage WHERE ended_at >= current_date - 3  -- those of days before are deleted
    GROUP BY org_id, date_trunc('hour', ended_at)
    """,
    "UPDATE usage_days_until SET day = current_date - 1, interval_at = current_date",
    """
    INSERT INTO threads (id, org_id, created_by_user_id)
    SELECT gen_random_uuid(), :org, (SELECT id FROM users LIMIT 1) FROM generate_series(1, 5000)
    """,
    """
    INSERT INTO runs (id, org_id, thread_id, created_by_user_id, trace_id, persona_id, route_id,
        model, position, state, queued_at)
    SELECT gen_random_uuid(), org_id, id, created_by_user_id, '-', 'assistant@1', 'r', 'm', 1,
        'completed', now()
    FROM threads
    """,
    """
    INSERT INTO messages (id, org_id, thread_id, created_by_user_id, position, role, content)
    SELECT gen_random_uuid(), org_id, id, created_by_user_id, 2, 'user', 'Hello' FROM threads
    """,
    """
    INSERT INTO ledger_entries (id, org_id, kind, run_id, debit_account, credit_account, credits)
    SELECT run_id, org_id, 'usage', run_id, 'receivable', 'revenue', 1 FROM run_usage
    """,
)


@pytest.fixture(scope="module")
def org_id(connections: Connections) -> UUID:
    """The id of one of 2,000 orgs that have limits, credits and runs; this one has 20,000 runs."""
    with connections.transaction() as tx:
        main = accounts.create_org(tx, "main")
        accounts.create_user(
            tx, org_id=main, role="owner", login="o", email="o@example.com", password_hash="-"
        )
    patient = create_engine(connections.settings.database_url, poolclass=NullPool)  # no time limit
    with patient.begin() as sql:
        sql.execute(text("SELECT set_config('arkloop.orgs', '*', true)"))
        for statement in _FILL:
            sql.execute(text(statement), {"org": main} if ":org" in statement else {})
    with patient.connect() as sql:
        sql.execution_options(isolation_level="AUTOCOMMIT").execute(text("VACUUM ANALYZE"))
    return main


@pytest.fixture
def money(stored: StoredRuns, org_id: UUID) -> Money:
    return Money(stored)


@pytest.mark.parametrize("report", ["total", "daily", "by_model"])
def test_a_report_reads_the_rows_of_its_period(
    connections: Connections, org_id: UUID, report: str
) -> None:
    """A range of an index each: for single runs, for intervals and for days."""
    period = Period(since=now() - timedelta(days=31), until=now(), persona="assistant")
    ask = getattr(usage_reports, report)

    plans = only(connections, lambda sql: ask(sql, org_id, period))

    assert plans.indexes() == {
        "ix_run_usage_org_id_ended_at",
        "ix_usage_days_org_id_day",
        "ix_usage_intervals_org_id_began_at",
    }


@pytest.mark.parametrize("report", ["total", "daily", "by_model"])
def test_a_report_of_an_end_user_reads_its_rows(
    connections: Connections, org_id: UUID, report: str
) -> None:
    """It reads a range of an index, not all the org's rows."""
    period = Period(since=now().replace(day=1), until=now(), end_user_id="nobody")
    ask = getattr(usage_reports, report)

    plans = only(connections, lambda sql: ask(sql, org_id, period))

    # `test_reports.py` has that it is not prepared.
    indexes = plans.indexes(is_prepared=False)
    assert "ix_run_usage_org_id_end_user_id_ended_at" in indexes
    assert "ix_run_usage_org_id_ended_at" not in indexes


def test_summing_up_usage(connections: Connections, org_id: UUID) -> None:
    """Runs of the period are read, not those of all the past."""
    until = usage_sums.interval_of(now())
    values = {"since": until - usage_sums.INTERVAL, "until": until, "org_id": None}
    values["credits_per_usd"] = 1

    plans = only(connections, lambda sql: sql.exec_driver_sql(usage_sums.ADD_INTERVALS, values))

    indexes = plans.indexes(is_prepared=False)
    assert {"ix_run_usage_org_id_ended_at", "pk_orgs"} == indexes


@pytest.mark.parametrize("deep", [False, True])
def test_a_page_of_the_ledger(connections: Connections, org_id: UUID, deep: bool) -> None:
    """Backward from its place, and no further than it goes."""
    before = (now(), new_id()) if deep else None

    plans = only(connections, lambda sql: credits.entries(sql, org_id, limit=51, before=before))

    plans.check({"ix_ledger_entries_org_id_created_at_id", "pk_ledger_entries"})


def test_a_claim_looks_for_limits_by_index(money: Money) -> None:
    """It reads one row of each, of new and of resumed runs, however many orgs have some."""
    stored, worker_id = money.stored, money.stored.worker()
    run_id = stored.create()
    with noted(stored.connections) as statements:
        assert claims.claim(stored.connections, [run_id], worker_id)
    [(statement, values)] = statements

    for are_new in (True, False):
        plans = Plans(stored.connections, (statement, {**values, "are_new": are_new}))
        assert {"pk_runs", "pk_budgets", "pk_credit_balances", "pk_holds"} <= plans.indexes()


def test_a_reservation_and_its_settlement_read_by_index(money: Money) -> None:
    """All that happens while others wait for the row of the month."""
    money.limit("10")
    money.grant(10_000)
    claim = money.stored.claimed()
    limits = money.limits(claim, LIMITED)
    with noted(money.connections) as statements:
        money.reserve(claim, "1", persona=LIMITED)
        money.settle(claim, "0.5")
        money.spend(claim, "0.5")
    assert 2 == len(limits.monthly)

    for sql, values in statements:
        if "unnest" in sql or "holds" in sql or "credit_balances" in sql:
            Plans(money.connections, (sql, values)).indexes()


def test_a_look_before_a_run_is_created(money: Money) -> None:
    """The limits and what there is of them."""
    money.limit("10")
    actor = money.stored.actor
    with noted(money.connections) as statements, money.connections.reading() as sql:
        budget_limits.check_open(sql, actor, LIMITED, SERVERS)

    found = {name for statement in statements for name in indexes(money, statement)}

    assert {
        *("pk_budgets", "pk_credit_balances", "pk_spending"),
        *("ix_run_usage_org_id_ended_at", "ix_run_usage_org_id_end_user_id_ended_at"),
        "ix_run_usage_org_id_api_key_id_ended_at",
    } >= found
    assert {"pk_budgets", "pk_spending"} <= found


def test_the_first_look_at_an_end_user_reads_its_rows(money: Money) -> None:
    """It reads no runs of others, although very many end users have a row in each month."""
    money.limit("10", scope="end_user")
    with noted(money.connections) as statements, money.connections.reading() as sql:
        budget_limits.check_open(
            sql, money.stored.actor, personas.builtin()["assistant@1"], SERVERS, "a"
        )
    [_, month, *_] = statements

    assert "ix_run_usage_org_id_end_user_id_ended_at" in indexes(money, month)


def test_the_limits_of_each_end_user_read_by_index(money: Money) -> None:
    """What is counted and marked in batches, and the sweep's look for orgs to do so for."""
    money.limit("10", scope="end_user")
    money.end_run_of("user 1", "1")
    money.limit(None, scope="end_user")
    with noted(money.connections) as statements:
        since = end_user_limits.recount_ahead(money.connections, money.org_id)
        with money.connections.transaction() as tx:
            spending.recount_end_users(tx.sql, money.org_id, since)
        money.limit("0.5", scope="end_user")
        end_user_limits.mark_left(money.connections)

    of_rows = [one for one in statements if re.search("spending|LATERAL", one[0])]
    found = [indexes(money, statement) for statement in of_rows]
    assert {"pk_orgs", "pk_budgets"} in found
    assert {"pk_spending"} in found


def test_a_keys_missing_month_reads_its_runs_alone(connections: Connections, org_id: UUID) -> None:
    """The row of a key that is first used late in a month is read and made without the runs of
    others in its org.
    """
    query = text(
        "SELECT seq_tup_read + idx_tup_fetch FROM pg_stat_xact_user_tables"
        " WHERE relname = 'run_usage'"
    )
    with connections.transaction() as tx:
        tx.sql.execute(text(_OF_OTHERS), {"org_id": org_id})
        before = tx.sql.scalar(query)
        spending.recount(tx.sql, org_id, spending.api_key_scope(new_id()))
        assert before == tx.sql.scalar(query)
        spending.recount(tx.sql, org_id, spending.ORG)
        assert before + 50 <= tx.sql.scalar(query)


def test_the_locks_of_many_ends_are_found_by_index(money: Money) -> None:
    """The locks of reservations, months and balances are found by indexes."""
    money.limit("10")
    money.grant(100)
    claim = money.stored.claimed()
    money.reserve(claim, "0.01")
    with money.connections.transaction() as tx, noted(money.connections) as statements:
        budgets.lock(tx, [claim.run_id])

    assert [{"pk_holds"}, {"pk_spending"}, {"pk_credit_balances"}] == [
        indexes(money, statement) for statement in statements
    ]


def indexes(money: Money, statement: tuple[str, dict[str, object]]) -> set[str]:
    return Plans(money.connections, statement).indexes()
