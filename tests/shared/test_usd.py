"""Amounts of USD from JSON and YAML."""

import json
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arkloop.shared import usd
from arkloop.shared.events.plain import money


@given(st.integers(0, usd.MAX_USD * 10**8))
def test_eight_decimals_are_exact(amount: int) -> None:
    """Out as JSON and in again, to the last digit, for every amount there is."""
    exact = Decimal(amount) / 10**8

    assert exact == usd.parse(json.loads(json.dumps(money(exact))))


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (-0.1, "must be between 0 and 1,000,000 USD"),
        (1_000_000.1, "must be between 0 and 1,000,000 USD"),
        (10**18, "must be between 0 and 1,000,000 USD"),
        (1e308, "must be between 0 and 1,000,000 USD"),
        (float("nan"), "must be between 0 and 1,000,000 USD"),
        (float("inf"), "must be between 0 and 1,000,000 USD"),
        (0.000000001, "at most 8 decimal places"),
        ("1", "must be an amount in USD"),
        (True, "must be an amount in USD"),
        (None, "must be an amount in USD"),
        ([], "must be an amount in USD"),
    ],
)
def test_all_else_is_refused(value: Any, why: str) -> None:
    """Every other value is refused with the reason."""
    with pytest.raises(ValueError, match=why):
        usd.parse(value)
