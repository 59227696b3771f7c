"""Money that is reserved before it is spent: never more than there is, also at the same time."""

from contextlib import suppress
from dataclasses import replace
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Row, select, text, update

from arkloop.shared.billing import budget_limits, budgets, credits
from arkloop.shared.billing.budget_limits import Limits
from arkloop.shared.billing.budgets import Refused
from arkloop.shared.catalog import personas
from arkloop.shared.catalog.model_routes import Route
from arkloop.shared.catalog.personas import Persona
from arkloop.shared.claim import Claim
from arkloop.shared.errors import BudgetExhausted, LeaseLost, Unavailable
from arkloop.shared.events.types import RouteCost, RunCompleted, RunCost
from arkloop.shared.events.usage import Usage
from arkloop.shared.ids import new_id
from arkloop.shared.runs import endings, sweep
from arkloop.shared.runs.endings import Ending, Outcome
from arkloop.shared.runs.states import RunState
from arkloop.shared.runs.transitions import Totals
from arkloop.shared.storage.tables.billing import ledger_entries, reservations, run_usage, spending
from tests.stored_runs import StoredRuns, numbered
from tests.waiting import in_parallel

FREE = personas.builtin()["assistant@1"]
SERVERS = Route(id="scripted", provider="scripted", model="scripted-1")
OWN = Route(id=str(new_id()), provider="openai", model="m", is_of_org=True)
ONE = Decimal(1)


class Money:
    """An org's budgets and balance, and its runs as their workers spend them."""

    def __init__(self, stored: StoredRuns) -> None:
        self.stored = stored
        self.org_id = stored.actor.org_id
        self.connections = stored.connections

    # ---- setting ----

    def limit(self, month: str | None = None, run: str | None = None, scope: str = "org") -> None:
        with self.connections.transaction() as tx:
            budget_limits.set_(
                tx,
                self.org_id,
                scope,
                max_cost_usd=None if run is None else Decimal(run),
                max_cost_usd_per_month=None if month is None else Decimal(month),
            )

    def grant(self, amount: int) -> None:
        with self.connections.transaction() as tx:
            credits.grant(tx, self.org_id, amount)

    # ---- what a worker does ----

    def limits(self, claim: Claim, persona: Persona = FREE) -> Limits:
        with self.connections.reading() as sql:
            return budgets.limits(sql, claim, persona)

    def reserve(
        self,
        claim: Claim,
        worst: str,
        so_far: str = "0",
        persona: Persona = FREE,
        *,
        own: str = "0",
        on_own_route: bool = False,
        keep: str = "0",
    ) -> None:
        limits = self.limits(claim, persona)
        with self.connections.transaction() as tx:
            budgets.reserve(
                tx,
                claim,
                limits,
                Decimal(so_far),
                Decimal(worst),
                own_usd=Decimal(own),
                on_own_route=on_own_route,
                keep_usd=Decimal(keep),
            )

    def settle(self, claim: Claim, so_far: str, own: str = "0", keep: str = "0") -> None:
        with self.connections.transaction() as tx:
            budgets.settle(tx, claim, Decimal(so_far), own_usd=Decimal(own), keep_usd=Decimal(keep))

    def spend(self, claim: Claim, cost: str, own: str = "0") -> None:
        """End the run, which has cost so much, and `own` more on a model of the org's."""
        assert Outcome.ENDED == self.end(claim, cost, own)

    def end(
        self, claim: Claim, cost: str, own: str = "0", *, has_reservation: bool = True
    ) -> Outcome:
        used = totals(cost)
        if own != "0":
            used = used.plus(totals(own, str(new_id())).routes[0])
        last = RunCompleted(None, used.usage, used.cost_usd, "stop")
        ending = Ending(
            claim=claim,
            state=RunState.COMPLETED,
            stored=numbered(self.stored.last_seq(claim.run_id), last),
            totals=used,
            has_reservation=has_reservation,
        )
        with self.connections.transaction() as tx:
            return (
                endings.end_with_reservation(tx, ending)
                if has_reservation
                else endings.end(tx, [ending])[0]
            )

    def crash(self, claim: Claim, cost: str) -> None:
        """Lose the worker for good after it has written what it has used."""
        used = totals(cost)
        self.stored.write(claim, RunCost(used.usage, used.cost_usd, used.routes))
        self.stored.set(claim.run_id, state="waiting", pending_input={"request_id": str(new_id())})

    def a_month_passes(self) -> None:
        """Move all that has happened to a month ago."""
        with self.connections.transaction() as tx:
            for table in ("run_usage", "holds", "spending"):
                tx.sql.execute(
                    text(
                        f"UPDATE {table} SET month = month - interval '1 month' WHERE org_id = :org"
                    ),
                    {"org": self.org_id},
                )
            tx.sql.execute(
                update(run_usage)
                .where(run_usage.c.org_id == self.org_id)
                .values(ended_at=run_usage.c.ended_at - text("interval '1 month'"))
            )

    # ---- looking ----

    def month(self, scope: str = "org", ago: int = 0) -> tuple[str, str]:
        """Return (spent, held) in USD, as the table has them."""
        with self.connections.reading() as sql:
            row = sql.execute(
                select(spending.c.spent_usd, spending.c.held_usd).where(
                    spending.c.org_id == self.org_id,
                    spending.c.scope == scope,
                    spending.c.month
                    == text(
                        "date_trunc('month', now() AT TIME ZONE 'UTC')::date"
                        f" - interval '{ago} month'"
                    ),
                )
            ).one_or_none()
        return (short(row[0]), short(row[1])) if row else ("", "")

    def balance(self) -> tuple[int | None, int]:
        with self.connections.reading() as sql:
            assert [] == credits.check(sql, self.org_id)
            has = credits.balance(sql, self.org_id)
        return has.balance, has.held

    def reservations(self) -> list[Row[Any]]:
        with self.connections.reading() as sql:
            return list(
                sql.execute(select(reservations).where(reservations.c.org_id == self.org_id))
            )

    def charged(self, run_id: UUID) -> list[tuple[str, str, int]]:
        entry = ledger_entries.c
        with self.connections.reading() as sql:
            rows = sql.execute(
                select(entry.debit_account, entry.credit_account, entry.credits)
                .where(entry.run_id == run_id)
                .order_by(entry.debit_account)
            )
            return [tuple(row) for row in rows]

    def used(self, run_id: UUID) -> list[Row[Any]]:
        with self.connections.reading() as sql:
            return list(sql.execute(select(run_usage).where(run_usage.c.run_id == run_id)))


