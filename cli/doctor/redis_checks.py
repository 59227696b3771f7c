"""Redis: reachable, recent enough, writable, with a policy that evicts no message for workers."""

import re
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from redis import Redis
from redis.connection import parse_url
from redis.exceptions import (
    AuthenticationError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)

from arkloop.cli.doctor import clocks
from arkloop.cli.doctor.findings import Finding, fail, ok, warn
from arkloop.shared.config import Settings, variable_of
from arkloop.shared.storage.connections import connect_redis
from arkloop.shared.storage.keys import DOCTOR_PROBE, PROBE_MILLISECONDS
from arkloop.shared.storage.server_checks import OLDEST_REDIS

#: What a server that responds, or its TLS, says when it accepts no connection, and what to do.
_CAUSES = (
    (
        "max number of clients",
        "Raise maxclients, or close connections that nobody uses: see CLIENT LIST.",
    ),
    ("loading the dataset", "Wait until it has read its data."),
    ("CERTIFICATE_VERIFY_FAILED", "Correct its certificate, or name the authority of that."),
)
_DISK = "Free space on its disk, or correct the rights of its folder; its log has the reason."
_ANOTHER = "Use a server that {}, or correct {}."


def of_servers(settings: Settings) -> Iterator[Finding]:
    """Look at the Redis of streams, and at the broker if it is another Redis."""
    yield from of_server("redis", variable_of("ARKLOOP_REDIS_URL"), settings.redis_url)
    if settings.broker_url != settings.redis_url:
        yield from of_server("broker", "ARKLOOP_BROKER_URL", settings.broker_url)


def of_server(name: str, variable: str, url: str) -> Iterator[Finding]:
    """Look at one Redis, which `variable` leads to; a few round trips."""
    client = connect_redis(url)
    where = _place(url)
    try:
        began = time.monotonic()
        with suppress(NoPermissionError):
            client.ping()
        seconds = time.monotonic() - began
        info = _info(client)
    except AuthenticationError:
        yield fail(name, f"{where} rejects the user or password", f"Correct {variable}.")
    except ResponseError as error:
        yield _refused(name, variable, where, str(error))
    except (TypeError, ValueError) as error:
        yield fail(name, f"{where}: {_reason(error)}", f"Correct the options of {variable}.")
    except (RedisError, OSError) as error:
        reason = _reason(error)
        advice = next((advice for part, advice in _CAUSES if part in reason), None)
        yield fail(
            name,
            f"{where}: {reason}" if advice else f"{where} does not respond: {reason}",
            f"{advice or f'Start it, or correct {variable}.'} Meanwhile runs start up to 2 s late"
            " and streams are read from Postgres.",
        )
    else:
        if info is None:
            yield warn(
                name,
                f"{where} responds, but does not let this user ask for INFO: version and memory"
                " are unknown",
                "Allow INFO (ACL SETUSER … +info) to have them checked.",
            )
        else:
            yield from _version(name, variable, where, info, seconds)
        yield _writes(name, variable, info or {}, client)
        if info is not None:
            yield from _memory(name, info)
        try:
            yield clocks.of_server(name, lambda: _seconds(client.time()))
        except RedisError as error:
            yield warn(f"{name} clock", f"unknown: {_reason(error)}", "Allow the command TIME.")
    finally:
        client.close()


def _info(client: Redis) -> Mapping[str, Any] | None:
    """Return what INFO has, None where this user may not ask for it."""
    with suppress(NoPermissionError):
        return client.info()
    return None


def _place(url: str) -> str:
    """Return host, port and number of the database, without user and password."""
    parts = parse_url(url)  # type: ignore[no-untyped-call]  # redis-py has no types for it
    place = parts.get("path") or f"{parts.get('host', 'localhost')}:{parts.get('port', 6379)}"
    return f"{place}/{parts.get('db', 0)}"


def _reason(error: BaseException) -> str:
    """Return the first line of an error; redis-py quotes no password."""
    text = str(error).partition("\n")[0]
    if "CERTIFICATE_VERIFY_FAILED" in text:
        text += " (see ssl_ca_certs and ssl_cert_reqs in docs/reference/configuration.md)"
    return text or type(error).__name__


def _refused(name: str, variable: str, where: str, error: str) -> Finding:
    if "unknown command" in error.lower():
        advice = _ANOTHER.format("has Redis 6.2 or later", variable)
        return fail(name, f"{where} is older than Redis 6.0", advice)
    if error.startswith("MISCONF"):  # it rejects PING, too, while it cannot save
        return fail(name, f"{where}: {error}", _DISK)
    return fail(name, f"{where}: {error}", f"Correct {variable}, or see the server's log.")


