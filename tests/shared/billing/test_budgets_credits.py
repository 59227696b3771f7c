"""Credits that an org pays in advance: held, charged, and owed."""

from decimal import Decimal

import pytest
from sqlalchemy import update

from arkloop.shared.billing import budget_limits, credits
from arkloop.shared.billing.budgets import Refused
from arkloop.shared.catalog.model_routes import Route
from arkloop.shared.errors import BudgetExhausted
from arkloop.shared.ids import new_id
from arkloop.shared.runs.endings import Outcome
from arkloop.shared.storage.tables.billing import reservations
from tests.shared.billing.money import FREE, SERVERS, Money

OWN = Route(id=str(new_id()), provider="openai", model="m", is_of_org=True)


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


@pytest.mark.parametrize("reported", ["0.3", "1.5", "2", "20000000000"])
def test_what_an_own_model_reports_frees_no_credits_of_the_servers_part(
    money: Money, reported: str
) -> None:
    """They stay reserved and pay, also if it is beyond the worst case of the call, and beyond the
    reserve for the last one, or more than a column holds.
    """
    money.grant(1000)
    claim = money.stored.claimed()
    money.reserve(claim, "0.9")
    money.settle(claim, "0.9")
    cost = str(Decimal(reported) + Decimal("0.9"))

    money.reserve(claim, "0.9", so_far="0.9", on_own_route=True, keep="0.6")
    money.settle(claim, cost, own=reported, keep="0.6", keep_is_own=True)
    assert (1000, 900) == money.balance()
    money.reserve(claim, "0.01", so_far=cost, own=reported)
    assert (1000, 910) == money.balance()
    money.spend(claim, "0.91", own=reported)

    assert (90, 0) == money.balance()
    assert [("customer", "revenue", 910)] == money.charged(claim.run_id)


def test_a_call_on_an_own_model_is_not_refused_for_lack_of_credits(money: Money) -> None:
    """What routes of the server have cost beyond the worst case is held as far as it is free."""
    money.grant(100)
    claim, other = money.stored.claimed(), money.stored.claimed()
    money.reserve(claim, "0.05")
    money.reserve(other, "0.04")
    money.settle(claim, "0.08")

    money.reserve(claim, "3", so_far="0.08", on_own_route=True)
    assert (100, 100) == money.balance()
    money.settle(other, "0.01")
    money.reserve(claim, "3", so_far="0.08", on_own_route=True)

    assert (100, 90) == money.balance()


def test_the_first_grant_refuses_no_call_on_an_own_model(money: Money) -> None:
    """It may be less than routes of the server have cost a run before."""
    money.limit("100")
    claim = money.stored.claimed()
    money.reserve(claim, "3")
    money.settle(claim, "3")
    money.grant(100)

    money.reserve(claim, "3", so_far="3", on_own_route=True)

    assert (100, 100) == money.balance()


def test_a_reserve_on_a_route_of_the_server_needs_credits(money: Money) -> None:
    """As far as the call has left it."""
    money.grant(1000)
    claim = money.stored.claimed()
    money.reserve(claim, "0.5", keep="0.2")

    money.settle(claim, "0.2", keep="0.2")
    assert (1000, 400) == money.balance()
    money.settle(claim, "0.3", keep="0.2")
    assert (1000, 400) == money.balance()


def test_a_balance_pays_a_run_that_has_nothing_reserved(money: Money) -> None:
    """What is free pays before anything is owed: an older release has released such a part."""
    money.grant(1000)
    claim, other = money.stored.claimed(), money.stored.claimed()
    money.reserve(claim, "0.9")
    money.settle(claim, "2.4", own="2.4")
    money.reserve(other, "0.4")

    money.spend(claim, "0.9", own="1.5")

    assert (400, 400) == money.balance()
    assert [("customer", "revenue", 600), ("receivable", "revenue", 300)] == money.charged(
        claim.run_id
    )


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


@pytest.mark.parametrize(
    ("worst", "on_own_route", "most"),
    [
        *(("0.08", False, 70), ("0.03", False, 70)),
        *(("3", True, 90), ("0.005", True, 90), (None, False, 90)),
    ],
    ids=["call", "last_call", "own_call", "cheap_own_call", "no_call"],
)
def test_a_run_waits_for_credits_of_calls_alone(
    money: Money, worst: str | None, on_own_route: bool, most: int
) -> None:
    """The other run may have used own models. The 10 credits that it has cost and the 20 of its
    last call stay reserved, and a call on an own model frees none.
    """
    money.grant(100)
    other, run = money.stored.claimed(), money.stored.claimed()
    money.reserve(other, "0.01")
    money.reserve(other, "5", so_far="0.01", on_own_route=True)
    money.settle(other, "5.01", own="5")
    if worst is not None:
        keep = "0" if on_own_route else "0.02"
        money.reserve(*(other, worst, "5.01"), own="5", on_own_route=on_own_route, keep=keep)

    def others_reserved(credits: int) -> bool:
        with pytest.raises(Refused) as refused:
            money.reserve(run, str(Decimal(credits) / 1000))
        return refused.value.others_reserved

    assert not others_reserved(most + 1)
    if worst is None or on_own_route:
        money.reserve(run, str(Decimal(most) / 1000))
    else:
        assert others_reserved(most)


def test_a_run_waits_for_the_credit_of_a_free_call(money: Money) -> None:
    """The run that makes it may have used own models before."""
    money.grant(1)
    other, run = money.stored.claimed(), money.stored.claimed()
    money.reserve(other, "5", on_own_route=True)
    money.settle(other, "5", own="5")
    money.reserve(other, "0", so_far="5", own="5")

    with pytest.raises(Refused) as refused:
        money.reserve(run, "0")

    assert refused.value.others_reserved


def test_a_credit_that_a_run_has_used_is_not_waited_for(money: Money) -> None:
    """The run makes no call now, and has used own models since."""
    money.grant(1)
    other, run = money.stored.claimed(), money.stored.claimed()
    money.reserve(other, "0.001")
    money.reserve(other, "5", so_far="0.001", on_own_route=True)
    money.settle(other, "5.001", own="5")

    with pytest.raises(Refused) as refused:
        money.reserve(run, "0")

    assert not refused.value.others_reserved


@pytest.mark.parametrize(("own", "waits"), [("0", False), ("5", True)])
def test_a_reservation_of_the_previous_release_has_less_cost_or_all(
    money: Money, own: str, waits: bool
) -> None:
    """It does not say what routes of the server have cost. Where own models have cost nothing, that
    is all; else others wait, perhaps in vain.
    """
    money.grant(100)
    other, run = money.stored.claimed(), money.stored.claimed()
    money.reserve(other, "0.03")
    money.settle(other, str(Decimal(own) + Decimal("0.03")), own=own)
    with money.connections.transaction() as tx:
        of_org = update(reservations).where(reservations.c.org_id == money.org_id)
        tx.sql.execute(of_org.values(servers_usd=0))

    with pytest.raises(Refused) as refused:
        money.reserve(run, "0.08")

    assert waits == refused.value.others_reserved


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