def totals(cost: str, route_id: str = "scripted") -> Totals:
    usage = Usage(input_tokens=10, output_tokens=5)
    return Totals().plus(RouteCost(route_id, "scripted-1", usage, Decimal(cost)))


def short(amount: Decimal) -> str:
    return f"{amount.normalize():f}"


@pytest.fixture
def money(stored: StoredRuns) -> Money:
    return Money(stored)


# ---- reserving -----------------------------------------------------------------------


def test_a_run_without_limits_holds_nothing(money: Money) -> None:
    """A run without limits reserves nothing, whatever it may cost."""
    claim = money.stored.claimed()
    assert not claim.is_limited

    money.reserve(claim, "1000000")

    assert ([], ("", "")) == (money.reservations(), money.month())
    assert not money.limits(claim).needs_reservation


def test_a_run_holds_its_worst_case_until_it_is_settled(money: Money) -> None:
    """A run reserves its worst case, then its cost so far, and has spent that at its end."""
    money.limit("1")
    claim = money.stored.claimed()
    assert claim.is_limited

    money.reserve(claim, "0.6")
    assert ("0", "0.6") == money.month()
    money.settle(claim, "0.1")
    assert ("0", "0.1") == money.month()
    money.reserve(claim, "0.9", so_far="0.1")
    assert ("0", "1") == money.month()
    money.spend(claim, "0.25")

    assert (("0.25", "0"), []) == (money.month(), money.reservations())


