"""`/healthz`: the process lives. `/readyz`: it can serve."""

from flask import Blueprint, Response, jsonify
from redis import RedisError

from api.current import connections
from api.json_body import NoArguments, query_args
from shared import postgres, schema
from shared.errors import Unavailable

bp = Blueprint("health", __name__)


@bp.get("/healthz")
def healthz() -> Response:
    """200 as long as the process answers at all."""
    query_args(NoArguments())
    return jsonify(status="ok")


@bp.get("/readyz")
def readyz() -> Response:
    """200, with `degraded: ["redis"]` while Redis is away; 503 with the reason while Postgres is
    away or read-only.
    """
    query_args(NoArguments())
    with connections().reading() as sql:
        version = schema.current_version(sql)
        if postgres.is_read_only(sql):
            raise Unavailable("Postgres accepts no writes: it is a standby, or set to read-only.")
    if problem := schema.shortfall(version):
        raise Unavailable(problem)
    answer: dict[str, object] = {"status": "ok", "schema_version": version}
    try:
        connections().ask_redis(lambda redis: redis.ping())
    except (RedisError, OSError):
        answer["degraded"] = ["redis"]
    return jsonify(answer)
