"""`/v1/routes`: which provider and model a run can be created with."""

from flask import Blueprint, Response, jsonify

from arkloop.api.auth.bearer import requires
from arkloop.api.endpoints.catalog_types import Route
from arkloop.api.endpoints.llm_providers import prices_shown
from arkloop.api.http.current import actor, catalog
from arkloop.api.http.described import described
from arkloop.api.http.json_body import NoArguments, query_args

bp = Blueprint("catalog", __name__)


@bp.get("/v1/routes")
@requires("data.runs.read")
@described(returns=list[Route])
def list_routes() -> Response:
    """List the server's routes, then the org's, without keys and addresses."""
    query_args(NoArguments())
    routes = catalog().routes(actor().org_id)
    default = catalog().default_route_id(actor().org_id)
    return jsonify(
        [
            {
                "id": route.id,
                "source": "org" if route.is_of_org else "server",
                "provider": route.provider,
                "model": route.model,
                "is_default": route.id == default,
                "priority": route.priority,
                "prices": prices_shown(route.prices),
                "max_output_tokens": route.max_output_tokens,
                "context_tokens": route.context_tokens,
                "requests_per_minute": route.requests_per_minute,
                "tokens_per_minute": route.tokens_per_minute,
            }
            for route in routes
        ]
    )
