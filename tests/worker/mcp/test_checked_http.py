"""MCP over HTTP: the official SDK's server, servers that lie, and addresses nobody may ask."""

import gzip
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import anyio
import psutil
import pytest
import trustme

from arkloop.shared.security.egress import Policy
from arkloop.worker.contract.input_requests import HELD_SECONDS
from arkloop.worker.contract.outcomes import CancelRequested
from arkloop.worker.contract.stop_signal import StopSignal
from arkloop.worker.mcp import McpFailed
from arkloop.worker.mcp.checked_http import CheckedClient
from arkloop.worker.mcp.client import CALL_SECONDS, McpClient
from arkloop.worker.mcp.open_calls import MAX_OPEN_SECONDS
from tests.waiting import eventually
from tests.worker.mcp.lying_mcp_server import Lying, lying
from tests.worker.mcp.sdk_server import META, ORG, Sdk, lie_of, server_at

pytestmark = pytest.mark.processes


def test_a_tool_is_called_over_http(call: Callable[..., str]) -> None:
    """A tool is called over HTTP with the headers of its config, and the call's trace context."""
    assert "5" == call("add", a=2, b=3)
    assert "Bearer of-this-server" == call("header", name="Authorization")
    assert "identity" == call("header", name="Accept-Encoding")
    assert META["traceparent"] == call("header", name="traceparent")


def test_a_call_may_be_silent_while_people_are_asked_in_turn() -> None:
    """Five questions of a turn have ten minutes each, or four and the page that a reply needs. A
    turn that gets no replies keeps a session from asking for an hour at most.
    """
    silent_for = CheckedClient({}, Policy()).timeout.read or 0

    assert 5 * (HELD_SECONDS + 10) <= MAX_OPEN_SECONDS <= 3600
    assert MAX_OPEN_SECONDS + CALL_SECONDS < silent_for  # the server has this time after a reply


def test_a_call_is_cancelled_over_http(call: Callable[..., str], sdk: Sdk) -> None:
    """The caller is free, and the tool interrupted, at once: long before its minute is over."""
    stop = StopSignal()
    raised: list[BaseException] = []

    def ask() -> None:
        try:
            call("wait", stop, seconds=60)
        except BaseException as error:
            raised.append(error)

    asking = threading.Thread(target=ask)
    asking.start()
    eventually((sdk.folder / "waiting").exists)
    began = time.monotonic()

    stop.set(CancelRequested())

    asking.join(60)
    eventually((sdk.folder / "cancelled").exists)
    assert time.monotonic() - began < 20
    assert [CancelRequested] == [type(error) for error in raised]


def _json(handler: Lying, body: bytes, **headers: str) -> None:
    handler.send(200, body, **{"Content-Type": "application/json", **headers})


def _redirect(handler: Lying) -> None:
    handler.send(307, b"", Location="/elsewhere")


def _flood(handler: Lying) -> None:
    handler.send_response(200)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", "100000000")
    handler.end_headers()
    _write_on(handler)


def _flood_of_one_event(handler: Lying) -> None:
    handler.send_response(200)
    handler.send_header("Content-Type", "text/event-stream")
    handler.send_header("Content-Length", "100000006")
    handler.end_headers()
    handler.wfile.write(b"data: ")
    _write_on(handler)


def _write_on(handler: Lying) -> None:
    try:
        for _ in range(100):
            handler.wfile.write(b"x" * 1_000_000)
    except OSError:
        pass  # the client has had enough