def test_money_for_the_last_call_stays_reserved(money: Money) -> None:
    """As far as it was reserved: a call that costs more than its worst case takes it."""
    money.limit("1")
    claim = money.stored.claimed()
    money.reserve(claim, "0.6")

    money.settle(claim, "0.1", keep="0.2")
    assert ("0", "0.3") == money.month()
    money.reserve(claim, "0.5", so_far="0.1")
    money.settle(claim, "0.5", keep="0.2")
    assert ("0", "0.6") == money.month()
    money.settle(claim, "0.7", keep="0.2")
    assert ("0", "0.7") == money.month()


def test_money_for_anothers_last_call_is_not_waited_for(money: Money) -> None:
    """It is reserved until that run ends; what its call may not cost is free within seconds."""
    money.limit("1")
    claim, other = money.stored.claimed(), money.stored.claimed()
    money.reserve(other, "0.8", keep="0.3")

    for needed, others_reserved in (("0.7", True), ("0.71", False)):
        with pytest.raises(Refused) as refused:
            money.reserve(claim, needed)
        assert others_reserved == refused.value.others_reserved
    money.settle(other, "0.2", keep="0.3")
    with pytest.raises(Refused) as refused:
        money.reserve(claim, "0.51")
    assert not refused.value.others_reserved
    money.reserve(claim, "0.5")


def test_the_same_reservation_again_is_the_same(money: Money) -> None:
    """The answer of a COMMIT may get lost: who tries again holds no more."""
    money.limit("1")
    claim = money.stored.claimed()

    for _ in range(3):
        money.reserve(claim, "0.6")

    assert ("0", "0.6") == money.month()


def test_what_does_not_fit_is_refused_and_what_was_held_stays(money: Money) -> None:
    """The error names the scope, the limit and what is needed."""
    money.limit("1")
    claim = money.stored.claimed()
    money.reserve(claim, "0.5")

    with pytest.raises(Refused) as refused:
        money.reserve(claim, "0.50000001", so_far="0.5")

    assert ("org", ONE, Decimal("1.00000001"), False) == (
        refused.value.scope,
        refused.value.limit,
        refused.value.needed,
        refused.value.others_reserved,
    )
    assert str(refused.value) == (
        "The next model call may bring the cost to 1.00000001 USD;"
        " the budget of the org in this month is 1 USD."
    )
    assert ("0", "0.5") == money.month()


def test_a_budget_is_used_to_its_last_digit(money: Money) -> None:
    """A budget can be spent exactly, to its last digit."""
    money.limit("0.3")
    claim = money.stored.claimed()

    money.reserve(claim, "0.2", so_far="0.1")
    money.spend(claim, "0.3")

    assert ("0.3", "0") == money.month()


@pytest.mark.parametrize(("first", "helps"), [("0", True), ("0.4", True), ("0.5", False)])
def test_a_refused_run_knows_whether_waiting_may_help(
    money: Money, first: str, helps: bool
) -> None:
    """A refused run may wait for what other runs have reserved, not for what they have spent."""
    money.limit("1")
    other, claim = money.stored.claimed(), money.stored.claimed()
    money.reserve(other, "0.5", so_far=first)

    with pytest.raises(Refused) as refused:
        money.reserve(claim, "0.6")
    assert helps == refused.value.others_reserved

    money.settle(other, first)
    if helps:
        money.reserve(claim, "0.6")


def test_the_lowest_limit_of_a_run_binds(money: Money) -> None:
    """That of the org, the key or the persona; without a word to the database."""
    money.limit(run="0.5")
    claim = money.stored.claimed()
    strict = replace(FREE, max_cost_usd=Decimal("0.2"))

    money.reserve(claim, "0.5")
    with pytest.raises(Refused) as of_persona:
        money.reserve(claim, "0.3", persona=strict)
    with pytest.raises(Refused) as of_org:
        money.reserve(claim, "0.2", so_far="0.4")

    limits = [(one.value.scope, short(Decimal(one.value.limit))) for one in (of_persona, of_org)]
    assert [("run", "0.2"), ("run", "0.5")] == limits
    assert f"; the budget of a run of the persona {strict.key} is 0.2 USD." in str(of_persona.value)
    assert "; the budget of a run of the org is 0.5 USD." in str(of_org.value)
    assert [] == money.reservations()


