"""The log of model calls that a budget refuses."""

import logging
from collections.abc import Callable
from decimal import Decimal

import pytest

from arkloop.shared.catalog import personas
from arkloop.shared.events.types import RouteCost
from arkloop.shared.events.usage import Usage
from arkloop.shared.storage.connections import Transaction
from arkloop.worker.agent import affordable
from arkloop.worker.attempt.admission import Admission
from arkloop.worker.contract.messages import ModelRequest
from arkloop.worker.contract.outcomes import LimitExceeded
from arkloop.worker.process.route_limits import RouteLimits
from arkloop.worker.providers.scripted_provider import ScriptedProvider
from tests.shared.billing.money import Money
from tests.stored_runs import StoredRuns
from tests.worker.recorded_run import chain_of, request


class Verbose(ScriptedProvider):
    def worst_case(self, request: ModelRequest) -> Usage:
        return Usage(output_tokens=request.max_output_tokens or 0)


@pytest.fixture
def money(stored: StoredRuns) -> Money:
    money = Money(stored)
    money.limit("0.01")
    return money


@pytest.fixture
def admission(money: Money) -> Admission:
    claim = money.stored.claimed()

    def write(change: Callable[[Transaction], None]) -> None:
        with money.connections.transaction() as tx:
            change(tx)

    limits = RouteLimits(money.connections)
    admission = Admission(claim, limits, write=write, emit=lambda _: None, wait=lambda _: None)
    admission.set_persona(personas.builtin()["plain@1"])
    admission.is_limited = True
    return admission


def refusals(caplog: pytest.LogCaptureFixture) -> list[str]:
    of_admission = (r for r in caplog.records if r.name.endswith(".admission"))
    return [r.getMessage() for r in of_admission if r.levelno == logging.WARNING]


def test_a_call_with_less_output_is_not_logged_as_refused(
    money: Money, admission: Admission, caplog: pytest.LogCaptureFixture
) -> None:
    """A call that is not made is, once."""
    step = request("?", max_output_tokens=10_000)

    smaller = affordable.reserve(chain_of(Verbose()), step, admission, None)
    assert 4999 == smaller.max_output_tokens
    assert [] == refusals(caplog)
    money.limit("0.0005")
    with pytest.raises(LimitExceeded):
        affordable.reserve(chain_of(Verbose()), step, admission, None)

    [line] = refusals(caplog)
    assert "a model call was refused: The next model call may bring the cost to " in line
    assert "the budget of the org in this month is 0.0005 USD." in line


def test_an_agents_own_call_that_is_not_made_is_logged(
    admission: Admission, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged once before the call, and once after costs that are over the budget."""
    with pytest.raises(LimitExceeded):
        admission.reserve_usd(Decimal(2))
    assert 1 == len(refusals(caplog))
    admission.add_reported(RouteCost("agent:a", "m", Usage(), Decimal(2)), "a")
    with pytest.raises(LimitExceeded):
        admission.reserve_spent()

    assert 2 == len(refusals(caplog))