LIES: dict[str, tuple[Callable[[Lying], None], str]] = {
    "not JSON": (lambda h: _json(h, b"<html>secret page</html>"), "not valid MCP"),
    "no result": (lambda h: _json(h, b'{"jsonrpc": "2.0"}'), "not valid MCP"),
    "a page": (lambda h: h.send(200, b"secret", **{"Content-Type": "text/html"}), "error"),
    "401": (lambda h: h.send(401, b"secret of the proxy"), "HTTP status 401"),
    "500": (lambda h: h.send(500, b"secret trace"), "HTTP status 500"),
    "a redirect": (_redirect, "not followed"),
    "100 MB": (_flood, "too large"),
    "100 MB in one event": (_flood_of_one_event, "error|too large"),
    "a bomb": (
        lambda h: _json(h, gzip.compress(b" " * 50_000_000), **{"Content-Encoding": "gzip"}),
        "compressed although `identity` was requested",
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_lies_fail_the_call_and_nothing_else(http_client: McpClient, lie: str) -> None:
    """The reason is in our own words; the response is not repeated."""
    on_call, reason = LIES[lie]
    with lying(on_call) as (url, paths):
        with pytest.raises(McpFailed, match=reason) as failed:
            lie_of(http_client, url)
        assert "secret" not in str(failed.value)
        assert {"/mcp"} >= {path for path in paths if not path.startswith("GET")}
        assert (pid := http_client.sidecar_pid(ORG)) is not None
        assert psutil.Process(pid).memory_info().rss < 200_000_000


def test_tools_that_are_none_leave_the_others(http_client: McpClient) -> None:
    """They are reported with what is wrong, over HTTP as over stdio."""
    tools = [3, None, [], {"name": "bad", "inputSchema": {"type": ["object", "null"]}}]
    with lying(lambda handler: handler.error(handler.message, "called"), *tools) as (url, _):
        server = server_at(url)
        found = {tool.name: tool for tool in http_client.tools(server)}

        with pytest.raises(McpFailed, match="called"):
            http_client.call(server, "lie", {}, pinned=found["lie"].hash)

    assert ["lie"] == [name for name, tool in found.items() if tool.problem is None]
    assert [f"(number {place} of the list)" for place in (2, 3, 4)] == list(found)[1:4]
    assert "inputSchema.type" in (found["bad"].problem or "")


def test_an_empty_cursor_ends_the_list(http_client: McpClient) -> None:
    """Some servers write one on their last page."""

    def result(handler: Lying, message: dict[str, Any], result: dict[str, Any]) -> None:
        Lying.result(handler, message, {**result, "nextCursor": ""})

    with lying(lambda handler: None, result=result) as (url, _):
        assert ["lie"] == [tool.name for tool in http_client.tools(server_at(url))]


def test_the_value_of_a_header_is_not_in_an_error(http_client: McpClient) -> None:
    """Some servers repeat what they do not like, and the model would read it."""

    def complain(handler: Lying) -> None:
        sent = handler.headers
        why = f"{sent['Authorization']} for {sent['X-Team']}, {sent['Authorization'][7:]}"
        handler.error(handler.message, why)

    headers = {"Authorization": "Bearer canary-5f1b0c", "X-Team": "a"}
    with lying(complain) as (url, _), pytest.raises(McpFailed, match=r"\[header\] for a, \[he"):
        lie_of(http_client, url, server_at(url, **headers))


def test_a_server_over_tls_needs_a_certificate_that_is_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A certificate must be for the name and by an authority of the machine or of
    `SSL_CERT_FILE`.
    """
    authority, context = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    authority.cert_pem.write_to_path(str(tmp_path / "authority.pem"))

    def ask(url: str) -> str:
        client = McpClient(allowed_networks=["127.0.0.0/8"])
        try:
            return lie_of(client, url)
        finally:
            client.close()

    with lying(lambda h: h.result(h.message, {"content": []}), tls=context) as (url, _):
        monkeypatch.delenv("SSL_CERT_FILE", raising=False)
        with pytest.raises(McpFailed, match="certificate is not trusted"):
            ask(url)
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem"))
        assert "" == ask(url)
        with pytest.raises(McpFailed, match="certificate is for another host"):
            ask(url.replace("localhost", "127.0.0.1"))


def test_a_server_that_is_silent_is_given_up(http_client: McpClient) -> None:
    """When the time is over."""
    released = threading.Event()
    with lying(lambda _: cast(None, released.wait(60))) as (url, _paths):
        began = time.monotonic()
        with pytest.raises(McpFailed, match=r"did not respond within 0\.3 s"):
            lie_of(http_client, url, seconds=0.3)
        assert time.monotonic() - began < 50
        released.set()


@pytest.fixture
def canary() -> Iterator[tuple[int, list[Any]]]:
    """A listener on loopback that nobody may reach: its port, and who did."""
    reached: list[Any] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.05)
        done = threading.Event()

        def accept() -> None:
            while not done.is_set():
                try:
                    connection, address = listener.accept()
                except TimeoutError:
                    continue
                reached.append(address)
                connection.close()

        thread = threading.Thread(target=accept)
        thread.start()
        yield listener.getsockname()[1], reached
        done.set()
        thread.join()


def test_addresses_that_are_dead_share_the_time_to_connect(
    canary: tuple[int, list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many they are, the one behind them is reached within it."""
    port, reached = canary
    dead = ["127.0.0.7", "127.0.0.8", "127.0.0.9"]
    found = [
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0))
        for address in (*dead, "127.0.0.1")
    ]
    backend = CheckedClient({}, Policy.of(["127.0.0.0/8"])).transport.backend

    async def connect() -> None:
        stream = await backend.connect_tcp("four.example", port, timeout=6)
        await stream.aclose()

    with ExitStack() as full:
        for address in dead:
            listener = full.enter_context(socket.create_server((address, port), backlog=0))
            full.enter_context(socket.create_connection(listener.getsockname()))
        monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: found)
        began = time.monotonic()
        anyio.run(connect)

    assert time.monotonic() - began < 15  # the dead ones would take 18, each with a time of its own
    eventually(lambda: reached)


def test_a_cancelled_connection_is_given_up_at_once() -> None:
    """A cancelled connection frees its thread and its socket at once, before the time limit."""
    backend = CheckedClient({}, Policy.of(["127.0.0.0/8"])).transport.backend
    before = set(threading.enumerate())

    async def connect(port: int) -> None:
        with anyio.move_on_after(0.2):
            await backend.connect_tcp("127.0.0.1", port, timeout=30)

    with (
        socket.create_server(("127.0.0.1", 0), backlog=0) as full,
        socket.create_connection(full.getsockname()),
    ):
        anyio.run(connect, full.getsockname()[1])
        eventually(lambda: set(threading.enumerate()) <= before)

    assert 0 == backend.connections_made


@pytest.fixture(scope="module")
def strict() -> Iterator[McpClient]:
    """The operator allows a network that is none of this machine's."""
    made = McpClient(allowed_networks=["10.254.0.0/16"])
    yield made
    made.close()


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "0.0.0.0", "2130706433", "127.1", "[::1]"],
)
def test_addresses_of_this_machine_are_not_asked(
    strict: McpClient, canary: tuple[int, list[Any]], host: str
) -> None:
    """No connection is made to addresses of this machine."""
    port, reached = canary

    with pytest.raises(McpFailed, match="address"):
        strict.tools(server_at(f"http://{host}:{port}/mcp"))

    assert [] == reached


def test_a_name_is_judged_by_what_it_leads_to(
    strict: McpClient, canary: tuple[int, list[Any]]
) -> None:
    """It is resolved where the connection is made, and refused there."""
    port, reached = canary
    name = socket.gethostname()

    # Where the machine does not know its own name, there is nothing to refuse.
    with pytest.raises(McpFailed, match="not on the public network|no connection"):
        strict.tools(server_at(f"http://{name}:{port}/mcp"))

    assert [] == reached
