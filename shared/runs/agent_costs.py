"""The costs of model calls that an agent worker reports."""

from dataclasses import dataclass
from decimal import Decimal

from sqlalchemy import Connection

from arkloop.shared.billing import budgets
from arkloop.shared.catalog import reported_costs
from arkloop.shared.catalog.model_routes import Route
from arkloop.shared.catalog.personas import Persona
from arkloop.shared.claim import Claim
from arkloop.shared.errors import InvalidRequest
from arkloop.shared.events.usage import Usage


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentCost:
    """A model call of the agent, as it reports it: its own provider bills it."""

    model: str | None
    usage: Usage
    cost_usd: float | None  # None: as the prices of its model say


def usd_of(
    sql: Connection, cost: AgentCost, route: Route | None, claim: Claim, persona: Persona
) -> Decimal:
    """Return what the call costs; one without a known price costs nothing.

    Raises:
        InvalidRequest: with a budget, or prepaid credits, each call must have a price.
    """
    usd = reported_costs.cost_of(cost.usage, route, model=cost.model, given_usd=cost.cost_usd)
    if usd is not None:
        return usd
    limits = budgets.limits(sql, claim, persona)
    if limits.has_budget or limits.needs_reservation:
        model = cost.model or claim.model
        why = f"`cost_usd` is required under a budget: the price of {model!r} is not known"
        raise InvalidRequest(events=[why])
    return Decimal(0)
