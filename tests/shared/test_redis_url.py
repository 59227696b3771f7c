"""Forms of the URL of a Redis."""

import pytest
from redis import ConnectionPool
from redis.connection import URL_QUERY_ARGUMENT_PARSERS

from arkloop.shared import redis_url
from arkloop.shared.config import InvalidSettings, Settings
from arkloop.shared.redis_url import InvalidRedisUrl

REST = {"ARKLOOP_DATABASE_URL": "postgresql://db/name", "ARKLOOP_JWT_SECRET": "s" * 32}


@pytest.mark.parametrize(
    "url",
    [
        *("redis://", "redis://cache", "redis://cache:6380/3", "rediss://u:p@cache.example.com/"),
        *("redis://:p%2Fw@[::1]:6379/0", "redis://:a@b@cache:6379", "redis://10.0.0.1?db=2"),
        *("unix:///run/redis.sock?db=1", "redis://cache?socket_timeout=0.5&protocol=3"),
        *("redis://cache?socket_timeout=.5", "redis://cache?socket_connect_timeout=1e1"),
        "redis://cache?retry_on_timeout=yes",
    ],
)
def test_what_the_client_reads_is_accepted(url: str) -> None:
    """Every form that its documentation has."""
    redis_url.check(url)

    ConnectionPool.from_url(url).make_connection()


@pytest.mark.parametrize(
    ("url", "why"),
    [
        (
            "redis+sentinel://:secret@cache:26379/main",
            "must be an address that leads to the primary",
        ),
        ("amqp://:secret@cache", "must begin with redis:// or rediss:// or unix://"),
        ("cache:6379", "must begin with redis://"),
        ("redis://:secret@cache:abc", "must have a port from 1 to 65535"),
        ("redis://:secret@cache:99999", "must have a port from 1 to 65535"),
        ("redis://:secret@cache:0", "must have a port from 1 to 65535"),
        ("redis://:sec/ret@cache:6379", "must have a port from 1 to 65535; a / \\? or #"),
        ("redis:// cache/0", "must have no space in its host"),
        ("redis://:secret@cache :6379", "must have no space in its host"),
        ("redis://:secret@cache?socket_timeout=inf", "must have a number of seconds"),
        ("redis://:secret@cache?socket_timeout=nan", "must have a number of seconds"),
        ("redis://:secret@cache?socket_timeout=-1", "must have a number of seconds"),
        ("redis://:12/sec@cache:6379", "must have no @ after its host; a / \\? or #"),
        ("redis://:12?sec=1@cache:6379", "must have no @ after its host"),
        ("redis://:12#sec@cache:6379", "must have no @ after its host"),
        ("redis://:s@1?sec=1@cache:6379", "must have no @ after its host"),
        ("redis://:secret@[::1", "must have an IPv6 address in brackets"),
        ("redis://:secret@::1:6379", "must have a port"),
        ("redis://:secret@cache/main", "must end with the number of a database"),
        ("redis://:secret@cache/0/1", "must end with the number of a database"),
        ("redis://:secret@cache?db=main", "must have an integer as db"),
        ("redis://:secret@cache?socket_timeout=1s", "must have a number of seconds"),
        ("unix://", "must have the path of a socket"),
    ],
)
def test_what_the_client_would_not_read_is_one_line(url: str, why: str) -> None:
    """It names the variable and what is wrong, and has no part of the password."""
    with pytest.raises(InvalidRedisUrl, match=f"^{why}") as refused:
        redis_url.check(url)
    with pytest.raises(InvalidSettings, match=f"^REDIS_URL: {why}"):
        Settings.from_env(REST | {"REDIS_URL": url})

    assert "sec" not in str(refused.value).replace("seconds", "")
    assert "\n" not in str(refused.value)


def test_every_option_that_the_client_converts_is_checked() -> None:
    """A later client with another number among its options fails here, not at a start."""
    numbers = {name for name, kind in URL_QUERY_ARGUMENT_PARSERS.items() if kind in (int, float)}

    assert redis_url.INTEGERS | redis_url.NUMBERS == numbers