def test_every_scope_of_a_run_counts(money: Money) -> None:
    """Org, key and persona each have a month of their own; the first that is used up refuses."""
    key = new_id()
    money.limit("10")
    money.limit("2", scope=f"api_key:{key}")
    persona = replace(FREE, max_cost_usd_per_month=ONE)
    by_key = replace(money.stored, actor=replace(money.stored.actor, api_key_id=key))
    claim, other = by_key.claimed(), money.stored.claimed()
    assert (key, None) == (claim.api_key_id, other.api_key_id)

    money.reserve(claim, "0.7", persona=persona)
    money.reserve(other, "5")
    with pytest.raises(Refused) as refused:
        money.reserve(other, "0.4", persona=persona)

    assert "persona:assistant" == refused.value.scope
    scopes = ("org", f"api_key:{key}", "persona:assistant")
    assert [("0", "5.7"), ("0", "0.7"), ("0", "0.7")] == [money.month(scope) for scope in scopes]
    money.spend(claim, "0.1")
    money.spend(other, "0.2")
    assert [("0.3", "0"), ("0.1", "0"), ("0.1", "0")] == [money.month(scope) for scope in scopes]


def test_a_claim_that_is_over_reserves_nothing(money: Money) -> None:
    """A claim that is over can neither reserve nor settle, and leaves no reservation behind."""
    money.limit("1")
    claim = money.stored.claimed()
    late = replace(claim, fence=claim.fence - 1)

    with pytest.raises(LeaseLost):
        money.reserve(late, "0.1")
    with pytest.raises(LeaseLost):
        money.settle(late, "0.1")

    money.spend(claim, "0")
    with pytest.raises(LeaseLost):
        money.reserve(claim, "0.1")
    assert [] == money.reservations()


def test_a_call_that_costs_more_than_its_worst_case_is_counted(money: Money) -> None:
    """A provider that is not honest brings the org over its limit; nobody hides it."""
    money.limit("1")
    claim, other = money.stored.claimed(), money.stored.claimed()
    money.reserve(claim, "0.5")

    money.settle(claim, "1.5")
    assert ("0", "1.5") == money.month()
    with pytest.raises(Refused):
        money.reserve(other, "0.1")
    money.spend(claim, "1.6")

    assert ("1.6", "0") == money.month()


# ---- months --------------------------------------------------------------------------


def test_a_new_month_begins_with_nothing(money: Money) -> None:
    """The whole reservation of a resumed run moves into it, with its earlier cost."""
    money.limit("1")
    claim, done = money.stored.claimed(), money.stored.claimed()
    money.reserve(done, "0.5")
    money.spend(done, "0.5")
    money.reserve(claim, "0.4", so_far="0.1")

    money.a_month_passes()
    money.reserve(claim, "0.8", so_far="0.2")

    assert [("0.5", "0"), ("0", "1")] == [money.month(ago=1), money.month()]
    money.spend(claim, "0.3")
    assert [("0.5", "0"), ("0.3", "0")] == [money.month(ago=1), money.month()]


def test_a_run_that_makes_no_call_any_more_counts_where_it_is_held(money: Money) -> None:
    """A resumed run counts in the month of its reservation and in no other."""
    money.limit("1")
    claim, other = money.stored.claimed(), money.stored.claimed()
    money.reserve(claim, "0.4")
    money.a_month_passes()
    money.spend(claim, "0.3")

    money.reserve(other, "1")

    assert [("0.3", "0"), ("0", "1")] == [money.month(ago=1), money.month()]


# ---- setting limits ------------------------------------------------------------------


def test_a_new_limit_counts_what_has_ended_this_month(money: Money) -> None:
    """A new limit counts what its scope has used this month, also before it was known or while it
    was gone.
    """
    money.spend(money.stored.claimed(), "0.4")
    money.limit("1")
    assert ("0.4", "0") == money.month()
    money.limit()
    money.spend(money.stored.claimed(), "0.2")
    assert ("0.4", "0") == money.month()

    money.limit("1")

    assert ("0.6", "0") == money.month()
    with pytest.raises(Refused):
        money.reserve(money.stored.claimed(), "0.5")


