"""nginx, HAProxy and Caddy in front of two web servers; the first is used while it is up."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from arkloop.cli.dev.embedded_server import free_port
from tests.waiting import eventually
from tests.web_server import ROOT, answers

_PATH = f"{ROOT / '.cache' / 'proxies' / 'bin'}:{os.environ['PATH']}:/usr/sbin"

_HAPROXY = """
defaults
    mode http
    timeout connect 5s
    timeout client 60s
    timeout server 60s
    retries 3
    option redispatch 1
frontend public
    bind 127.0.0.1:{port}
    default_backend api
backend api
    balance first
    server first 127.0.0.1:{first}
    server second 127.0.0.1:{second}
"""

_CADDY = """
{{
    admin off
    auto_https off
    persist_config off
}}
http://127.0.0.1:{port} {{
    reverse_proxy 127.0.0.1:{first} 127.0.0.1:{second} {{
        lb_policy first
        lb_try_duration 5s
        fail_duration 30s
    }}
}}
"""


def _nginx(folder: Path, port: int, first: int, second: int) -> list[str]:
    """Write the configuration that is shipped, but for addresses and folders."""
    text = (ROOT / "deploy" / "nginx.conf").read_text()
    servers = f"server 127.0.0.1:{first}; server 127.0.0.1:{second} backup;"
    for shipped, here in (
        ("listen 8080;", f"listen 127.0.0.1:{port};"),
        ("web:8080", "api"),
        ("/tmp/", f"{folder}/"),
        ("http {", f"http {{ upstream api {{ {servers} }}"),
    ):
        assert shipped in text
        text = text.replace(shipped, here)
    return ["nginx", "-p", str(folder), "-c", _written(folder, text), "-g", "daemon off;"]


def _haproxy(folder: Path, port: int, first: int, second: int) -> list[str]:
    text = _HAPROXY.format(port=port, first=first, second=second)
    return ["haproxy", "-db", "-q", "-f", _written(folder, text)]


def _caddy(folder: Path, port: int, first: int, second: int) -> list[str]:
    text = _CADDY.format(port=port, first=first, second=second)
    return ["caddy", "run", "--adapter", "caddyfile", "--config", _written(folder, text)]


def _written(folder: Path, text: str) -> str:
    path = folder / "proxy.conf"
    path.write_text(text)
    return str(path)


COMMANDS: dict[str, Callable[[Path, int, int, int], list[str]]] = {
    "nginx": _nginx,
    "haproxy": _haproxy,
    "caddy": _caddy,
}


@contextmanager
def proxy(name: str, folder: Path, first: int, second: int) -> Iterator[str]:
    """Start a proxy and yield its address; skips the test without its program, or fails in CI."""
    if shutil.which(name, path=_PATH) is None:
        reason = f"{name} is not installed: run `make test-proxies`"
        if os.environ.get("NEED_PROXIES") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    port = free_port()
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            COMMANDS[name](folder, port, first, second),
            env={"PATH": _PATH, "HOME": str(folder)},
            stdout=log,
            stderr=log,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        eventually(lambda: process.poll() is not None or answers(url), seconds=20)
        assert process.poll() is None, (folder / "log").read_text()
        yield url
    finally:
        process.terminate()
        process.wait(10)
