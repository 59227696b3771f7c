"""The connections of a process, when the network forgets them."""

import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest
import redis
from redis.connection import parse_url
from sqlalchemy import text

from arkloop.shared import metrics
from arkloop.shared.config import Settings
from arkloop.shared.errors import NotFound, Unavailable
from arkloop.shared.events import event_log
from arkloop.shared.events.types import MessageDelta
from arkloop.shared.storage import postgres
from arkloop.shared.storage.checkouts import Patience
from arkloop.shared.storage.connections import Connections, connect
from arkloop.shared.storage.outage import Outage
from chaos.system.fault_proxy import FaultProxy
from tests.closed_port import closed_port
from tests.counted import counted
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


def silent(pause_seconds: float) -> Outage:
    """Return an outage that has begun."""
    outage = Outage(pause_seconds)
    outage.failed()
    return outage


@pytest.mark.parametrize("name", ["transaction", "statement", "reading"])
def test_a_request_that_is_rejected_ends_an_outage(connections: Connections, name: str) -> None:
    """The one that may try each second may be for something that does not exist."""
    opened = replace(connections, postgres_outage=silent(0), commit_outage=silent(0))

    with pytest.raises(NotFound), getattr(opened, name)():
        raise NotFound()

    assert not opened.postgres_outage.is_on
    assert opened.commit_outage.is_on == (name == "reading")


def test_a_request_that_began_before_an_outage_does_not_end_it(connections: Connections) -> None:
    """A request that is rejected knows of commits that wait only if it asked."""
    opened = replace(connections, commit_outage=Outage(0))

    with pytest.raises(NotFound), opened.transaction():
        opened.commit_outage.failed()
        raise NotFound()

    assert opened.commit_outage.is_on


def test_a_transaction_that_only_reads_begins_while_commits_wait(connections: Connections) -> None:
    """Its commit waits for no standby."""
    opened = replace(connections, commit_outage=silent(600))

    with pytest.raises(Unavailable), opened.transaction():
        pass
    with opened.transaction(writes=False) as tx:
        assert 1 == tx.sql.scalar(text("SELECT 1"))

    assert opened.commit_outage.is_on


def test_a_silence_before_the_commit_closes_no_writes(settings: Settings) -> None:
    """Only the pool in which it occurs has an outage; the writes of others may work."""
    hasty = postgres.Timeouts(lock=1, statement=20, answer=0.5, checkout=Patience(10, 10))
    connections = connect(settings, application="tests", timeouts=hasty)

    with pytest.raises(Unavailable), connections.transaction() as tx:
        tx.sql.execute(text("SELECT pg_sleep(2)"))
    assert connections.postgres_outage.is_on
    assert not connections.commit_outage.is_on

    connections.close()


class Once(threading.Event):
    """An event that is set by the first wait for it."""

    def wait(self, timeout: float | None = None) -> bool:
        self.set()
        return True


def test_the_log_names_each_host_that_is_waited_for(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    """The last host of a URL may be a standby, beside a primary that is full."""
    ports = [closed_port(), closed_port()]
    url = "postgresql+psycopg://nobody@/nothing?host=127.0.0.1,127.0.0.1&port={},{}".format(*ports)
    connections = connect(replace(settings, database_url=url), application="tests")

    connections.wait_for_schema(Once())

    connections.close()
    [line] = [one for one in caplog.messages if one.startswith("waiting for the database: ")]
    assert all(f"port {port} failed: Connection refused" in line for port in ports)
    assert "\n" not in line


def test_callers_with_a_connection_and_without_are_counted(connections: Connections) -> None:
    """An operator sees that the pool is exhausted, and that it is no more."""
    impatient = replace(postgres.REQUEST_TIMEOUTS, checkout=Patience(0.05, 0.05))
    small = connections.with_pool(application="tests", size=1, timeouts=impatient)
    with counted(metrics.POOL_IN_USE) as in_use, counted(metrics.POOL_TIMEOUTS) as timeouts:
        with small.reading():
            eventually(lambda: in_use == {(): [1]})
            with pytest.raises(Unavailable), small.reading():
                pass
        eventually(lambda: in_use == {(): [0]})
    small.close_pool()
    assert {(): [1]} == timeouts
