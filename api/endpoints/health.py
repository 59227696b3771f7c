"""`/healthz`: the process lives. `/readyz`: it can serve."""

from functools import cache

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
    # A newer one is fine: during a deploy the old code goes on with the new schema.
    if version is None or version < _needed_version():
        raise Unavailable(
            f"The database's schema is {version or 'empty'}, this code needs {_needed_version()}: "
            "run `arkloop migrate`."
        )
    answer: dict[str, object] = {"status": "ok", "schema_version": version}
    try:
        connections().ask_redis(lambda redis: redis.ping())
    except (RedisError, OSError):
        answer["degraded"] = ["redis"]
    return jsonify(answer)


@cache
def _needed_version() -> str:
    return schema.needed_version()
