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


def _nginx(folder: Path, port: int, first: int, second: int) -> list[str]:
    servers = f"server 127.0.0.1:{first}; server 127.0.0.1:{second} backup;"
    path = _shipped(
        "nginx.conf",
        folder,
        ("listen 8080;", f"listen 127.0.0.1:{port};"),
        ("web:8080", "api"),
        ("/tmp/", f"{folder}/"),
        ("http {", f"http {{ upstream api {{ {servers} }}"),
    )
    return ["nginx", "-p", str(folder), "-c", path, "-g", "daemon off;"]


def _haproxy(folder: Path, port: int, first: int, second: int) -> list[str]:
    servers = f"server first 127.0.0.1:{first}\n    server second 127.0.0.1:{second}"
    path = _shipped(
        "haproxy.cfg",
        folder,
        ("bind :8080", f"bind 127.0.0.1:{port}"),
        ("maxconn 16384", "maxconn 1000"),  # more files than a test may open
        ("server-template web 10 web:8080", servers),
        ("balance leastconn", "balance first"),
    )
    return ["haproxy", "-db", "-f", path]


def _caddy(folder: Path, port: int, first: int, second: int) -> list[str]:
    path = _shipped(
        "Caddyfile",
        folder,
        (":8080 {", f"http://127.0.0.1:{port} {{"),
        (
            "dynamic a web 8080 {\n\t\t\trefresh 5s\n\t\t}",
            f"to 127.0.0.1:{first} 127.0.0.1:{second}",
        ),
        ("lb_policy least_conn", "lb_policy first"),
    )
    return ["caddy", "run", "--adapter", "caddyfile", "--config", path]


def _shipped(name: str, folder: Path, *changes: tuple[str, str]) -> str:
    """Write the configuration that is shipped, but for addresses, folders and the order of servers;
    returns its path.
    """
    text = (ROOT / "deploy" / name).read_text()
    for shipped, here in changes:
        assert 1 <= text.count(shipped), f"deploy/{name} lacks {shipped}"
        text = text.replace(shipped, here)
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
