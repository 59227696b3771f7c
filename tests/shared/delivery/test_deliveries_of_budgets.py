"""Deliveries for budgets: at 80 % of a month's limit, and when the budget is exhausted."""

import json
from collections.abc import Iterator
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import select, text, update

from arkloop.shared.billing import budget_limits, budgets, spending
from arkloop.shared.billing.budgets import Refused
from arkloop.shared.billing.spending import END_USERS, ORG, end_user_scope, persona_scope
from arkloop.shared.delivery import endpoints
from arkloop.shared.storage.connections import Connections
from arkloop.shared.storage.tables.billing import budgets as budget_rows
from arkloop.shared.storage.tables.billing import reservations
from arkloop.shared.storage.tables.billing import spending as spending_rows
from arkloop.shared.storage.tables.delivery import webhook_deliveries
from tests.clients import User
from tests.shared.billing.money import Money
from tests.stored_runs import StoredRuns


class Org:
    """An org with one endpoint and a limit for itself."""

    def __init__(self, connections: Connections, org_id: UUID) -> None:
        self.connections, self.id = connections, org_id
        with connections.transaction() as tx:
            types = endpoints.EVENT_TYPES
            endpoints.create(
                tx, org_id, url="https://shop.example/", description="", event_types=types
            )

    def limit(self, usd: str, scope: str = ORG) -> None:
        with self.connections.transaction() as tx:
            budget_limits.set_(
                tx, self.id, scope, max_cost_usd=None, max_cost_usd_per_month=Decimal(usd)
            )

    def spend(self, usd: str, scope: str = ORG) -> None:
        with self.connections.transaction() as tx:
            [row] = spending.now(tx.sql, self.id, [scope])
            place = spending.place(scope, row.month)
            spending.move(tx.sql, self.id, {place: (Decimal(usd), Decimal(0))})

    def end_run(self, stored: StoredRuns, usd: str) -> None:
        """End a run of the end user `u1`."""
        run_id = stored.create()
        stored.set(run_id, end_user_id="u1")
        claim = stored.held(run_id)
        money = Money(stored)
        money.reserve(claim, usd)
        money.spend(claim, usd)

    def refuse(self, scope: str = ORG, *, limit: str = "10", others_reserved: bool = False) -> None:
        most = Decimal(limit)
        refused = Refused(scope, limit=most, needed=most + 1, others_reserved=others_reserved)
        with self.connections.transaction() as tx:
            budgets.note_refusal(tx, self.id, refused)

    def delivered(self) -> list[tuple[str, int, float]]:
        return [(d["scope"], d["percent"], d["max_cost_usd_per_month"]) for d in self.data()]

    def data(self) -> list[dict[str, Any]]:
        of = webhook_deliveries.c
        query = select(of.data).where(of.org_id == self.id, of.type == "budget.threshold_reached")
        with self.connections.reading() as sql:
            return [json.loads(data) for data in sql.scalars(query.order_by(of.created_at, of.seq))]


@pytest.fixture
def org(connections: Connections, alice: User) -> Iterator[Org]:
    yield Org(connections, alice.org_id)
    with connections.transaction() as tx:
        tx.sql.execute(text("TRUNCATE webhook_deliveries, webhook_endpoints"))


def test_each_threshold_is_delivered_once(org: Org) -> None:
    """One message is sent at 80 % and one at 100 % of a month's limit, however much follows."""
    org.limit("10")
    org.spend("7.99")
    assert [] == org.delivered()

    org.spend("0.01")
    org.spend("1")
    assert [("org", 80, 10)] == org.delivered()
    org.spend("1")
    org.spend("1")

    assert [("org", 80, 10), ("org", 100, 10)] == org.delivered()
    first, _ = org.data()
    with org.connections.reading() as sql:
        [row] = spending.now(sql, org.id, [ORG])
    expected = {
        "scope": "org",
        "month": f"{row.month:%Y-%m}",
        "percent": 80,
        "max_cost_usd_per_month": 10,
        "spent_usd": 8,
    }
    assert expected == first


def test_a_new_limit_has_thresholds_of_its_own(org: Org) -> None:
    """After the limit was raised its own 80 % are reported."""
    org.limit("10")
    org.spend("9")
    org.limit("20")
    org.spend("7")
    org.spend("1")

    assert [("org", 80, 10), ("org", 80, 20)] == org.delivered()


def test_a_refused_call_exhausts_the_budget(org: Org) -> None:
    """Where what is left does not suffice for a call, 100 % are reported, and 80 % not after
    that; money that others hold for now exhausts nothing.
    """
    org.limit("10")
    org.spend("7")
    org.refuse(others_reserved=True)
    assert [] == org.delivered()

    org.refuse()
    org.refuse()
    org.spend("2")

    assert [("org", 100, 10)] == org.delivered()


@pytest.mark.parametrize("limited", [ORG, END_USERS, end_user_scope("u1")])
def test_a_call_that_an_earlier_limit_refused_exhausts_no_budget(org: Org, limited: str) -> None:
    """The limit was changed after the refusal, or is being changed while that is noted."""
    scope = ORG if limited == ORG else end_user_scope("u1")
    org.limit("10", limited)
    org.spend("7", scope)
    with org.connections.transaction() as tx:
        values = {"max_cost_usd": None, "max_cost_usd_per_month": Decimal(50)}
        budget_limits.set_(tx, org.id, limited, **values)
        org.refuse(scope)
    org.refuse(scope)
    assert [] == org.delivered()

    org.refuse(scope, limit="50")
    assert [(scope, 100, 50)] == org.delivered()