def test_a_limit_that_goes_lets_go_of_what_it_held(money: Money) -> None:
    """A removed limit releases its reservation at the next call; what has ended stays counted
    once.
    """
    money.limit("1")
    claim = money.stored.claimed()
    money.reserve(claim, "0.9")

    money.limit()
    money.reserve(claim, "5", so_far="0.1")

    assert ("0", "0") == money.month()
    money.spend(claim, "4")
    assert [] == money.reservations()
    money.limit("10")
    assert ("4", "0") == money.month()


def test_a_claim_tells_whether_there_is_anything_to_look_for(money: Money) -> None:
    """A limit, credits, or what the run holds under limits of before; also a new run's claim."""
    claim, idle = money.stored.claimed(), money.stored.claimed()
    assert [False, False] == [claim.is_limited, idle.is_limited]
    money.limit("1")
    money.reserve(claim, "0.5")
    money.limit()
    for held in (claim, idle):
        money.stored.park(held, new_id())
        money.stored.answer(held.run_id, "x")

    again = [money.stored.claim(held.run_id) for held in (claim, idle)]
    money.grant(1000)
    started = money.stored.claim(money.stored.create())

    assert [True, False] == [held.is_limited for held in again if held]
    assert started is not None
    assert started.is_limited


@pytest.mark.parametrize("waits", [False, True])
def test_no_run_is_created_where_nothing_is_left(money: Money, waits: bool) -> None:
    """429 at once; worth another try only where others' reservations are in the way."""
    money.limit("1")
    claim = money.stored.claimed()
    money.reserve(claim, "1")
    if not waits:
        money.spend(claim, "1")

    with pytest.raises(BudgetExhausted) as exhausted:
        money.stored.create()

    assert waits == (exhausted.value.retry_after is not None)
    spent, held = (0, 1) if waits else (1, 0)
    assert {"scope": "org", "limit_usd": 1, "spent_usd": spent, "held_usd": held} == dict(
        exhausted.value.details
    )


def test_a_personas_month_is_looked_at_before_a_run_is_created(money: Money) -> None:
    """A persona's monthly limit is checked before a run is created, by the runs of versions with a
    limit.
    """
    money.spend(money.stored.claimed(), "9")
    persona = replace(FREE, max_cost_usd_per_month=Decimal("0.5"))
    with money.connections.reading() as sql:
        budget_limits.check_open(sql, money.stored.actor, persona, SERVERS)
    claim = money.stored.claimed()
    money.reserve(claim, "0.5", persona=persona)
    money.spend(claim, "0.5")

    with (
        pytest.raises(BudgetExhausted) as exhausted,
        money.connections.reading() as sql,
    ):
        budget_limits.check_open(sql, money.stored.actor, persona, SERVERS)

    assert "persona:assistant" == exhausted.value.details["scope"]


# ---- credits -------------------------------------------------------------------------


def test_who_pays_in_advance_holds_credits(money: Money) -> None:
    """Each started one; at the end what was used is paid, and the rest is free again."""
    money.grant(100)
    claim = money.stored.claimed()

    money.reserve(claim, "0.0501")
    assert (100, 51) == money.balance()
    money.settle(claim, "0.0201")
    assert (100, 21) == money.balance()
    money.spend(claim, "0.0301")

    assert (69, 0) == money.balance()
    assert [("customer", "revenue", 31)] == money.charged(claim.run_id)


def test_credits_pay_for_routes_of_the_server_alone(money: Money) -> None:
    """What a run uses of its org's own models, the org pays at their provider."""
    money.grant(100)
    claim = money.stored.claimed()

    money.reserve(claim, "5", on_own_route=True)
    assert (100, 0) == money.balance()
    money.settle(claim, "4", own="4")
    money.reserve(claim, "0.05", so_far="4", own="4")
    assert (100, 50) == money.balance()
    money.settle(claim, "4.02", own="4")
    money.reserve(claim, "7", so_far="4.02", own="4", on_own_route=True)
    assert (100, 20) == money.balance()
    money.spend(claim, "0.02", own="4")

    assert (80, 0) == money.balance()
    assert [("customer", "revenue", 20)] == money.charged(claim.run_id)


