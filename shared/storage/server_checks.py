"""The requirements on Postgres and Redis, checked once when a process starts.

A server that is away is not judged: processes start without it, and work when it is back.
"""

import logging
import re
from typing import Any

from redis.exceptions import RedisError, ResponseError
from sqlalchemy import Connection, text

from arkloop.shared.config import variable_of
from arkloop.shared.errors import Unavailable
from arkloop.shared.storage.connections import Connections, connect_redis

log = logging.getLogger(__name__)

OLDEST_POSTGRES = 130_000
OLDEST_REDIS = (6, 2)
BEFORE_6 = "before 6.0"


class UnsuitableServer(Exception):
    """A server that this service cannot work with; the message is one line."""


def check(connections: Connections) -> None:
    """Look at all servers.

    Raises:
        UnsuitableServer: the first that is not what is needed.
    """
    try:
        with connections.reading() as sql:
            check_postgres(sql)
            _check_role(sql)
    except Unavailable:
        pass
    settings = connections.settings
    _check_redis(variable_of("ARKLOOP_REDIS_URL"), connections.redis)
    if settings.broker_url != settings.redis_url:
        broker = connect_redis(settings.broker_url)
        try:
            _check_redis("ARKLOOP_BROKER_URL", broker)
        finally:
            broker.close()


def check_postgres(sql: Connection) -> None:
    """Raise UnsuitableServer unless Postgres is recent enough, and its database stores any text."""
    encoding, version, number = sql.execute(
        text(
            "SELECT current_setting('server_encoding'), current_setting('server_version'),"
            " current_setting('server_version_num')::int"
        )
    ).one()
    if number < OLDEST_POSTGRES:
        raise UnsuitableServer(
            f"Postgres {version.partition(' ')[0]} is too old;"
            f" {OLDEST_POSTGRES // 10_000} or later is required"
        )
    if encoding != "UTF8":
        raise UnsuitableServer(
            f"The database encoding is {encoding}, which cannot store every text: create it with "
            "ENCODING 'UTF8' TEMPLATE template0"
        )


def _check_role(sql: Connection) -> None:
    """Log a warning where row-level security is on and has no effect."""
    role = sql.scalar(
        text(
            "SELECT current_user FROM pg_class WHERE oid = to_regclass('runs')"
            " AND relrowsecurity AND NOT row_security_active(oid)"
        )
    )
    if role is not None:
        log.warning("row-level security is on, but not before this process: role %s", role)


def _check_redis(variable: str, client: Any) -> None:
    pool = client.connection_pool
    try:
        pool.connection_class(**pool.connection_kwargs)  # it connects later
    except (TypeError, ValueError, RedisError) as error:
        raise UnsuitableServer(f"{variable} has an option that is not known: {error}") from None
    try:
        server, cluster = client.info("server"), client.info("cluster")
    except ResponseError as error:
        # Of the first command of each connection, which came with Redis 6.0.
        if "unknown command" not in str(error).lower():
            return  # the user may not ask
        server, cluster = {"redis_version": BEFORE_6}, {}
    except RedisError:
        return
    if cluster.get("cluster_enabled"):
        raise UnsuitableServer(f"{variable} points to a Redis Cluster, which is not supported")
    version = str(server.get("redis_version", ""))
    numbers = re.match(r"(\d+)\.(\d+)", version)
    if version == BEFORE_6 or (numbers and (int(numbers[1]), int(numbers[2])) < OLDEST_REDIS):
        raise UnsuitableServer(
            f"{variable} points to Redis {version}; version 6.2 or later is required, or any Valkey"
        )
