"""Reservations of runs that end: twice, cancelled, lost or deleted."""

from dataclasses import replace

import pytest
from sqlalchemy import text

from arkloop.shared.claim import Claim
from arkloop.shared.ids import new_id
from arkloop.shared.runs import sweep
from arkloop.shared.runs.endings import Outcome
from tests.shared.billing.money import Money, short


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


def test_what_a_deleted_run_held_is_let_go(money: Money) -> None:
    """An operator has deleted its row: what it had cost stays counted, the rest is free again."""
    money.limit("100")
    money.grant(5000)
    claim = money.stored.claimed()
    money.reserve(claim, "2", so_far="0.5")

    sweep_deleted(money, claim)

    assert (("0.5", "0"), []) == (money.month(), money.reservations())
    assert (4500, 0) == money.balance()


@pytest.mark.parametrize(("so_far", "balance"), [("2", 5000), ("2.4", 4600)])
def test_a_deleted_run_is_not_charged_for_models_of_the_org(
    money: Money, so_far: str, balance: int
) -> None:
    """Credits that it had reserved are given back: only the server's routes count."""
    money.limit("100")
    money.grant(5000)
    claim = money.stored.claimed()
    money.reserve(claim, "0.1", so_far=so_far, own="2")

    sweep_deleted(money, claim)

    assert ((so_far, "0"), (balance, 0)) == (money.month(), money.balance())


def test_a_deleted_run_owes_nothing(money: Money) -> None:
    """An org that does not pay in advance holds no credits: its cost is given up."""
    money.limit("100")
    claim = money.stored.claimed()
    money.reserve(claim, "2", so_far="0.5")

    sweep_deleted(money, claim)

    assert (("0.5", "0"), []) == (money.month(), money.charged(claim.run_id))


def sweep_deleted(money: Money, claim: Claim) -> None:
    """Delete the run's row and sweep twice."""
    with money.connections.transaction() as tx:
        tx.sql.execute(text("DELETE FROM runs WHERE id = :id"), {"id": claim.run_id})
    for _ in range(2):
        sweep.sweep(money.connections)
