"""nginx, HAProxy and Caddy in front of two web servers, of which the first is used while it is up;
HAProxy in front of cells, and of Redis.
"""

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from redis import Redis, RedisError

from arkloop.cli.dev.embedded_server import free_port
from tests.waiting import eventually
from tests.web_server import ROOT, answers

_PATH = f"{ROOT / '.cache' / 'proxies' / 'bin'}:{os.environ['PATH']}:/usr/sbin"

_CADDYS_POLICY = "lb_policy round_robin"


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
    # Without `fail_duration` it would try the first one alone.
    return _caddy_by("lb_policy first\n\t\tfail_duration 10s", folder, port, first, second)


def _caddy_by(policy: str, folder: Path, port: int, first: int, second: int) -> list[str]:
    path = _shipped(
        "Caddyfile",
        folder,
        (":8080 {", f"http://127.0.0.1:{port} {{"),
        (
            "dynamic a web 8080 {\n\t\t\trefresh 5s\n\t\t}",
            f"to 127.0.0.1:{first} 127.0.0.1:{second}",
        ),
        (_CADDYS_POLICY, policy),
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
    _need(name)
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with _running(COMMANDS[name](folder, port, first, second), folder, lambda: answers(url)):
        yield url


@contextmanager
def caddy_in_turn(folder: Path, *ports: int) -> Iterator[str]:
    """Start Caddy in front of two servers that it uses in turn, as shipped; yield its address."""
    _need("caddy")
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = _caddy_by(_CADDYS_POLICY, folder, port, *ports)
    with _running(command, folder, lambda: answers(url)):
        yield url


def _need(name: str) -> None:
    if shutil.which(name, path=_PATH) is None:
        reason = f"{name} is not installed: run `make test-proxies`"
        if os.environ.get("NEED_PROXIES") == "1":
            pytest.fail(reason)
        pytest.skip(reason)


@contextmanager
def _running(
    command: list[str], folder: Path, is_up: Callable[[], bool], **environ: str
) -> Iterator["subprocess.Popen[bytes]"]:
    with (folder / "log").open("wb") as log:
        environ = {"PATH": _PATH, "HOME": str(folder), **environ}
        process = subprocess.Popen(command, env=environ, stdout=log, stderr=log)
    try:
        eventually(lambda: process.poll() is not None or is_up())
        assert process.poll() is None, (folder / "log").read_text()
        yield process
    finally:
        process.terminate()
        process.wait(60)


@dataclass(frozen=True)
class CellProxy:
    """HAProxy in front of cells, and the map of the host names of orgs."""

    url: str
    map: Path
    process: "subprocess.Popen[bytes]"

    def switch(self, host: str, cell: str) -> None:
        """Lead the requests of a host name to another cell, as an operator does."""
        lines = [line.split() for line in self.map.read_text().splitlines()]
        self.map.write_text("".join(f"{h} {cell if h == host else c}\n" for h, c in lines))
        self.process.send_signal(signal.SIGUSR2)


@contextmanager
def cell_proxy(folder: Path, ports: Sequence[int], hosts: Mapping[str, str]) -> Iterator[CellProxy]:
    """Start the HAProxy of `deploy/cells` in front of two cells with one web process each."""
    _need("haproxy")
    port, map_ = free_port(), folder / "orgs.map"
    map_.write_text("".join(f"{host} {cell}\n" for host, cell in hosts.items()))
    path = _shipped(
        "cells/haproxy.cfg",
        folder,
        ("bind :8080", f"bind 127.0.0.1:{port}"),
        ("maxconn 16384", "maxconn 1000"),
        ("/etc/haproxy/orgs.map", str(map_)),
        ("server web-2", "# server web-2"),
        *((f"cell-{i}-web-1:8080", f"127.0.0.1:{own}") for i, own in enumerate(ports, 1)),
    )
    url, host = f"http://127.0.0.1:{port}", next(iter(hosts))
    command = ["haproxy", "-W", "-db", "-f", path]
    with _running(command, folder, lambda: answers(url, host)) as process:
        yield CellProxy(url, map_, process)


@contextmanager
def redis_proxy(folder: Path, url: str, ports: Sequence[int]) -> Iterator[None]:
    """Start the HAProxy of `deploy/haproxy-redis.cfg` at this URL, in front of two servers."""
    _need("haproxy")
    address = urlsplit(url)
    path = _shipped(
        "haproxy-redis.cfg",
        folder,
        ("bind :6379", f"bind 127.0.0.1:{address.port}"),
        ("maxconn 4096", "maxconn 1000"),
        *((f"redis-{i}:6379", f"127.0.0.1:{own}") for i, own in enumerate(ports, 1)),
    )

    def is_up() -> bool:
        try:
            with Redis.from_url(url) as client:
                return bool(client.ping())
        except RedisError:
            return False

    command = ["haproxy", "-db", "-f", path]
    with _running(command, folder, is_up, REDIS_PASSWORD=address.password or ""):
        yield
