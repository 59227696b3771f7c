"""Three Sentinels of Redis that watch a primary, and promote its replica when it is lost."""

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from redis import Redis, RedisError

from arkloop.cli.dev.embedded_redis import EmbeddedRedis
from arkloop.cli.dev.embedded_server import free_port
from tests.waiting import eventually

_OF = "redis"
#: Shorter than any operator would choose, which only shortens the test.
_DOWN_AFTER_MS = 1000
#: How often they tell each other of the primary: by default, and hardly ever.
_PUBLISH_MS, _LONG_MS = 2_000, 3_600_000


@contextmanager
def sentinels(folder: Path, primary: EmbeddedRedis, password: str) -> Iterator[Sequence[Redis]]:
    """Start them, wait until they know each other, and yield a client of each."""
    ports = [free_port() for _ in range(3)]
    with ExitStack() as stack:
        clients = []
        for port in ports:
            data = folder / f"sentinel-{port}"
            data.mkdir()
            config = data / "sentinel.conf"
            config.write_text(
                f'port {port}\nbind 127.0.0.1\ndir "{data}"\n'
                f"sentinel monitor {_OF} 127.0.0.1 {primary.port} 2\n"
                f"sentinel auth-pass {_OF} {password}\n"
                f"sentinel down-after-milliseconds {_OF} {_DOWN_AFTER_MS}\n"
                f"sentinel failover-timeout {_OF} 10000\n"
            )
            log = stack.enter_context((data / "log").open("wb"))
            command = [str(primary.binary), str(config), "--sentinel"]
            process = subprocess.Popen(primary.tied(command), stdout=log, stderr=log)
            stack.callback(process.wait, 60)
            stack.callback(process.kill)
            clients.append(stack.enter_context(Redis(port=port, decode_responses=True)))
        eventually(lambda: all(map(_knows_all, clients)))
        yield clients


@contextmanager
def returned_primaries_stay(sentinels: Sequence[Redis]) -> Iterator[None]:
    """Let a primary that comes back be one for the length of the block.

    Sentinel makes it a replica after four of these periods, which are eight seconds otherwise.
    """
    for client in sentinels:
        client.execute_command("SENTINEL", "DEBUG", "PUBLISH-PERIOD", _LONG_MS)
    yield
    for client in sentinels:
        client.execute_command("SENTINEL", "DEBUG", "PUBLISH-PERIOD", _PUBLISH_MS)


def primary_port(sentinel: Redis) -> int:
    """Return the port of the server that is the primary for this Sentinel."""
    address: Any = sentinel.sentinel_get_master_addr_by_name(_OF)
    return int(address[1])


def _knows_all(sentinel: Redis) -> bool:
    try:
        state: Any = sentinel.sentinel_master(_OF)
    except RedisError:  # it does not listen yet
        return False
    return (1, 2) == (state["num-slaves"], state["num-other-sentinels"])
