"""The limits of each end user of an org that has very many of them."""

import json
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import Update, func, select, text, update

from arkloop.shared.billing import budget_limits, end_user_limits, spending
from arkloop.shared.billing.spending import END_USERS, end_user_scope
from arkloop.shared.delivery import endpoints
from arkloop.shared.errors import BudgetExhausted
from arkloop.shared.runs import tidying
from arkloop.shared.storage.connections import Connections
from arkloop.shared.storage.tables.accounts import orgs
from arkloop.shared.storage.tables.billing import budgets
from arkloop.shared.storage.tables.billing import spending as months
from arkloop.shared.storage.tables.delivery import webhook_deliveries
from tests.query_plans import noted
from tests.shared.billing.money import FREE, SERVERS, Money
from tests.waiting import eventually

pytestmark = pytest.mark.own_database

NAMES = ("a", "b", "c", "d", "e")


@pytest.fixture
def spent(money: Money) -> Money:
    """Five end users who have spent 5 of 10 USD; an endpoint is notified of budgets."""
    money.limit("10", scope=END_USERS)
    with money.connections.transaction() as tx:
        types = endpoints.EVENT_TYPES
        url = "https://shop.example/"
        endpoints.create(tx, money.org_id, url=url, description="", event_types=types)
    for name in NAMES:
        money.end_run_of(name, "5")
    return money


def marked(money: Money) -> list[str]:
    """Return the names of those who are marked as exhausted."""
    of = months.c
    query = select(of.scope).where(of.org_id == money.org_id, of.exhausted_at.is_not(None))
    with money.connections.reading() as sql:
        return [scope.partition(":")[2] for scope in sql.scalars(query.order_by(of.scope))]


def deliveries(money: Money) -> int:
    of = webhook_deliveries.c
    query = select(func.count()).where(
        of.org_id == money.org_id, of.type == "budget.threshold_reached"
    )
    with money.connections.reading() as sql:
        return sql.scalar(query) or 0


def reported(money: Money) -> list[float]:
    """Return the limit that each message has."""
    of = webhook_deliveries.c
    query = select(of.data).where(of.org_id == money.org_id, of.type == "budget.threshold_reached")
    with money.connections.reading() as sql:
        return [json.loads(data)["max_cost_usd_per_month"] for data in sql.scalars(query)]


