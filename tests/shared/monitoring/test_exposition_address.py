"""The address of the metrics, while somebody else has it and afterwards."""

import os
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from arkloop.shared.config import Settings
from tests.waiting import eventually

pytestmark = pytest.mark.processes

_LISTEN = """
import sys
from arkloop.shared import logs
from arkloop.shared.config import Settings
from arkloop.shared.monitoring import exposition
from arkloop.shared.storage.connections import connect
logs.configure()
exposition.LISTEN_SECONDS = 0.1
settings = Settings.from_env()
exposition.count(settings)
exposition.listen(connect(settings, application="arkloop-test", pool_size=1))
sys.stdin.read()
"""


def test_a_process_listens_once_the_port_is_free(settings: Settings, tmp_path: Path) -> None:
    """A process of the release before may have it for a while; the log says so."""
    log = tmp_path / "log"
    with socket.create_server(("127.0.0.1", 0)) as other, log.open("w") as output:
        port = other.getsockname()[1]
        environ = {
            "PATH": os.environ["PATH"],
            "ARKLOOP_DATABASE_URL": settings.database_url,
            "ARKLOOP_REDIS_URL": settings.redis_url,
            "ARKLOOP_JWT_SECRET": settings.jwt_secret,
            "ARKLOOP_METRICS_PORT": str(port),
            "ARKLOOP_METRICS_DIR": str(tmp_path / "counts"),
        }
        process = subprocess.Popen(
            [sys.executable, "-c", _LISTEN], env=environ, stdin=subprocess.PIPE, stderr=output
        )
        refused = f"metrics: cannot listen on 127.0.0.1 port {port}: "
        eventually(lambda: refused in log.read_text() or process.poll() is not None)
        assert process.poll() is None, log.read_text()

    def shows() -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as found:
                return b"arkloop_open_streams" in found.read()
        except OSError:
            return False

    try:
        eventually(shows, seconds=20)
    finally:
        process.communicate()
    assert "the address of the metrics works again" in log.read_text()