def test_end_users_are_reported_by_their_own_limit_or_that_of_all(org: Org) -> None:
    """The message names the end user, with the limit that applies to it."""
    org.limit("10", END_USERS)
    org.limit("5", end_user_scope("vip"))
    org.spend("9", end_user_scope("u1"))
    org.spend("4", end_user_scope("vip"))
    org.spend("1", end_user_scope("u2"))

    assert [("end_user:u1", 80, 10), ("end_user:vip", 80, 5)] == org.delivered()


@pytest.mark.parametrize("limited", [ORG, END_USERS, end_user_scope("u1")])
def test_a_limit_below_what_is_spent_is_exhausted_at_once(
    org: Org, stored: StoredRuns, limited: str
) -> None:
    """No run is created that could spend more; once for each limit, and not for one of nothing."""
    scope = ORG if limited == ORG else end_user_scope("u1")
    org.limit("10", limited)
    org.end_run(stored, "5")
    org.limit("10", limited)
    assert [] == org.delivered()

    for usd in ("5", "5", "20", "4"):
        org.limit(usd, limited)
    org.limit("0", end_user_scope("new"))

    assert [(scope, 80, 5), (scope, 100, 5), (scope, 80, 4), (scope, 100, 4)] == org.delivered()


def month_passes(org: Org, days: int, *, is_limit_new: bool = False) -> None:
    """Move all that is reserved to a month that ended `days` ago, and the limits to a time before
    its end, or to its end.
    """
    month = f"((now() AT TIME ZONE 'UTC')::date - {days} - interval '1 month')::date"
    end = f"({month} + interval '1 month') AT TIME ZONE 'UTC'"
    set_at = end if is_limit_new else f"{end} - interval '1 microsecond'"
    with org.connections.transaction() as tx:
        for table, moved in (
            (spending_rows, {"month": text(month)}),
            (reservations, {"month": text(month)}),
            (budget_rows, {"updated_at": text(set_at)}),
        ):
            tx.sql.execute(update(table).where(table.c.org_id == org.id).values(**moved))


@pytest.mark.parametrize("limited", [ORG, END_USERS, end_user_scope("u1")])
@pytest.mark.parametrize(
    ("days", "is_limit_new", "percents"),
    [(2, True, []), (2, False, [80, 100]), (4, False, [])],
    ids=["new", "old", "long_over"],
)
def test_a_month_that_is_over_reaches_only_a_limit_that_it_had(
    org: Org,
    stored: StoredRuns,
    limited: str,
    days: int,
    is_limit_new: bool,
    percents: list[int],
) -> None:
    """A run that ends late counts in the month of its last model call; a limit of a single run
    that is set meanwhile changes nothing. Four days after the month's end nothing is sent: the
    deliveries that say what was sent before may be deleted soon.
    """
    scope = ORG if limited == ORG else end_user_scope("u1")
    money, run_id = Money(stored), stored.create(end_user_id="u1")
    claim = stored.held(run_id)
    money.limit("10", scope=limited)
    money.reserve(claim, "10")
    month_passes(org, days, is_limit_new=is_limit_new)

    money.limit("10", run="10", scope=limited)
    money.spend(claim, "10")

    assert [(scope, percent, 10) for percent in percents] == org.delivered()


@pytest.mark.parametrize("earlier", [None, "50"])
def test_a_month_that_is_over_does_not_reach_a_new_limit(
    org: Org, stored: StoredRuns, earlier: str | None
) -> None:
    """The limit was set first, or to another amount, while a run waited over the month's end."""
    money, claim = Money(stored), stored.claimed()
    money.limit(earlier)
    money.grant(50_000)
    money.reserve(claim, "10")
    month_passes(org, 2)

    money.limit("10")
    limits = money.limits(claim)
    with org.connections.transaction() as tx:
        budgets.settle(tx, claim, Decimal(10), limits)  # as a worker does that resumes it
    money.spend(claim, "10")

    assert [] == org.delivered()


def test_an_end_users_own_limit_is_exhausted_alone(org: Org, stored: StoredRuns) -> None:
    """That of each one counts for it when its own is gone."""
    org.limit("10", end_user_scope("u1"))
    org.end_run(stored, "5")
    org.limit("4", END_USERS)
    assert [] == org.delivered()

    with org.connections.transaction() as tx:
        none = {"max_cost_usd": None, "max_cost_usd_per_month": None}
        budget_limits.set_(tx, org.id, end_user_scope("u1"), **none)

    assert [("end_user:u1", 80, 4), ("end_user:u1", 100, 4)] == org.delivered()


def test_limits_of_personas_and_runs_are_not_reported(org: Org) -> None:
    """Only the budgets that the API sets have webhooks, and only those of a month."""
    org.limit("10", spending.api_key_scope(org.id))
    for scope in (persona_scope("shop"), spending.run_scope(org.id)):
        org.spend("100", scope)
        org.refuse(scope)
    org.refuse("run")

    assert [] == org.delivered()