def waiting(money: Money) -> int:
    """Count the sessions that wait for a lock."""
    query = text(
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    with money.connections.reading() as sql:
        return int(sql.scalar(query) or 0)


def mark_left(connections: Connections) -> None:
    while end_user_limits.mark_left(connections):
        pass


def test_a_limit_marks_a_batch_and_the_sweep_the_rest(
    spent: Money, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time of a request does not depend on how many end users have spent the limit; each is
    reported once, after the same limit is set again, too.
    """
    monkeypatch.setattr(spending, "EXHAUSTED_AT_ONCE", 2)
    spent.limit("4", scope=END_USERS)
    assert ["a", "b"] == marked(spent)

    while tidying.tidy(spent.connections):
        pass
    assert ([*NAMES], 2 * len(NAMES)) == (marked(spent), deliveries(spent))

    spent.limit("4", scope=END_USERS)
    mark_left(spent.connections)
    assert 2 * len(NAMES) == deliveries(spent)


@pytest.mark.parametrize("changed", [END_USERS, end_user_scope("e")])
def test_a_limit_that_changes_while_end_users_are_marked_is_not_reported(
    spent: Money, monkeypatch: pytest.MonkeyPatch, changed: str
) -> None:
    """What the mark has read is the limit that its messages have; the change waits for them."""
    with monkeypatch.context() as few:
        few.setattr(spending, "EXHAUSTED_AT_ONCE", 1)
        spent.limit("4", scope=END_USERS)
    with ThreadPoolExecutor(2) as threads:
        with spent.connections.transaction() as tx:
            # Held where it stores the message for the first of them.
            tx.sql.execute(text("LOCK TABLE webhook_deliveries IN SHARE MODE"))
            mark = threads.submit(mark_left, spent.connections)
            eventually(lambda: waiting(spent) == 1)
            change = threads.submit(spent.limit, "50", scope=changed)
            eventually(lambda: change.done() or waiting(spent) == 2)
        mark.result(60)
        change.result(60)

    assert {4} == set(reported(spent))


def test_the_limit_of_each_one_may_change_while_an_own_one_is_removed(spent: Money) -> None:
    """The limit that the end user has then is reported as it was read."""
    scope = end_user_scope("a")
    spent.limit("10", scope=scope)
    spent.limit("4", scope=END_USERS)
    with ThreadPoolExecutor(2) as threads:
        with spent.connections.transaction() as tx:
            # Held where it is about to note that the limit of each one is spent.
            tx.sql.execute(select(months).where(months.c.scope == scope).with_for_update())
            removal = threads.submit(spent.limit, None, scope=scope)
            eventually(lambda: waiting(spent) == 1)
            change = threads.submit(spent.limit, "50", scope=END_USERS)
            eventually(lambda: change.done() or waiting(spent) == 2)
        removal.result(60)
        change.result(60)

    assert {4} == set(reported(spent))


def test_the_sweep_comes_to_an_end_after_the_clock_was_set_back(
    spent: Money, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit was set at a time that comes again: each end user is marked once all the same."""
    monkeypatch.setattr(spending, "EXHAUSTED_AT_ONCE", 2)
    spent.limit("4", scope=END_USERS)
    with spent.connections.transaction() as tx:
        ahead = func.now() + timedelta(minutes=10)
        tx.sql.execute(update(budgets).values(updated_at=ahead))
        tx.sql.execute(update(months).values(exhausted_at=None))

    with spent.connections.transaction() as tx:
        batches = [spending.mark_end_users_exhausted(tx.sql, spent.org_id) for _ in range(4)]
    assert [end_user_scope("b"), end_user_scope("d"), None, None] == batches
    assert [*NAMES] == marked(spent)


def test_a_limit_that_is_set_after_the_clock_was_set_back_is_reported(spent: Money) -> None:
    """The limit before was set, and was noted to be spent, at times that are yet to come."""
    spent.limit("4", scope=END_USERS)
    hour = timedelta(hours=1)
    with spent.connections.transaction() as tx:
        tx.sql.execute(update(budgets).values(updated_at=budgets.c.updated_at + hour))
        tx.sql.execute(update(months).values(exhausted_at=months.c.exhausted_at + hour))

    spent.limit("3", scope=END_USERS)

    assert 2 * len(NAMES) == reported(spent).count(3)


def test_a_limit_binds_those_who_are_not_marked_yet(
    spent: Money, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mark is for webhooks alone: the limit refuses runs from its commit on."""
    monkeypatch.setattr(spending, "EXHAUSTED_AT_ONCE", 1)
    spent.limit("4", scope=END_USERS)

    assert ["a"] == marked(spent)
    for name in NAMES:
        with spent.connections.reading() as sql, pytest.raises(BudgetExhausted):
            budget_limits.check_open(sql, spent.stored.actor, FREE, SERVERS, name)


@pytest.mark.parametrize(
    "change",
    [
        update(orgs).values(suspended_at=func.now()),
        update(budgets).values(updated_at=func.now() - 2 * end_user_limits.WATCHED),
    ],
    ids=["suspended", "long-ago"],
)
def test_the_sweep_leaves_other_orgs_alone(
    spent: Money, monkeypatch: pytest.MonkeyPatch, change: Update
) -> None:
    """A suspended org may be copied to another cell meanwhile; a limit that was set long ago has
    been looked at.
    """
    monkeypatch.setattr(spending, "EXHAUSTED_AT_ONCE", 1)
    spent.limit("4", scope=END_USERS)
    with spent.connections.transaction() as tx:
        tx.sql.execute(change)

    mark_left(spent.connections)

    assert ["a"] == marked(spent)


def test_a_limit_that_is_set_again_counts_in_batches(
    spent: Money, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What ended without a limit is counted for some end users at a time, and, in the transaction
    that sets the limit, for those alone of whom a run has ended since.
    """
    monkeypatch.setattr(spending, "RECOUNTED_AT_ONCE", 2)
    monkeypatch.setattr(end_user_limits, "LONGEST_COMMIT", 0 * end_user_limits.LONGEST_COMMIT)
    spent.limit(None, scope=END_USERS)
    for name in NAMES:
        spent.end_run_of(name, "1")

    with noted(spent.connections) as statements:
        since = end_user_limits.recount_ahead(spent.connections, spent.org_id)
    spent.end_run_of("d", "1")
    with noted(spent.connections) as last, spent.connections.transaction() as tx:
        budget_limits.set_(
            tx,
            spent.org_id,
            END_USERS,
            max_cost_usd=None,
            max_cost_usd_per_month=Decimal(20),
            recounted_since=since,
        )

    assert [["a", "b"], ["c", "d"], ["e"]] == recounted(statements)
    assert [["d"]] == recounted(last)
    assert ["6", "6", "6", "7", "6"] == [spent.month(end_user_scope(name))[0] for name in NAMES]


def recounted(statements: list[tuple[str, dict[str, Any]]]) -> list[list[str]]:
    """Return the end users that each statement has counted anew."""
    return [
        [scope.partition(":")[2] for scope in values["scopes"]]
        for sql, values in statements
        if sql.startswith("UPDATE spending")
    ]


def test_a_limit_that_changes_counts_nothing(spent: Money) -> None:
    """What is spent under a limit is in the rows."""
    with noted(spent.connections) as statements:
        assert None is end_user_limits.recount_ahead(spent.connections, spent.org_id)
    assert [] == recounted(statements)
