"""The connections of a process, when the network forgets them."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest
import redis
from redis.connection import parse_url

from arkloop.shared.config import Settings
from arkloop.shared.events import event_log
from arkloop.shared.events.types import MessageDelta
from arkloop.shared.storage.connections import Connections, connect
from chaos.system.fault_proxy import FaultProxy
from tests.stored_runs import numbered
from tests.unix_redis import failing_over
from tests.waiting import eventually

pytestmark = pytest.mark.processes

AT_ONCE = 4


def test_one_half_open_connection_to_redis_replaces_the_idle_ones(
    settings: Settings, redis_url: str
) -> None:
    """A firewall has forgotten all of them, and each would time out by itself."""
    server = parse_url(redis_url)
    with FaultProxy((server["host"], server["port"])) as proxy:
        url = redis_url.replace(f":{server['port']}", f":{proxy.port}")
        connections = connect(replace(settings, redis_url=url), application="tests")
        use_several(connections)
        proxy.abandon()

        with pytest.raises((redis.ConnectionError, redis.TimeoutError)):
            connections.ask_redis(lambda client: client.ping())
        eventually(lambda: is_there(connections))
        use_several(connections)

        connections.redis.connection_pool.disconnect()
        connections.close()


def use_several(connections: Connections) -> None:
    """Use several of the pool's connections at once."""
    pool = connections.redis.connection_pool
    taken = [pool.get_connection() for _ in range(AT_ONCE)]
    for connection in taken:
        connection.send_command("PING")
        assert "PONG" == connection.read_response()
        pool.release(connection)


def write(connections: Connections) -> None:
    connections.ask_redis(lambda client: client.set("key", "value"))


def publish(connections: Connections) -> None:
    event_log.publish(connections, {uuid4(): numbered(1, MessageDelta("one"))})


@pytest.mark.parametrize("use", [write, publish])
def test_a_server_that_was_demoted_is_left(
    settings: Settings, tmp_path: Path, use: Callable[[Connections], None]
) -> None:
    """It keeps its connections, while the address leads to the new primary."""
    with failing_over(tmp_path) as pair:
        connections = connect(replace(settings, redis_url=pair.url), application="tests")
        use(connections)
        pair.fail_over()

        with suppress(redis.ReadOnlyError):
            use(connections)
        use(connections)

        assert pair.promoted.keys()
        connections.close()


def is_there(connections: Connections) -> bool:
    """Return whether Redis may be used again, and responds."""
    try:
        connections.ask_redis(lambda client: client.ping())
    except redis.RedisError:
        return False
    return True
