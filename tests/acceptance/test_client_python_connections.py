"""`clients/python` with a server that is not the service, which sees each of its connections."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import arkloop_client.client
import httpx
import pytest
from arkloop_client import Arkloop

from tests.closed_port import closed_port
from tests.played_streams import COMMENT, END, played_streams

pytestmark = pytest.mark.processes

ROOT = Path(__file__).parents[2]
#: A program whose child has the client of its parent, as with the pools of `multiprocessing`.
FORKING = """
import os, sys
from arkloop_client import Arkloop

with Arkloop(sys.argv[1], "token") as client:
    client.get_run("parent")
    child = os.fork()
    if child:
        assert os.waitpid(child, 0)[1] == 0
    for _ in range(2):
        client.get_run("parent" if child else "child")
"""
#: A program that leaves a run before its end.
LEAVING = """
from contextlib import closing
from arkloop_client import Arkloop

def first_seq(client: Arkloop, run_id: str) -> int:
    with closing(client.follow(run_id)) as events:
        return next(events)["seq"]

def all_seqs(client: Arkloop, run_id: str) -> list[int]:
    with closing(client.follow(run_id, pings=True)) as events:
        return [event["seq"] for event in events if event is not None]
"""


class Keeping(BaseHTTPRequestHandler):
    """A server that keeps its connections, and notes on which of them a run is asked for."""

    protocol_version = "HTTP/1.1"
    connections: dict[str, list[int]]

    def do_GET(self) -> None:
        port = self.client_address[1]
        self.connections.setdefault(self.path.rpartition("/")[2], []).append(port)
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def keeping_server() -> Iterator[tuple[str, dict[str, list[int]]]]:
    """Yield the address of a server, and the ports from which each run is asked for."""
    connections: dict[str, list[int]] = {}
    handler = type("Handler", (Keeping,), {"connections": connections})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", connections
    server.shutdown()
    server.server_close()


def test_a_forked_process_has_connections_of_its_own() -> None:
    """Two processes on one connection would read each other's responses: those of other people."""
    environ = {**os.environ, "PYTHONPATH": str(ROOT / "clients" / "python")}
    with keeping_server() as (url, connections):
        command = [sys.executable, "-c", FORKING, url]
        done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60)

    assert 0 == done.returncode, done.stderr
    [parent], [child] = set(connections["parent"]), set(connections["child"])
    assert parent != child
    assert {"parent": 3, "child": 2} == {run: len(used) for run, used in connections.items()}


@pytest.mark.parametrize("proxy", ["http://127.0.0.1:PORT", "socks5://127.0.0.1:PORT"])
def test_requests_to_this_machine_use_no_proxy(monkeypatch: pytest.MonkeyPatch, proxy: str) -> None:
    """A proxy of the environment would look for the service on its own machine."""
    for name in ("HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, proxy.replace("PORT", str(closed_port())))
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)

    with keeping_server() as (url, _), Arkloop(url, "token", patience=0) as client:
        assert not client.get_run("run")  # {}


def _followed(url: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Follow a run with a patience of a second, and return its events."""
    monkeypatch.setattr(arkloop_client.client, "SILENCE_SECONDS", 0.2)
    with Arkloop(url, "token", patience=1, first_pause=0.01) as client:
        return [event["type"] for event in client.follow("run")]


def test_a_stream_without_a_body_is_no_contact(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy that buffers passes the headers on alone: the error says so, instead of silence."""
    with played_streams(*[b""] * 7, END) as url:
        with pytest.raises(httpx.ReadTimeout) as error:
            _followed(url, monkeypatch)

    what = f"{url}/v1/runs/run/events sent headers, but no body for 0.2 s"
    assert f"{what}: a proxy on the way may buffer it." == str(error.value)


def test_a_stream_with_a_comment_is_contact(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that waits for a person has no events, for longer than the patience lasts."""
    with played_streams(*[COMMENT] * 7, END) as url:
        assert ["run.completed"] == _followed(url, monkeypatch)


def test_a_checker_of_types_knows_that_follow_can_be_closed(tmp_path: Path) -> None:
    """A caller who leaves a run closes its stream at once: an iterator alone has no `close`."""
    (tmp_path / "program.py").write_text(LEAVING)
    environ = {**os.environ, "PYTHONPATH": str(ROOT / "clients" / "python")}
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", "program.py"]
    done = subprocess.run(
        command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=300
    )

    assert 0 == done.returncode, done.stdout
