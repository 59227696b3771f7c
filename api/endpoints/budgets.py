"""`/v1/budget`: what the org's runs may cost, and those of each end user."""

from typing import Any

from flask import Blueprint, Response, jsonify
from sqlalchemy import Connection

from arkloop.api.auth.bearer import requires
from arkloop.api.endpoints import account_types
from arkloop.api.endpoints.account_types import EndUserBudget
from arkloop.api.http.audited import record, texts_of
from arkloop.api.http.current import actor, changes_catalog, connections
from arkloop.api.http.described import described
from arkloop.api.http.fields import ClientId, Usd
from arkloop.api.http.json_body import NoArguments, query_args, read_body
from arkloop.api.http.reports import reports
from arkloop.api.http.schema import Schema
from arkloop.shared.billing import budget_limits, end_user_limits
from arkloop.shared.billing.budget_limits import Budget
from arkloop.shared.billing.spending import END_USERS, ORG, end_user_scope
from arkloop.shared.events.plain import money

bp = Blueprint("budgets", __name__)


class CostLimits(Schema):
    """Limits in USD; null is no limit."""

    max_cost_usd = Usd(allow_none=True)
    max_cost_usd_per_month = Usd(allow_none=True)


class EndUserLimits(CostLimits):
    end_user_id = ClientId(allow_none=True)


class EndUserQuery(Schema):
    end_user_id = ClientId()


@bp.get("/v1/budget")
@requires("admin")
@described(returns=account_types.Budget)
def get_budget() -> Response:
    """Show the org's limits and how much of them is used this month."""
    query_args(NoArguments())
    with reports().reading(actor().org_id, waits_for_rest=False) as sql:
        return jsonify(_shown(budget_limits.get(sql, actor().org_id, ORG)))


@bp.put("/v1/budget")
@requires("admin")
@changes_catalog
@described(body=CostLimits, returns=account_types.Budget)
def set_budget() -> Response:
    """Replace both limits; one that is missing in the body is removed."""
    body = read_body(CostLimits())
    limits = {name: body.get(name) for name in CostLimits().fields}
    # What was spent this month may have to be summed up.
    with reports().turn(actor().org_id), connections().transaction() as tx:
        budget_limits.set_(tx, actor().org_id, ORG, **limits)
        record(tx, "budget.changed", "budget", ORG, **texts_of(limits))
        return jsonify(_shown(budget_limits.get(tx.sql, actor().org_id, ORG)))


@bp.get("/v1/budget/end-users")
@requires("admin")
@described(query=EndUserQuery, returns=EndUserBudget)
def get_end_user_budget() -> Response:
    """Show the limits of each end user, or what applies to one and how much of it is used."""
    args = query_args(EndUserQuery())
    with reports().reading(actor().org_id, waits_for_rest=False) as sql:
        return jsonify(_end_user_shown(sql, args.get("end_user_id")))


@bp.put("/v1/budget/end-users")
@requires("admin")
@changes_catalog
@described(body=EndUserLimits, returns=EndUserBudget)
def set_end_user_budget() -> Response:
    """Replace both limits of each end user, or of one; one that is missing is removed."""
    body = read_body(EndUserLimits())
    limits = {name: body.get(name) for name in CostLimits().fields}
    end_user_id = body.get("end_user_id")
    scope = END_USERS if end_user_id is None else end_user_scope(end_user_id)
    with reports().turn(actor().org_id):
        recounted_since = None
        if scope == END_USERS and limits["max_cost_usd_per_month"] is not None:
            recounted_since = end_user_limits.recount_ahead(connections(), actor().org_id)
        with connections().transaction() as tx:
            budget_limits.set_(tx, actor().org_id, scope, **limits, recounted_since=recounted_since)
            record(tx, "budget.changed", "budget", scope, **texts_of(limits))
            return jsonify(_end_user_shown(tx.sql, end_user_id))


def _end_user_shown(sql: Connection, end_user_id: str | None) -> dict[str, Any]:
    if end_user_id is None:
        # Each has a month of its own.
        return limits_shown(budget_limits.get(sql, actor().org_id, END_USERS))
    scope = end_user_scope(end_user_id)
    own = budget_limits.own(sql, actor().org_id, scope)
    return {
        "end_user_id": end_user_id,
        **_shown(budget_limits.get(sql, actor().org_id, scope)),
        "own": dict.fromkeys(CostLimits().fields) if own is None else limits_shown(own),
    }


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