def test_without_credits_there_is_no_route_of_the_server(money: Money) -> None:
    """Without credits no server route is usable, not even a free one, nor as a fallback of an org's
    model.
    """
    claim = money.stored.claimed()
    with money.connections.transaction() as tx:
        credits.open_prepaid(tx, money.org_id, 0)
    money.reserve(claim, "1", on_own_route=True)
    with pytest.raises(Refused):
        money.reserve(claim, "0")
    with money.connections.reading() as sql:
        budget_limits.check_open(sql, money.stored.actor, FREE, OWN)
        with pytest.raises(BudgetExhausted) as exhausted:
            budget_limits.check_open(sql, money.stored.actor, FREE, SERVERS)
    assert {"scope": "credits", "balance": 0, "held": 0} == exhausted.value.details


def test_a_free_route_of_the_server_needs_one_credit(money: Money) -> None:
    """It is held during the call, and given back."""
    money.grant(1)
    first, second = money.stored.claimed(), money.stored.claimed()

    money.reserve(first, "0")
    with pytest.raises(Refused):
        money.reserve(second, "0")
    money.settle(first, "0")
    money.reserve(second, "0")
    money.spend(first, "0")
    money.spend(second, "0")

    assert (1, 0) == money.balance()


@pytest.mark.parametrize("has_reservation", [True, False])
def test_what_is_owed_is_for_routes_of_the_server_alone(
    money: Money, has_reservation: bool
) -> None:
    """An org that does not pay in advance owes nothing for its own models."""
    claim = money.stored.claimed()

    assert Outcome.ENDED == money.end(claim, "0.03", own="9", has_reservation=has_reservation)

    assert [("receivable", "revenue", 30)] == money.charged(claim.run_id)


def test_more_credits_than_there_are_cannot_be_held(money: Money) -> None:
    """More credits than the org has cannot be reserved, and a run waits only for what others may
    release.
    """
    money.grant(100)
    first, second = money.stored.claimed(), money.stored.claimed()
    money.reserve(first, "0.06", so_far="0.03")

    with pytest.raises(Refused) as waits:
        money.reserve(second, "0.05")
    with pytest.raises(Refused) as never:
        money.reserve(second, "0.08")

    assert [("credits", 10, 50, True), ("credits", 10, 80, False)] == [
        (one.value.scope, one.value.limit, one.value.needed, one.value.others_reserved)
        for one in (waits, never)
    ]
    assert str(waits.value) == (
        "The run may need 50 credits including its next model call; 10 are left."
    )
    assert (100, 90) == money.balance()


def test_no_run_is_created_without_credits(money: Money) -> None:
    """429 for good when they are used up, for a while when they are held."""
    money.grant(10)
    claim = money.stored.claimed()
    money.reserve(claim, "0.01")
    with pytest.raises(BudgetExhausted) as held:
        money.stored.create()
    money.spend(claim, "0.01")
    with pytest.raises(BudgetExhausted) as used:
        money.stored.create()

    assert [{"scope": "credits", "balance": 10, "held": 10}, None] == [
        dict(held.value.details) if held.value.retry_after else None,
        used.value.retry_after,
    ]


def test_what_a_balance_does_not_cover_is_owed(money: Money) -> None:
    """A call that cost more than its worst case never makes a balance negative."""
    money.grant(100)
    claim, other = money.stored.claimed(), money.stored.claimed()
    money.reserve(claim, "0.05")
    money.reserve(other, "0.04")

    money.settle(claim, "0.5")
    assert (100, 100) == money.balance()
    money.spend(claim, "0.5")

    assert (40, 40) == money.balance()
    assert [("customer", "revenue", 60), ("receivable", "revenue", 440)] == money.charged(
        claim.run_id
    )


