"""Responses that are parked while they have nothing to send, behind a real gunicorn."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from arkloop.cli.dev.embedded_server import free_port
from tests.api.http.parking_app import LONG
from tests.waiting import eventually
from tests.web_server import INHERITED, ROOT

pytestmark = pytest.mark.processes

ALL_ENDED = ["generator", "closed"]


class Server:
    """A gunicorn with the application of `parking_app`."""

    def __init__(self, port: int, process: subprocess.Popen[bytes]) -> None:
        self.port = port
        self.process = process

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)

    def ask(self, path: str) -> Any:
        with closing(self.connect()) as connection:
            connection.request("GET", path)
            return json.loads(connection.getresponse().read())

    def state(self) -> Any:
        return self.ask("/state")

    def is_up(self) -> bool:
        try:
            return bool(self.state())
        except OSError:
            return False


@contextmanager
def started(folder: Path) -> Iterator[Server]:
    port = free_port()
    command = [sys.executable, "-m", "gunicorn", "tests.api.http.parking_app:app"]
    command += ["--worker-class", "arkloop.api.http.web_worker.WebWorker"]
    command += ["--bind", f"127.0.0.1:{port}", "--no-control-socket", "--keep-alive", "30"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=ROOT, env={**INHERITED, "PYTHONPATH": str(ROOT)}, stderr=log
        )
        try:
            server = Server(port, process)
            eventually(server.is_up)
            yield server
        finally:
            process.terminate()
            process.wait(60)


@pytest.fixture(scope="module")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with started(tmp_path_factory.mktemp("parking")) as server:
        yield server


@pytest.fixture
def server(shared_server: Server) -> Server:
    """Return a server that has no streams."""
    shared_server.ask("/forget")
    return shared_server


@contextmanager
def begun(
    server: Server, query: str = ""
) -> Iterator[tuple[http.client.HTTPConnection, http.client.HTTPResponse]]:
    """Open a stream, read its beginning, and give its connection and response once it is parked."""
    with closing(server.connect()) as connection:
        connection.request("GET", f"/stream?{query}")
        response = connection.getresponse()
        assert b"begin\n" == response.readline()
        eventually(lambda: server.state()["parked"] == 1)
        yield connection, response


def opened(server: Server, request: bytes) -> socket.socket:
    """Return the connection of a request whose response is parked."""
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=60)
    connection.sendall(request)
    eventually(lambda: server.state()["parked"] == 1)
    return connection


def all_of(connection: socket.socket) -> bytes:
    return b"".join(iter(lambda: connection.recv(65536), b""))


def test_a_response_ends_after_it_was_parked(server: Server) -> None:
    """All of it arrives, however often it is parked, and the connection serves what comes next."""
    with begun(server, "times=2") as (connection, response):
        server.ask("/wake")
        assert b"more\n" == response.readline()
        eventually(lambda: server.state()["parked"] == 1)
        server.ask("/wake")

        assert b"more\n" == response.read()
        eventually(lambda: server.state()["ended"] == ALL_ENDED)
        port = connection.sock.getsockname()[1]
        connection.request("GET", "/state")
        assert 200 == connection.getresponse().status
        assert port == connection.sock.getsockname()[1]


def test_something_is_sent_while_a_response_stays_parked(server: Server) -> None:
    """A ping, for example."""
    with begun(server) as (_, response):
        assert [True] == server.ask("/send")
        assert b"sent\n" == response.readline()
        assert 1 == server.state()["parked"]
        server.ask("/wake")
        assert b"more\n" == response.read()


def test_a_client_that_takes_nothing_loses_nothing(server: Server) -> None:
    """What its connection has no room for is sent when the response runs again."""
    with begun(server) as (_, response):
        whole = server.ask("/fill")
        got = response.read()

    # The last one was sent in part, or not at all.
    assert got in (LONG * whole + b"more\n", LONG * (whole + 1) + b"more\n")


def test_an_unread_body_is_no_request(server: Server) -> None:
    """The connection is closed, else a proxy's next request would be answered by a client's."""
    head = b"GET /stream HTTP/1.1\r\nHost: a\r\nContent-Length: 31\r\n\r\n"
    with opened(server, head + b"GET /state HTTP/1.1\r\nHost: a\r\n\r\n") as connection:
        server.ask("/wake")
        got = all_of(connection)

    assert got.endswith(b"5\r\nmore\n\r\n0\r\n\r\n")
    assert 1 == got.count(b"HTTP/1.1")


def test_a_request_to_close_is_obeyed(server: Server) -> None:
    """`Connection: close` counts at the end of a response that was parked, too."""
    head = b"GET /stream HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    with opened(server, head) as connection:
        server.ask("/wake")
        assert all_of(connection).endswith(b"5\r\nmore\n\r\n0\r\n\r\n")


@pytest.mark.parametrize("header", [b"", b"Connection: keep-alive\r\n"])
def test_a_client_of_http_1_0_gets_no_chunks(server: Server, header: bytes) -> None:
    """The end of the connection is that of the response."""
    with opened(server, b"GET /stream HTTP/1.0\r\n" + header + b"\r\n") as connection:
        server.ask("/wake")
        assert all_of(connection).endswith(b"\r\n\r\nbegin\nmore\n")


def test_an_end_that_fails_ends_the_connection(server: Server) -> None:
    """What is left to do at the end of a body may fail."""
    with begun(server, "end_fails=1") as (connection, response):
        server.ask("/wake")
        assert b"more\n" == response.read()
        connection.request("GET", "/state")
        assert 200 == connection.getresponse().status


def test_a_client_that_has_left_ends_its_response(server: Server) -> None:
    with begun(server, "long=100"):
        pass

    server.ask("/wake")

    eventually(lambda: server.state()["ended"] == ALL_ENDED)


def test_a_response_that_fails_has_no_orderly_end(server: Server) -> None:
    with begun(server, "fails=1") as (_, response):
        server.ask("/wake")

        with pytest.raises(http.client.IncompleteRead):
            response.read()
    assert ALL_ENDED == server.state()["ended"]


def test_a_worker_that_stops_waits_for_parked_responses(tmp_path: Path) -> None:
    """Nothing is cut off within gunicorn's grace period."""
    with started(tmp_path) as server, begun(server, "wake_after=6") as (_, response):
        os.kill(server.process.pid, signal.SIGTERM)

        assert b"more\n" == response.read()
        assert 0 == server.process.wait(60)
