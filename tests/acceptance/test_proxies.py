"""Streams through proxies, by clients that others wrote: an early end is an error to them."""

import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import psutil
import pytest

from arkloop.cli.dev.embedded_server import free_port
from tests.caller import Caller, client, parsed, until_broken_off
from tests.closed_port import closed_port
from tests.proxies import COMMANDS, caddy_in_turn, cell_proxy, proxy
from tests.system import System
from tests.waiting import eventually
from tests.web_server import ROOT, WebServer, answers

pytestmark = pytest.mark.proxies

FOLLOWER = ROOT / "tests" / "peers" / "follow.mjs"
MODULES = ROOT / ".cache" / "peers" / "node_modules"
PIECES = {"count": 60, "delay_ms": 50}


@pytest.fixture(params=COMMANDS)
def proxied(
    request: pytest.FixtureRequest, system: System, user: Caller, tmp_path: Path
) -> Iterator[Caller]:
    """The user behind a proxy of each kind."""
    ports = [server.settings.port for server in system.web]
    with proxy(request.param, tmp_path, *ports) as url:
        yield user.at(url)


def test_a_revoked_key_breaks_the_stream_off(user: Caller, proxied: Caller) -> None:
    """Through the proxy, too, the client sees an error and not the end of the run."""
    run_id = user.run({"tool": "ask_user", "args": {"question": "?"}})
    cursor = user.until(run_id, "status", "waiting_for_input")["last_seq"]
    key_id, key = user.api_key()
    with proxied.at(token=key).stream(run_id, after_seq=cursor) as answer:
        assert 204 == user.http.delete(f"/v1/api-keys/{key_id}").status_code
        assert [] == until_broken_off(answer)
    user.cancel(run_id)


def test_a_stream_to_the_end_of_the_run_ends_in_order(user: Caller, proxied: Caller) -> None:
    """A stream that is read to the run's end leaves a connection that serves the next request."""
    run_id = user.run({"count": 10, "delay_ms": 20})
    with proxied.stream(run_id) as answer:
        assert "run.completed" == list(parsed(answer))[-1]["type"]
    assert 200 == proxied.http.get(f"/v1/runs/{run_id}").status_code


@pytest.mark.parametrize("name", COMMANDS)
def test_a_ticket_is_in_no_log_of_a_proxy(
    system: System, user: Caller, tmp_path: Path, name: str
) -> None:
    """Neither with a stream whose server is killed, nor with a request that finds no server."""
    with ExitStack() as servers:
        first = servers.enter_context(system.one_more_web_server())
        with proxy(name, tmp_path, first.settings.port, closed_port()) as url:
            run_id = user.run({"tool": "ask_user", "args": {"question": "?"}})
            user.until(run_id, "status", "waiting_for_input")
            address = f"{url}/v1/runs/{run_id}/events"
            query = {"ticket": user.ticket(run_id)}
            with httpx.stream("GET", address, params=query, timeout=60) as answer:
                assert 200 == answer.status_code
                for worker in psutil.Process(first.pid).children():
                    worker.kill()
                with pytest.raises(httpx.RemoteProtocolError):
                    answer.read()
            servers.close()
            assert 500 <= httpx.get(address, params=query, timeout=60).status_code
            user.cancel(run_id)

    log = (tmp_path / "log").read_text()
    assert query["ticket"] not in log
    assert name != "caddy" or f"/v1/runs/{run_id}/events" in log, "nothing was logged"


@pytest.mark.parametrize("name", [*COMMANDS, "cells"])
def test_a_client_has_the_address_that_a_proxy_in_front_has_named(
    system: System, user: Caller, tmp_path: Path, name: str
) -> None:
    """TLS ends at that one. What the client itself has written stands before it."""
    headers = {"X-Forwarded-For": "198.51.100.1, 192.0.2.7"}
    with ExitStack() as stack:
        trusted = system.one_more_web_server(ARKLOOP_TRUSTED_PROXIES="127.0.0.0/8")
        ports = (stack.enter_context(trusted).settings.port, closed_port())
        if name == "cells":
            cells = cell_proxy(tmp_path, ports, {"127.0.0.1": "cell-1"})
            url = stack.enter_context(cells).url
        else:
            url = stack.enter_context(proxy(name, tmp_path, *ports))
        body = {"name": "by proxies"}
        made = user.at(url).http.post("/v1/api-keys", json=body, headers=headers).json()

    entries = user.http.get("/v1/audit-logs").json()
    [entry] = [one for one in entries if one["target"]["id"] == made["id"]]
    assert "192.0.2.7" == entry["ip"]


