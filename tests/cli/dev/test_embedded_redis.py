"""The embedded Redis: one URL for redis-py and kombu, and data that survive where asked."""

import os
import signal
import stat
from pathlib import Path

import kombu
import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from arkloop.cli.dev import embedded_redis
from arkloop.cli.dev.embedded_redis import EmbeddedRedis

pytestmark = pytest.mark.processes


def test_one_url_serves_redis_py_and_kombu(tmp_path: Path) -> None:
    """Streams and the task queue need no second setting."""
    with EmbeddedRedis(tmp_path / "redis", persist=False) as server:
        with redis.from_url(server.url) as client, kombu.Connection(server.url) as broker:
            answer = client.ping()
            broker.ensure_connection(max_retries=1)
            connected = broker.connected

    assert answer is True
    assert connected


def test_strangers_on_this_machine_are_refused(tmp_path: Path) -> None:
    """Without the password nothing is answered, and the password is in no readable file."""
    with EmbeddedRedis(tmp_path / "redis", persist=False) as server:
        with redis.Redis(port=server.port, retry=Retry(NoBackoff(), 0)) as client:
            with pytest.raises(redis.AuthenticationError):
                client.ping()

        assert 0o600 == stat.S_IMODE((server.data / "redis.conf").stat().st_mode)


def test_persistent_data_survive_a_stop_and_a_kill(tmp_path: Path) -> None:
    """With `persist` a key is there after a stop, and after SIGKILL once it was flushed."""
    with EmbeddedRedis(tmp_path / "redis") as server:
        with redis.from_url(server.url) as client:
            client.set("kept", "1")
        server.stop()
        server.start()
        assert server.pid is not None
        os.kill(server.pid, signal.SIGKILL)
        server.stop()
        server.start()

        with redis.from_url(server.url, decode_responses=True) as client:
            assert "1" == client.get("kept")


def test_versions_are_compared_as_numbers(tmp_path: Path) -> None:
    """A server that is too old for Celery, or no server, is distinguished from a suitable one."""
    program = tmp_path / "redis-server"
    program.write_text("#!/bin/sh\necho Redis server v=10.0.1 sha=0\n")
    program.chmod(0o755)

    assert (10, 0) == embedded_redis.version_of(program)
    assert (10, 0) > embedded_redis.OLDEST_VERSION
    assert embedded_redis.version_of(tmp_path / "absent") is None
