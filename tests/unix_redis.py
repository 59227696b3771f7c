"""Redis servers behind Unix sockets, and an address that leads to one of two."""

import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arkloop.cli.dev.embedded_redis import find_binary
from arkloop.shared.storage.connections import connect_redis
from tests.waiting import eventually


@contextmanager
def unix_redis(folder: Path, *options: str) -> Iterator[Path]:
    """Start a server that listens on a socket alone; `options` are its other ones."""
    path = folder / "redis.sock"
    command = [find_binary(), "--port", "0", "--unixsocket", path, "--save", ""]
    server = subprocess.Popen(
        [*command, "--requirepass", "p@ss", *options], cwd=folder, stdout=subprocess.DEVNULL
    )
    try:
        eventually(lambda: _accepts(path))
        yield path
    finally:
        server.terminate()
        server.wait(60)


def _accepts(path: Path) -> bool:
    """Return whether a server listens; its file is there a moment before."""
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(str(path)) == 0


@dataclass(frozen=True)
class RedisPair:
    """Two servers, and clients of them that no failover concerns."""

    address: Path
    socket: Path  # of the second one
    first: Any
    promoted: Any

    @property
    def url(self) -> str:
        return _url(self.address)

    def fail_over(self) -> None:
        """Make the first server a replica, and let the address lead to the second one."""
        self.first.replicaof("127.0.0.1", 1)
        self.address.unlink()
        self.address.symlink_to(self.socket)


@contextmanager
def failing_over(folder: Path) -> Iterator[RedisPair]:
    """Start two servers behind one address, which leads to the first one."""
    address, folders = folder / "redis.sock", (folder / "a", folder / "b")
    for one in folders:
        one.mkdir()
    with unix_redis(folders[0]) as old, unix_redis(folders[1]) as new:
        address.symlink_to(old)
        with connect_redis(_url(old)) as first, connect_redis(_url(new)) as promoted:
            yield RedisPair(address, new, first, promoted)


def _url(socket: Path) -> str:
    return f"unix://:p%40ss@{socket}"