def test_a_run_from_before_the_first_grant_is_owed(money: Money) -> None:
    """It holds nothing, so nothing of the balance is taken."""
    claim = money.stored.claimed()
    money.grant(100)

    assert money.stored.finish(claim)

    assert (100, 0) == money.balance()
    assert [("receivable", "revenue", 500)] == money.charged(claim.run_id)


# ---- ends ----------------------------------------------------------------------------


def test_a_run_that_ends_twice_is_counted_once(money: Money) -> None:
    """The answer of the first COMMIT got lost: the second finds the claim over."""
    money.limit("1")
    claim = money.stored.claimed()
    money.reserve(claim, "0.5")

    outcomes = [money.end(claim, "0.3") for _ in range(2)]

    assert [Outcome.ENDED, Outcome.LOST] == outcomes
    assert ("0.3", "0") == money.month()
    assert [("receivable", "revenue", 300)] == money.charged(claim.run_id)
    assert 1 == len(money.used(claim.run_id))


def test_a_run_that_is_being_cancelled_keeps_its_reservation(money: Money) -> None:
    """A run that is being cancelled keeps its reservation until it has ended."""
    money.limit("1")
    claim = money.stored.claimed()
    money.reserve(claim, "0.5")
    money.stored.cancel(claim.run_id)

    assert Outcome.CANCELLED == money.end(claim, "0.3")

    assert (("0", "0.5"), []) == (money.month(), money.used(claim.run_id))


def test_a_cancelled_run_that_waits_lets_go(money: Money) -> None:
    """A waiting run that is cancelled releases its reservation and is charged the usage in its
    event log.
    """
    money.grant(1000)
    money.limit("1")
    claim = money.stored.claimed()
    money.reserve(claim, "0.5")
    money.crash(claim, "0.2")

    money.stored.cancel(claim.run_id)

    assert ("0.2", "0") == money.month()
    assert ((800, 0), []) == (money.balance(), money.reservations())
    [used] = money.used(claim.run_id)
    assert ("scripted", "0.2", 10) == (used.route_id, short(used.cost_usd), used.input_tokens)


def test_the_sweep_lets_go_for_lost_and_expired_runs(money: Money) -> None:
    """Many at once, with different scopes: their rows are locked in one order."""
    money.limit("100")
    keys = [new_id() for _ in range(3)]
    for key in keys:
        money.limit("50", scope=f"api_key:{key}")
    claims = []
    for number in range(12):
        actor = replace(money.stored.actor, api_key_id=[None, *keys][number % 4])
        claim = replace(money.stored, actor=actor).claimed()
        money.reserve(claim, "2")
        money.crash(claim, "1")
        claims.append(claim)
    for claim in claims[:6]:
        money.stored.set(claim.run_id, input_expires_at=text("now() - interval '1 second'"))
    for claim in claims[6:]:
        money.stored.set(
            claim.run_id, state="executing", crashes=2, owner=new_id(), pending_input=None
        )

    sweep.sweep(money.connections)

    assert {"failed"} == {money.stored.state(claim.run_id) for claim in claims}
    assert ("12", "0") == money.month()
    assert [("3", "0")] * 3 == [money.month(f"api_key:{key}") for key in keys]
    assert [] == money.reservations()


def test_only_the_lock_of_its_rows_is_waited_for(money: Money) -> None:
    """A run without a reservation ends while another one has all rows of the month."""
    held, free = money.stored.claimed(), money.stored.claimed()
    money.limit("1")
    with money.connections.transaction() as tx:
        limits = Limits(monthly={"org": ONE})
        budgets.reserve(tx, held, limits, Decimal(0), ONE)
        assert money.stored.finish(free)


# ---- all at once ---------------------------------------------------------------------


def test_sixty_four_spenders_at_once_get_what_there_is(money: Money) -> None:
    """Ten of 64 spenders get a tenth each, without a deadlock. Like a worker, each tries again
    when all database connections are in use.
    """
    money.limit("1")
    money.grant(2000)
    claims = [money.stored.claimed() for _ in range(64)]

    def reserve(number: int) -> bool:
        while True:
            try:
                money.reserve(claims[number], "0.1")
                return True
            except Refused:
                return False
            except Unavailable:
                continue

    assert 10 == sum(in_parallel(64, reserve))
    assert (("0", "1"), (2000, 1000)) == (money.month(), money.balance())


