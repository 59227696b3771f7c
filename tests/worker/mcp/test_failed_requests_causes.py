"""Causes of failed connections: what an admin and the operator learn of them."""

import asyncio
import json
import logging
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import httpx2
import pytest

from arkloop.shared.catalog import mcp_configs
from arkloop.shared.config import Settings
from arkloop.shared.security.egress import Policy
from arkloop.shared.storage.connections import Connections
from arkloop.worker.mcp import McpFailed, checked_http, discovery, failed_requests, sessions
from arkloop.worker.mcp.checked_http import CheckedClient
from arkloop.worker.mcp.client import McpClient
from arkloop.worker.mcp.open_calls import OpenCall
from arkloop.worker.mcp.server import Server
from arkloop.worker.mcp.sessions import Rules, Session
from tests.clients import User
from tests.closed_port import closed_port
from tests.no_descriptor import no_descriptor_left
from tests.worker.mcp.lying_mcp_server import Lying, lying
from tests.worker.mcp.oauth_servers import CALLBACK, waited_for
from tests.worker.mcp.sdk_server import server_at

REFUSED = "ConnectionRefusedError: Connection refused"
POLICY = Policy.of(["127.0.0.0/8"])


@pytest.fixture(scope="module")
def settings(settings: Settings) -> Settings:
    return replace(settings, allowed_networks=("127.0.0.0/8",), mcp_stdio=True)


