"""The app behind a real gunicorn, for what only real HTTP can show."""

import os
import secrets
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from arkloop.cli.dev.embedded_server import free_port
from arkloop.shared.config import Settings
from tests import forked
from tests.waiting import eventually

ROOT = Path(__file__).parents[1]
#: The Procfile's own line, but for its shell.
GUNICORN = [
    *(sys.executable, "-m", "gunicorn"),
    *("--config", "python:arkloop.api.gunicorn_conf", "arkloop.api.app:create_app()"),
]
MODULE = GUNICORN.index("gunicorn")

#: What a process needs from this one's environment; the second one makes `make coverage` see it.
INHERITED = {
    name: os.environ[name] for name in ("PATH", "COVERAGE_PROCESS_CONFIG") if name in os.environ
}


@dataclass(frozen=True)
class WebServer:
    """A gunicorn of the service; `log` is its standard error, `pid` its master's."""

    settings: Settings
    log: Path
    pid: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.settings.port}"

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.settings.port), timeout=100)

    def answers(self) -> bool:
        return answers(self.url)


def answers(url: str, host: str | None = None) -> bool:
    """Return whether the service is alive at this address, for this host name."""
    headers = {} if host is None else {"Host": host}
    try:
        request = urllib.request.Request(f"{url}/healthz", headers=headers)
        with urllib.request.urlopen(request, timeout=5) as response:
            return bool(response.status == 200)
    except OSError:
        return False


def starts_otherwise(environ: Mapping[str, str]) -> bool:
    """Return whether Python does more at the start of a process than a fork would do.

    Coverage follows processes from their start on, and `sitecustomize` is imported then.
    """
    paths = [Path(path) for path in environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    return "COVERAGE_PROCESS_CONFIG" in INHERITED or any(
        (path / "sitecustomize.py").exists() for path in paths
    )


@contextmanager
def web_server(
    environ: Mapping[str, str], log: Path, *, as_in_production: bool = False
) -> Iterator[WebServer]:
    """Start gunicorn with these variables added to `ARKLOOP_…` of its own; stop it at the end.

    It is forked, or a process from its start on, `as_in_production`.
    """
    port = free_port()
    variables = {
        "ARKLOOP_JWT_SECRET": secrets.token_hex(32),
        "ARKLOOP_REGISTRATION": "open",
        "ARKLOOP_SCRIPTED": "1",
        "ARKLOOP_SECURE_COOKIES": "0",
        "ARKLOOP_PORT": str(port),
        "ARKLOOP_API_WORKERS": "1",
        **environ,
    }
    process: subprocess.Popen[bytes] | forked.Forked
    with log.open("wb") as output:
        if as_in_production or starts_otherwise(variables):
            process = subprocess.Popen(
                GUNICORN,
                cwd=ROOT,
                env={**INHERITED, **variables},
                stderr=output,
            )
        else:
            process = forked.SERVER.start(GUNICORN[MODULE:], {**INHERITED, **variables}, log)
    server = WebServer(Settings.from_env(variables), log, process.pid)
    try:
        eventually(lambda: forked.has_ended(process) or server.answers(), seconds=200)
        assert not forked.has_ended(process), log.read_text()
        yield server
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        finally:
            process.send_signal(signal.SIGKILL)  # nothing happens if it has ended
