"""Amounts of USD as JSON and YAML have them: numbers with at most 8 decimals."""

from decimal import Decimal
from typing import Any

#: Up to it a binary number of 64 bits holds 8 decimals exactly.
MAX_USD = 1_000_000
JSON_SCHEMA = {"type": "number", "minimum": 0, "maximum": MAX_USD}
#: The largest cost that a column holds; prices are free numbers.
MAX_COST_USD = Decimal("9999999999.99999999")


def rounded(amount: float) -> float:
    """Round to the decimals that amounts have: a product of floats, as of tokens and a price, has
    more.
    """
    return round(float(amount), 8)


def parse(value: Any) -> Decimal:
    """Parse the amount, exactly as it was written.

    Raises:
        ValueError: no number, negative, over `MAX_USD`, or more than 8 decimals.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("must be an amount in USD")
    # The shortest text of a float is what was written.
    amount = Decimal(str(value))
    if not amount.is_finite() or not 0 <= amount <= MAX_USD:
        raise ValueError(f"must be between 0 and {MAX_USD:,} USD")
    if amount != round(amount, 8):
        raise ValueError("must have at most 8 decimal places")
    return amount