def _version(
    name: str, variable: str, where: str, info: Mapping[str, Any], seconds: float
) -> Iterator[Finding]:
    version = str(info.get("redis_version", ""))
    product = "Valkey" if info.get("server_name") == "valkey" else "Redis"
    shown = str(info.get("valkey_version", version))
    numbers = re.match(r"(\d+)\.(\d+)", version)
    if numbers and (int(numbers[1]), int(numbers[2])) < OLDEST_REDIS:
        advice = _ANOTHER.format("has Redis 6.2 or later", variable)
        yield fail(name, f"{product} {shown} at {where} is too old", advice)
    elif info.get("cluster_enabled"):
        advice = _ANOTHER.format("is no cluster", variable)
        yield fail(name, f"{where} is a Redis Cluster, which is not supported", advice)
    else:
        yield ok(name, f"{product} {shown} at {where}, {seconds * 1000:.1f} ms")


def _writes(name: str, variable: str, info: Mapping[str, Any], client: Redis) -> Finding:
    check = f"{name} writes"
    replica = fail(
        check,
        "is a replica, which rejects writes",
        f"Point {variable} to the primary, or promote this server.",
    )
    if info.get("role") == "slave":
        return replica
    if info.get("rdb_last_bgsave_status") == "err" or info.get("aof_last_write_status") == "err":
        return fail(
            check,
            "could not save to its disk, and may reject writes",
            _DISK,
        )
    try:
        client.set(DOCTOR_PROBE, 1, px=PROBE_MILLISECONDS)
        if name == "redis":  # Celery publishes nothing that runs need
            client.publish(DOCTOR_PROBE, 1)
    except OutOfMemoryError as error:
        advice = "Delete keys that never expire and are not this service's, or raise maxmemory."
        return fail(check, f"is full, and rejects writes: {_reason(error)}", advice)
    except ReadOnlyError:
        return replica
    except NoPermissionError as error:
        advice = "Allow this user all keys and channels (ACL SETUSER … ~* &* +@all)."
        return warn(check, f"rejects some of this user's: {_reason(error)}", advice)
    except RedisError as error:
        return fail(check, f"are rejected: {_reason(error)}", "See the server's log.")
    return ok(check, "accepted")


def _memory(name: str, info: Mapping[str, Any]) -> Iterator[Finding]:
    policy, most = str(info.get("maxmemory_policy", "")), int(info.get("maxmemory", 0))
    used = int(info.get("used_memory", 0))
    check = f"{name} memory"
    shown = f"{used / 2**20:,.0f} MiB used, maxmemory {most / 2**20:,.0f} MiB, {policy}"
    if policy.startswith("allkeys"):
        yield fail(
            check,
            f"{shown}: evicts messages for workers, so that runs start late",
            "CONFIG SET maxmemory-policy volatile-lru (and in its configuration file).",
        )
    elif not most:
        yield warn(
            check,
            f"{used / 2**20:,.0f} MiB used, and maxmemory is not set: Redis can grow until the"
            " kernel kills it",
            "CONFIG SET maxmemory 512mb, with maxmemory-policy volatile-lru.",
        )
    elif policy == "noeviction":
        yield (fail if used > 0.95 * most else warn)(
            check,
            f"{shown}: a full Redis rejects events and messages",
            "CONFIG SET maxmemory-policy volatile-lru: it then evicts streams, which Postgres has.",
        )
    elif used > 0.95 * most and not _evictable(info):
        yield fail(
            check,
            f"{shown}: keys that never expire fill it, and it cannot evict them",
            "Delete keys that other programs have written, or raise maxmemory.",
        )
    elif name == "redis" and policy in ("volatile-ttl", "volatile-random"):
        yield warn(
            check,
            f"{shown}: a full Redis forgets requests and guesses at passwords that limits count",
            "CONFIG SET maxmemory-policy volatile-lru: it evicts what is not in use.",
        )
    else:
        yield ok(check, shown)


def _evictable(info: Mapping[str, Any]) -> int:
    """Return the number of keys that expire, in all databases: `volatile-…` evicts no others."""
    databases = [value for field, value in info.items() if re.fullmatch(r"db\d+", field)]
    return sum(int(database["expires"]) for database in databases)


def _seconds(time_: tuple[int, int]) -> float:
    return time_[0] + time_[1] / 1_000_000
