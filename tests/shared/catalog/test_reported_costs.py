"""The cost of model calls that a custom agent reports."""

from decimal import Decimal

import pytest

from arkloop.shared.catalog.model_routes import Route
from arkloop.shared.catalog.prices import Prices
from arkloop.shared.catalog.reported_costs import cost_of
from arkloop.shared.events.usage import Usage

PRICES = Prices(input=Decimal(1), output=Decimal(2))
ROUTE = Route(id="r", provider="scripted", model="m", prices=PRICES)
USAGE = Usage(input_tokens=1_000_000)


def test_tokens_have_the_price_of_their_model() -> None:
    """The route's prices are those of its model; vendors' models have their own."""
    assert Decimal(1) == cost_of(USAGE, ROUTE) == cost_of(USAGE, ROUTE, model="m")
    assert Decimal("0.15") == cost_of(USAGE, ROUTE, model="gpt-4o-mini")
    assert Decimal("0.15") == cost_of(USAGE, None, model="gpt-4o-mini")


def test_a_price_that_is_not_known_is_none() -> None:
    """Unknown models, and routes that are gone or have no prices, are not free."""
    assert [None] * 3 == [
        cost_of(USAGE, ROUTE, model="unheard-of"),
        cost_of(USAGE, None),
        cost_of(USAGE, Route(id="r", provider="scripted", model="m")),
    ]


def test_a_given_amount_counts() -> None:
    """An amount in USD comes before every price, and is refused if it is none."""
    assert Decimal("0.5") == cost_of(USAGE, ROUTE, given_usd=0.5)
    with pytest.raises(ValueError):
        cost_of(USAGE, ROUTE, given_usd=-1)
