"""Money that is reserved before it is spent: never more than there is, also at the same time."""

from dataclasses import replace
from decimal import Decimal

import pytest

from arkloop.shared.billing import budget_limits, budgets
from arkloop.shared.billing.budget_limits import Limits
from arkloop.shared.billing.budgets import Refused
from arkloop.shared.errors import BudgetExhausted, LeaseLost, Unavailable
from arkloop.shared.ids import new_id
from tests.shared.billing.money import FREE, SERVERS, Money, short
from tests.waiting import in_parallel

ONE = Decimal(1)


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
    """A call that costs more than its worst case takes of it."""
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
    """It may be that of the org, the key or the persona, and takes no query."""
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


def test_only_the_lock_of_its_rows_is_waited_for(money: Money) -> None:
    """A run without a reservation ends while another one has all rows of the month."""
    held, free = money.stored.claimed(), money.stored.claimed()
    money.limit("1")
    with money.connections.transaction() as tx:
        limits = Limits(monthly={"org": ONE})
        budgets.reserve(tx, held, limits, Decimal(0), ONE)
        assert money.stored.finish(free)


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
