"""`/v1/budget`: what the org's runs may cost."""

from typing import Any

from flask import Blueprint, Response, jsonify
from marshmallow import Schema

from api.auth.bearer import requires
from api.http.current import actor, changes_catalog, connections
from api.http.fields import Usd
from api.http.json_body import NoArguments, query_args, read_body
from api.http.reports import reports
from shared.billing import budget_limits
from shared.billing.budget_limits import Budget
from shared.billing.spending import ORG
from shared.events.types import money

bp = Blueprint("budgets", __name__)


class CostLimits(Schema):
    """Limits in USD; null is no limit."""

    max_cost_usd = Usd(allow_none=True)
    max_cost_usd_per_month = Usd(allow_none=True)


@bp.get("/v1/budget")
@requires("admin")
def get_budget() -> Response:
    """Show the org's limits and how much of them is used this month."""
    query_args(NoArguments())
    with reports().reading(actor().org_id) as sql:
        return jsonify(_shown(budget_limits.get(sql, actor().org_id, ORG)))


@bp.put("/v1/budget")
@requires("admin")
@changes_catalog
def set_budget() -> Response:
    """Replace both limits; one that is missing in the body is removed."""
    body = read_body(CostLimits())
    limits = {name: body.get(name) for name in CostLimits().fields}
    # What was spent this month may have to be summed up.
    with reports().turn(actor().org_id), connections().transaction() as tx:
        budget_limits.set_(tx, actor().org_id, ORG, **limits)
        return jsonify(_shown(budget_limits.get(tx.sql, actor().org_id, ORG)))


def limits_shown(of: Any) -> dict[str, float | None]:
    """Show the limits of a budget, an API key or a persona."""
    limits = {name: getattr(of, name) for name in CostLimits().fields}
    return {name: limit if limit is None else money(limit) for name, limit in limits.items()}


def _shown(budget: Budget) -> dict[str, Any]:
    return {
        **limits_shown(budget),
        "month": f"{budget.month:%Y-%m}",
        "spent_usd": money(budget.spent_usd),
        "held_usd": money(budget.held_usd),
    }