@pytest.mark.processes
def test_the_log_says_which_server_it_is_and_what_the_system_said(
    connections: Connections,
    alice: User,
    http_client: McpClient,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The line has name, host, port and cause, and no other part of the address."""
    port = closed_port()
    with connections.transaction() as tx:
        made = mcp_configs.create(
            tx,
            alice.org_id,
            name="crm",
            transport="streamable_http",
            url=f"http://127.0.0.1:{port}/s3cret?key=s3cret",
        )
    with caplog.at_level(logging.WARNING, discovery.__name__):
        discovery.discover(connections, http_client, made.id)

    [record] = [record for record in caplog.records if record.name == discovery.__name__]
    assert record.getMessage() == (
        f"MCP tools/list failed for {made.id}, crm at 127.0.0.1:{port}:"
        f" {failed_requests.NOT_CONNECTED} ({REFUSED})"
    )
    assert ["127.0.0.1", port, REFUSED] == [
        vars(record)[name] for name in ("host", "port", "cause")
    ]
    assert "s3cret" not in str(vars(record))
    with connections.reading() as sql:
        found = mcp_configs.find(sql, alice.org_id, made.id)
    assert failed_requests.NOT_CONNECTED == found.discovery_error


@pytest.mark.processes
def test_the_log_has_no_address_of_a_program(
    connections: Connections,
    alice: User,
    http_client: McpClient,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A server over stdio is named without one."""
    with connections.transaction() as tx:
        made = mcp_configs.create(
            tx, alice.org_id, name="local", transport="stdio", command=["no-such-program"]
        )
    with caplog.at_level(logging.WARNING, discovery.__name__):
        discovery.discover(connections, http_client, made.id)

    [record] = [record for record in caplog.records if record.name == discovery.__name__]
    assert record.getMessage().startswith(f"MCP tools/list failed for {made.id}, local: ")


@asynccontextmanager
async def session_at(at: str | Server) -> AsyncIterator[Session]:
    server = at if isinstance(at, Server) else server_at(at)
    session = Session(server, Rules(POLICY, stdio=False))
    try:
        yield session
    finally:
        await session.close()


async def failure_of(session: Session) -> McpFailed:
    """Ask the server for its tools, and return why that failed."""
    with pytest.raises(McpFailed) as failed:
        await session.tools(fresh=True)
    return failed.value


@pytest.mark.parametrize(
    ("number", "words", "message"),
    [
        (socket.EAI_NONAME, "Name or service not known", failed_requests.NO_HOST),
        (socket.EAI_AGAIN, "Temporary failure", failed_requests.NOT_CONNECTED),
    ],
)
def test_a_name_without_a_host_is_no_failed_connection(
    monkeypatch: pytest.MonkeyPatch, number: int, words: str, message: str
) -> None:
    """An admin has entered the name, and learns that it is wrong; a resolver may also fail."""

    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(number, words)

    async def failure() -> McpFailed:
        async with session_at("http://nowhere.example/mcp") as session:
            return await failure_of(session)

    monkeypatch.setattr(socket, "getaddrinfo", unknown)

    failed = asyncio.run(failure())

    assert (message, f"gaierror: {words}") == (str(failed), failed.cause)


@pytest.mark.parametrize("refused", ["server/discover", "tools/list"])
def test_a_name_that_the_server_gives_is_not_said_to_be_its_own(
    monkeypatch: pytest.MonkeyPatch, refused: str
) -> None:
    """Its 401 leads to a host that does not exist, when it is connected to or later."""
    lookup = socket.getaddrinfo

    def unknown(host: str, *args: Any, **options: Any) -> Any:
        if host == "auth.nowhere.example":
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return lookup(host, *args, **options)

    def respond(handler: Lying, message: dict[str, Any]) -> None:
        if message.get("method") != refused:
            return Lying.respond(handler, message)
        named = 'Bearer resource_metadata="http://auth.nowhere.example/s3cret"'
        return handler.send(401, b"", **{"WWW-Authenticate": named})

    async def failure(url: str) -> McpFailed:
        oauth = {"client_id": None, "client_secret": None, "redirect_uri": CALLBACK}
        async with session_at(replace(server_at(url), oauth=oauth)) as session:
            return await waited_for(session.oauth, failure_of(session))

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with lying(lambda _: None, respond=respond) as (url, _):
        failed = asyncio.run(failure(url))

    assert failed_requests.NOT_AUTHORIZED == str(failed)
    assert "gaierror: Name or service not known at auth.nowhere.example:80" == failed.cause


def test_a_reply_that_lacks_a_token_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the authorization that failed, not the server that the reply is for."""
    token = httpx2.Request("POST", f"http://127.0.0.1:{closed_port()}/token")

    class Auth(httpx2.Auth):
        def auth_flow(self, request: httpx2.Request) -> Iterator[httpx2.Request]:
            yield token
            yield request

    said: list[str | None] = []

    async def reply() -> None:
        auth: Any = Auth()
        client = CheckedClient({}, POLICY, auth, lambda asked_id, why: said.append(why))
        async with client:
            body = {"jsonrpc": "2.0", "id": 1, "result": {}}
            await client.post("http://127.0.0.1:1/mcp", json=body)

    monkeypatch.setattr(checked_http, "REPEAT_SECONDS", 0.01)
    asyncio.run(reply())

    assert [failed_requests.NOT_AUTHORIZED] == said


def test_a_server_that_does_not_respond_has_timed_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cause is the end of the wait, not how asyncio has ended it."""
    released = threading.Event()

    async def failure(url: str) -> McpFailed:
        async with session_at(url) as session:
            return await failure_of(session)

    def wait(handler: Lying, message: dict[str, Any]) -> None:
        released.wait(20)
        handler.close_connection = True

    monkeypatch.setattr(sessions, "CONNECT_SECONDS", 0.2)
    with lying(lambda _: None, respond=wait) as (url, _):
        try:
            failed = asyncio.run(failure(url))
        finally:
            released.set()

    assert ("The server did not respond in time.", "TimeoutError") == (str(failed), failed.cause)


def test_without_a_descriptor_no_name_is_said_to_have_no_host() -> None:
    """The resolver cannot ask then, and says that the name is not known."""
    error = httpx2.ConnectError("no")
    error.__cause__ = socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    with no_descriptor_left():
        said = failed_requests.reason_of(error)

    assert failed_requests.NOT_CONNECTED == said


def test_a_session_whose_server_has_gone_says_why() -> None:
    """The next list of tools takes a new connection, which is refused."""

    def leave(handler: Lying) -> None:
        handler.server.socket.shutdown(socket.SHUT_RDWR)
        body = {"jsonrpc": "2.0", "id": handler.message["id"], "result": {"content": []}}
        headers = {"Content-Type": "application/json", "Connection": "close"}
        handler.send(200, json.dumps(body).encode(), **headers)

    async def failure(url: str) -> McpFailed:
        async with session_at(url) as session:
            [tool] = await session.tools()
            await session.call("lie", {}, tool.hash, {}, OpenCall(20, 20, lambda _: None), None)
            return await failure_of(session)

    with lying(leave) as (url, _):
        failed = asyncio.run(failure(url))

    assert (failed_requests.NOT_CONNECTED, REFUSED) == (str(failed), failed.cause)
