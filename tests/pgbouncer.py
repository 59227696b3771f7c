"""PgBouncer before the tests' Postgres."""

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from arkloop.cli.dev.embedded_postgres import EmbeddedPostgres
from arkloop.cli.dev.embedded_server import free_port
from arkloop.cli.dev.server_account import account_of_servers
from tests.waiting import eventually

PROGRAM = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")
needs_pgbouncer = pytest.mark.skipif(
    PROGRAM is None and os.environ.get("NEED_POOLERS") != "1",
    reason="PgBouncer is not installed: make test-poolers",
)

_CONFIG = """
[databases]
* = host={host} port=5432 user={user}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
{settings}
"""


@contextmanager
def pgbouncer(
    postgres: EmbeddedPostgres, folder: Path, *, user: str = "postgres", **settings: object
) -> Iterator[int]:
    """Start it with these settings, for sessions of this user; yields its port."""
    assert PROGRAM is not None, "PgBouncer is not installed"
    port = free_port()
    config = folder / "pgbouncer.ini"
    lines = "\n".join(f"{name} = {value}" for name, value in settings.items())
    config.write_text(_CONFIG.format(host=postgres.sockets, port=port, user=user, settings=lines))
    command = [PROGRAM, str(config)]
    if (account := account_of_servers()) is not None:
        command += ["--user", account]
    with (folder / "pgbouncer.log").open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        eventually(lambda: _accepts(port))
        yield port
    finally:
        process.terminate()
        process.wait(60)


def _accepts(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