def test_a_row_that_many_begin_at_once_begins_right(money: Money) -> None:
    """A spending row that many runs create at once begins with the earlier cost, once."""
    money.spend(money.stored.claimed(), "0.5")
    limits = replace(money.limits(money.stored.claimed()), monthly={"org": Decimal(10)})
    claims = [money.stored.claimed() for _ in range(16)]

    def reserve(number: int) -> None:
        with money.connections.transaction() as tx:
            budgets.reserve(tx, claims[number], limits, Decimal(0), Decimal("0.1"))

    in_parallel(16, reserve)

    assert ("0.5", "1.6") == money.month()


def test_what_a_deleted_run_held_is_let_go(money: Money) -> None:
    """An operator has deleted its row: what it had cost stays counted, the rest is free again."""
    money.limit("100")
    money.grant(5000)
    claim = money.stored.claimed()
    money.reserve(claim, "2")
    with money.connections.transaction() as tx:
        tx.sql.execute(
            text("UPDATE holds SET cost_usd = 0.5 WHERE run_id = :id"), {"id": claim.run_id}
        )
        tx.sql.execute(text("DELETE FROM runs WHERE id = :id"), {"id": claim.run_id})

    for _ in range(2):
        sweep.sweep(money.connections)

    assert (("0.5", "0"), []) == (money.month(), money.reservations())
    assert (4500, 0) == money.balance()


def test_end_users_have_a_month_each(money: Money) -> None:
    """What one has spent and reserved leaves the others all of theirs, in parallel, too."""
    money.limit("1", scope="end_user")
    claims = [of_end_user(money, who) for who in ("a", "a", "a", "a", "b", "b", "b", "b")]

    def reserve(number: int) -> bool:
        with suppress(Refused):
            money.reserve(claims[number], "0.4")
            return True
        return False

    reserved = in_parallel(len(claims), reserve)

    assert [2, 2] == [sum(reserved[:4]), sum(reserved[4:])]
    for claim, has in zip(claims, reserved, strict=True):
        money.spend(claim, "0.4" if has else "0")
    for who in ("a", "b"):
        with pytest.raises(Refused, match=f"the end user {who} in this month") as refused:
            money.reserve(of_end_user(money, who), "0.3")
        assert f"end_user:{who}" == refused.value.scope
    money.reserve(of_end_user(money, "c"), "1")
    money.reserve(money.stored.claimed(), "9")


def test_an_end_users_own_limit_comes_before_that_of_each(money: Money) -> None:
    """A higher one allows more, for a run and for the month; 0 stops it."""
    money.limit("1", run="0.5", scope="end_user")
    money.limit("3", run="2", scope="end_user:a")
    money.limit("0", scope="end_user:b")

    money.reserve(of_end_user(money, "a"), "2")
    for who, scope in (("b", "end_user:b"), ("c", "run")):
        with pytest.raises(Refused) as refused:
            money.reserve(of_end_user(money, who), "0.6" if who == "c" else "0.1")
        assert scope == refused.value.scope


def test_what_an_end_user_spent_without_a_limit_counts_when_one_is_set(money: Money) -> None:
    """At first, and again after the limit was away for a while."""
    money.spend(of_end_user(money, "a"), "0.3")
    money.limit("1", scope="end_user")
    claim = of_end_user(money, "a")
    money.reserve(claim, "0.4")
    money.spend(claim, "0.4")
    money.limit(scope="end_user")
    money.spend(of_end_user(money, "a"), "0.2")
    money.limit("1", scope="end_user")

    with pytest.raises(Refused) as refused:
        money.reserve(of_end_user(money, "a"), "0.2")
    assert Decimal("1.1") == refused.value.needed


def of_end_user(money: Money, end_user_id: str) -> Claim:
    """Create a run of this end user, which a worker claims."""
    run_id = money.stored.create()
    money.stored.set(run_id, end_user_id=end_user_id)
    claim = money.stored.claim(run_id)
    assert claim is not None
    return claim
