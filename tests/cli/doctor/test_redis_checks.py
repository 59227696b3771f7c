"""Findings of `arkloop doctor` about Redis: its policy, its role, its users."""

from collections.abc import Callable
from pathlib import Path

import pytest
import redis

from arkloop.cli.dev.embedded_redis import EmbeddedRedis
from tests.cli.doctor.examined import Examine, configure, examine, own_redis
from tests.closed_port import closed_port
from tests.waiting import eventually

pytestmark = pytest.mark.processes

__all__ = ["configure", "examine", "own_redis"]  # fixtures


@pytest.mark.parametrize(
    ("values", "level"),
    [
        ({"maxmemory": "64mb", "maxmemory_policy": "volatile-lru"}, "ok"),
        ({"maxmemory": "0", "maxmemory_policy": "noeviction"}, "warn"),
        ({"maxmemory": "64mb", "maxmemory_policy": "noeviction"}, "warn"),
        ({"maxmemory": "64mb", "maxmemory_policy": "volatile-ttl"}, "warn"),
        ({"maxmemory": "64mb", "maxmemory_policy": "allkeys-lru"}, "fail"),
        ({"maxmemory": "0", "maxmemory_policy": "allkeys-lfu"}, "fail"),
    ],
)
def test_the_policy_of_redis_is_judged(
    examine: Examine, configure: Callable[..., None], values: dict[str, str], level: str
) -> None:
    """A policy that evicts messages for workers fails; one that can only reject writes is found,
    and one that forgets what limits count.
    """
    configure(**values)

    assert [level] == [found for found, _ in examine().of("redis memory")]


def test_a_full_redis_with_the_recommended_policy_counts_for_limits(
    configure: Callable[..., None], own_redis: EmbeddedRedis
) -> None:
    """It evicts streams that nobody reads, though they would expire later."""
    with redis.Redis.from_url(own_redis.url) as client:
        client.xadd("stream", {"data": "x" * 50_000})
        stream = client.dump("stream")
        client.set("count", 0, ex=120)
        used = client.info("memory")["used_memory"]
        configure(maxmemory=str(used + 2_000_000), maxmemory_policy="volatile-lru")
        for made in range(1, 301):
            client.restore(f"stream:{made}", 600_000, stream, idletime=60)
            client.incr("count")

        assert client.info("stats")["evicted_keys"] > 100
        assert 300 == int(client.get("count"))
        client.flushdb()


def test_a_replica_fails(
    examine: Examine, configure: Callable[..., None], own_redis: EmbeddedRedis
) -> None:
    """It rejects writes."""
    with redis.Redis.from_url(own_redis.url) as client:
        client.replicaof("127.0.0.1", 1)
        report = examine()

    assert ["redis writes"] == report.failed()


def test_a_redis_that_cannot_save_leads_to_its_disk(
    examine: Examine, own_redis: EmbeddedRedis
) -> None:
    """Its URL is not wrong, though it rejects even PING."""
    with redis.Redis.from_url(own_redis.url) as client:
        usual = client.config_get("save", "dir", "dbfilename")
        in_the_way = Path(usual["dir"]) / usual["dbfilename"]

        def save(status: str) -> None:
            client.bgsave()
            eventually(lambda: client.info("persistence")["rdb_last_bgsave_status"] == status)

        in_the_way.mkdir()
        client.config_set("save", "3600 1")
        try:
            save("err")
            report = examine()
        finally:
            client.config_set("save", usual["save"])
            in_the_way.rmdir()
            save("ok")

    assert ["redis"] == report.failed()
    assert "MISCONF" in report.of("redis")[0][1]
    assert report.advice("redis").startswith("Free space on its disk")


def test_a_redis_with_too_many_clients_is_not_to_be_started(
    examine: Examine, own_redis: EmbeddedRedis
) -> None:
    """It responds, and says why it accepts no connection."""
    with redis.Redis.from_url(own_redis.url) as client:
        [most] = client.config_get("maxclients").values()
        client.config_set("maxclients", 1)
        try:
            report = examine()
        finally:
            client.config_set("maxclients", most)

    assert "redis" in report.failed()
    [(_, why)] = report.of("redis")
    assert "max number of clients reached" in why
    assert "does not respond" not in why
    assert "maxclients" in report.advice("redis")


def test_a_broker_of_its_own_is_looked_at(examine: Examine) -> None:
    """It has findings of its own."""
    assert ["broker"] == examine(ARKLOOP_BROKER_URL=f"redis://127.0.0.1:{closed_port()}").failed()


def test_an_option_that_the_client_does_not_know_fails(examine: Examine) -> None:
    """It is one that Celery takes."""
    url = f"redis://127.0.0.1:{closed_port()}/0?visibility_timeout=60"
    assert "visibility_timeout" in examine(ARKLOOP_BROKER_URL=url).of("broker")[0][1]


def test_a_user_who_may_not_ask_is_found(
    examine: Examine, configure: Callable[..., None], own_redis: EmbeddedRedis
) -> None:
    """A wrong password fails, and a user without INFO leads to the right that is missing; writes
    and the clock are looked at all the same.
    """
    with redis.Redis.from_url(own_redis.url) as client:
        client.acl_setuser(
            "shy",
            enabled=True,
            passwords=["+quiet"],
            keys=["*"],
            channels=["*"],
            commands=["+@all", "-info"],
        )
        place = own_redis.url.rpartition("@")[2]
        assert ["redis"] == examine(ARKLOOP_REDIS_URL=f"redis://shy:loud@{place}").failed()
        report = examine(ARKLOOP_REDIS_URL=f"redis://shy:quiet@{place}")
        client.replicaof("127.0.0.1", 1)
        of_replica = examine(ARKLOOP_REDIS_URL=f"redis://shy:quiet@{place}")
        client.acl_deluser("shy")

    assert ["warn"] == [level for level, _ in report.of("redis")]
    assert "+info" in report.advice("redis")
    assert [("ok", "accepted")] == report.of("redis writes")
    assert ["ok"] == [level for level, _ in report.of("redis clock")]
    assert ["redis writes"] == of_replica.failed()
    assert "Point ARKLOOP_REDIS_URL to the primary" in of_replica.advice("redis writes")


@pytest.mark.parametrize("policy", ["volatile-lru", "volatile-ttl"])
def test_a_redis_full_of_keys_that_never_expire_fails(
    examine: Examine, configure: Callable[..., None], own_redis: EmbeddedRedis, policy: str
) -> None:
    """A server with the recommended policy has nothing to evict, and rejects writes."""
    configure(maxmemory="64kb", maxmemory_policy=policy)

    report = examine()

    assert ["redis writes", "redis memory"] == report.failed()
    assert "is full, and rejects writes" in report.of("redis writes")[0][1]
    assert "never expire" in report.of("redis memory")[0][1]


def test_a_user_without_channels_is_found(examine: Examine, own_redis: EmbeddedRedis) -> None:
    """Streams of such a user get no messages, so that they are late."""
    with redis.Redis.from_url(own_redis.url) as client:
        client.acl_setuser(
            "mute", enabled=True, passwords=["+x"], keys=["*"], commands=["+@all"], channels=[]
        )
        place = own_redis.url.rpartition("@")[2]
        report = examine(ARKLOOP_REDIS_URL=f"redis://mute:x@{place}")
        client.acl_deluser("mute")

    [(level, text)] = report.of("redis writes")
    assert ("warn", True) == (level, "channel" in text)
    assert "&*" in report.advice("redis writes")
