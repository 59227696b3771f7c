"""The cost of model calls that a custom agent made and reports."""

from decimal import Decimal

from arkloop.shared import usd
from arkloop.shared.catalog import prices
from arkloop.shared.catalog.model_routes import Route
from arkloop.shared.events.usage import Usage


def cost_of(
    usage: Usage, route: Route | None, *, model: str | None = None, given_usd: float | None = None
) -> Decimal | None:
    """Return the USD of a call: as given, else by the prices of its model; None: not known.

    `route` is the run's, if it still exists: its prices are those of its own model, which a call
    of no named model is for. Other models have the prices of OpenAI and Anthropic themselves.

    Raises:
        ValueError: `given_usd` is no amount.
    """
    if given_usd is not None:
        return usd.parse(given_usd)
    if route is not None and model in (None, route.model):
        return route.cost(usage) if route.prices is not None else None
    if model is None:
        return None
    found = prices.known("openai", model, None) or prices.known("anthropic", model, None)
    return found.cost(usage) if found is not None else None
