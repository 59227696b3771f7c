"""Budgets by month, of an org and of each end user."""

from contextlib import suppress
from decimal import Decimal

import pytest

from arkloop.shared.billing import usage_reports
from arkloop.shared.billing.budgets import Refused
from arkloop.shared.claim import Claim
from tests.shared.billing.money import Money
from tests.waiting import in_parallel


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


def test_a_run_of_an_end_user_who_is_erased_ends(money: Money) -> None:
    """It was created as they were being erased, and gives back what it has reserved."""
    money.limit("1", scope="end_user")
    money.spend(of_end_user(money, "a"), "0.1")
    claim = of_end_user(money, "a")
    money.reserve(claim, "0.5")

    forget(money, "a")
    money.settle(claim, "0.2")
    money.reserve(claim, "0.3", so_far="0.2")
    money.spend(claim, "0.4")

    assert [] == money.reservations()
    forget(money, "a")
    assert ("", "") == money.month("end_user:a")


def forget(money: Money, end_user_id: str) -> None:
    with money.stored.connections.transaction() as tx:
        usage_reports.forget_end_user(tx, money.stored.actor.org_id, end_user_id)


@pytest.mark.parametrize("scope", ["end_user", "end_user:a"])
def test_what_an_end_user_spent_without_a_limit_counts_when_one_is_set(
    money: Money, scope: str
) -> None:
    """It counts at first, and after the limit was away for a while, also for one of its own."""
    money.spend(of_end_user(money, "a"), "0.3")
    money.limit("1", scope="end_user")
    claim = of_end_user(money, "a")
    money.reserve(claim, "0.4")
    money.spend(claim, "0.4")
    money.limit(scope="end_user")
    money.spend(of_end_user(money, "a"), "0.2")
    money.limit("1", scope=scope)

    with pytest.raises(Refused) as refused:
        money.reserve(of_end_user(money, "a"), "0.2")
    assert Decimal("1.1") == refused.value.needed


def of_end_user(money: Money, end_user_id: str) -> Claim:
    """Create a run of this end user, which a worker claims."""
    run_id = money.stored.create()
    money.stored.set(run_id, end_user_id=end_user_id)
    claim = money.stored.held(run_id)
    return claim
