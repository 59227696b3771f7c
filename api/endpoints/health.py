"""`/healthz`: the process lives. `/readyz`: it can serve."""

from flask import Blueprint, Response, jsonify
from redis import Redis, RedisError

from arkloop.api.endpoints.account_types import Health, Readiness
from arkloop.api.http import errors
from arkloop.api.http.current import connections, settings
from arkloop.api.http.described import described
from arkloop.api.http.json_body import NoArguments, query_args
from arkloop.shared.errors import Unavailable
from arkloop.shared.runs import live_workers
from arkloop.shared.storage import hosts, postgres, schema
from arkloop.shared.storage.keys import PROBE_MILLISECONDS

#: How long a write that Postgres has refused counts.
WRITE_SECONDS = 10

_READ_ONLY = "Postgres accepts no writes: it is a standby, or set to read-only."

bp = Blueprint("health", __name__)


@bp.get("/healthz")
@described(returns=Health)
def healthz() -> Response:
    """Respond 200 as long as the process responds at all."""
    query_args(NoArguments())
    return jsonify(status="ok")


@bp.get("/readyz")
@described(returns=Readiness)
def readyz() -> Response:
    """Respond 200, with `degraded` while Redis is down, no worker is alive or Postgres refuses to
    write; 503 with the reason while Postgres is down or read-only.
    """
    query_args(NoArguments())
    try:
        with connections().reading() as sql:
            version = schema.current_version(sql)
            if postgres.is_read_only(sql):
                raise Unavailable(_READ_ONLY)
            if problem := schema.shortfall(version):
                raise Unavailable(problem)
            has_workers = live_workers.of_service(sql, settings().heartbeat_seconds) > 0
    except Unavailable as error:
        if hosts.are_read_only(str(getattr(error.__cause__, "orig", ""))):
            raise Unavailable(_READ_ONLY) from error
        raise
    answer: dict[str, object] = {"status": "ok", "schema_version": version}
    degraded = []
    try:
        connections().ask_redis(_use)
    except (RedisError, OSError):
        degraded.append("redis")
    if not has_workers:
        degraded.append("workers")
    has_silent_commits = connections().commit_outage.was_within(WRITE_SECONDS)
    if errors.has_refused_writes(WRITE_SECONDS) or has_silent_commits:
        degraded.append("writes")
    if degraded:
        answer["degraded"] = degraded
    return jsonify(answer)


def _use(redis: Redis) -> None:
    """Write a key and send a message, in one round trip: a replica, a full Redis and a user without
    rights answer PING all the same.

    Raises:
        RedisError: it is out of reach, or rejects one of them.
    """
    name = connections().keys.probe()
    pipeline = redis.pipeline(transaction=False)
    pipeline.set(name, 1, px=PROBE_MILLISECONDS)
    pipeline.publish(name, 1)
    pipeline.execute()