@pytest.mark.parametrize("server", ["web/first", "cell-2/web-1"])
def test_haproxy_uses_a_server_that_allows_few_host_names(
    system: System, tmp_path: Path, server: str
) -> None:
    """A server with `ARKLOOP_ALLOWED_HOSTS` passes the health check of each configuration."""
    port, other, log = free_port(), system.web[0].settings.port, tmp_path / "log"
    with ExitStack() as stack:
        if server.startswith("cell-"):
            stack.enter_context(cell_proxy(tmp_path, (other, port), {"127.0.0.1": "cell-1"}))
        else:
            stack.enter_context(proxy("haproxy", tmp_path, port, other))
        eventually(lambda: f"{server} is DOWN" in log.read_text())

        changes = {"ARKLOOP_PORT": str(port), "ARKLOOP_ALLOWED_HOSTS": "runs.example.com"}
        stack.enter_context(system.one_more_web_server(**changes))
        eventually(lambda: f"{server} is UP" in log.read_text())


def test_no_client_takes_servers_out_of_caddy(system: System, tmp_path: Path) -> None:
    """Malformed bodies, which Caddy counts as failures of the server, keep no request waiting."""
    head = b"POST /v1/runs HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n"
    with caddy_in_turn(tmp_path, *(server.settings.port for server in system.web)) as url:
        port = int(url.rpartition(":")[2])
        found: list[bytes] = []
        while found.count(b"HTTP/1.1 502 ") < 4:
            assert len(found) < 100
            with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
                connection.sendall(head + b"ZZZ\r\n")
                found.append(connection.recv(13))
        # A server may respond before Caddy has read the body: the request has no key.
        assert {b"HTTP/1.1 502 "} <= {*found} <= {b"HTTP/1.1 502 ", b"HTTP/1.1 401 "}
        assert [True] * 4 == [answers(url) for _ in range(4)]


@pytest.mark.parametrize("second", ["refuses", "is silent"])
def test_caddy_passes_over_a_server_that_accepts_no_connections(
    system: System, user: Caller, tmp_path: Path, second: str
) -> None:
    """Requests go to the other one, even where that has streams and this one has none."""
    with ExitStack() as stack:
        port = closed_port()
        if second == "is silent":
            listening = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
            port = listening.getsockname()[1]
            # One more than the kernel keeps: it ignores all that follow.
            stack.enter_context(socket.create_connection(("127.0.0.1", port)))
        url = stack.enter_context(caddy_in_turn(tmp_path, system.web[0].settings.port, port))
        run_id = user.run({"tool": "ask_user", "args": {"question": "?"}})
        stack.enter_context(user.at(url).stream(run_id))

        assert answers(url) and answers(url)
        user.cancel(run_id)


@pytest.mark.parametrize("client", ["fetch-event-source", "eventsource"])
@pytest.mark.parametrize("name", COMMANDS)
def test_a_client_goes_on_at_another_server_when_its_own_stops(
    system: System, user: Caller, tmp_path: Path, name: str, client: str
) -> None:
    """It misses and repeats nothing, though its stream ended in the middle of the run."""
    command = follower(client)
    with (
        system.one_more_web_server() as first,
        proxy(name, tmp_path, first.settings.port, system.web[0].settings.port) as url,
    ):
        # It waits in the middle, for as long as the client takes to start.
        run_id = user.run(PIECES, {"tool": "ask_user", "args": {"question": "?"}}, PIECES)
        shown = user.until(run_id, "status", "waiting_for_input")["last_seq"]
        command += [f"{url}/v1/runs/{run_id}/events", user.token]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            seen = [int(process.stdout.readline()) for _ in range(shown)]
            assert serves(first)
            os.kill(first.pid, signal.SIGTERM)
            assert 200 == user.answer(run_id, "yes").status_code
            seen += [int(line) for line in process.stdout]
            status = process.wait(60)

    assert 0 == status, "the client took the end of its stream for the end of the run"
    assert list(range(1, user.get_run(run_id)["last_seq"] + 1)) == seen


def serves(server: WebServer) -> bool:
    """Return whether a client is connected to the server."""
    connections = [
        connection
        for worker in psutil.Process(server.pid).children()
        for connection in worker.net_connections("tcp")
    ]
    return any(
        one.laddr.port == server.settings.port and one.status == psutil.CONN_ESTABLISHED
        for one in connections
    )


def follower(client: str) -> list[str]:
    """Return the command that follows a run by this client; skips without it, or fails in CI."""
    if not (MODULES / "@microsoft" / "fetch-event-source").exists() or not shutil.which("node"):
        reason = f"{client} is not installed: run `make test-proxies`"
        if os.environ.get("NEED_PEERS") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    return ["node", str(FOLLOWER), str(MODULES), client]


def test_a_cell_whose_names_are_gone_stops_no_other(system: System, tmp_path: Path) -> None:
    """The proxy of cells starts, and restarts, while nameservers do not know one of the cells."""
    hosts = {"one.test": "cell-1", "two.test": "cell-2"}
    with cell_proxy(tmp_path, [system.web[0].settings.port], hosts) as proxied:
        assert "cell-2-web-1:8080" in (tmp_path / "proxy.conf").read_text()
        assert 200 == _health(proxied.url, "one.test")
        assert 503 == _health(proxied.url, "two.test")


def _health(url: str, host: str) -> int:
    return client(url).get("/healthz", headers={"Host": host}).status_code
