"""`/v1/personas` and `/v1/routes`: what a run can be created with."""

from flask import Blueprint, Response, jsonify

from api.auth import requires
from api.endpoints.runs import routes
from api.json_body import NoArguments, query_args
from shared import personas

bp = Blueprint("catalog", __name__)


@bp.get("/v1/personas")
@requires("data.runs.read")
def list_personas() -> Response:
    query_args(NoArguments())
    return jsonify(
        [
            {
                "id": persona.id,
                "key": persona.key,
                "version": persona.version,
                "system_prompt": persona.system_prompt,
                "route_id": persona.route_id,
                "tools": list(persona.tools),
                "confirm": sorted(persona.confirm),
                "max_steps": persona.max_steps,
                "timeout_seconds": persona.timeout_seconds,
            }
            for persona in personas.builtin().values()
        ]
    )


@bp.get("/v1/routes")
@requires("data.runs.read")
def list_routes() -> Response:
    """Without keys and addresses: those are the operator's."""
    query_args(NoArguments())
    return jsonify(
        [
            {
                "id": route.id,
                "provider": route.provider,
                "model": route.model,
                "prices": {
                    "input": float(route.input_price),
                    "output": float(route.output_price),
                    "cache_read": float(route.cache_read_price),
                },
            }
            for route in routes().values()
        ]
    )
