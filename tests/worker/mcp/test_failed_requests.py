"""Requests over HTTP that get no response, beside calls in progress in the same session."""

import asyncio
import contextlib
import gzip
import json
import socket
import threading
from collections.abc import AsyncIterator, Callable

import httpx2
import mcp_types as types
import pytest

from arkloop.shared.security import egress
from arkloop.shared.security.egress import Policy
from arkloop.worker.mcp import MAY_BE_DONE, McpFailed, failed_requests, sessions
from arkloop.worker.mcp.open_calls import OpenCall
from arkloop.worker.mcp.results import text_of
from arkloop.worker.mcp.sessions import Rules, Session
from tests.worker.mcp.lying_mcp_server import Lying, lying
from tests.worker.mcp.sdk_server import server_at

LOST = f"{failed_requests.LOST}{MAY_BE_DONE}"


@contextlib.asynccontextmanager
async def session_at(url: str) -> AsyncIterator[Session]:
    session = Session(server_at(url), Rules(Policy.of(["127.0.0.0/8"]), stdio=False))
    try:
        yield session
    finally:
        await session.close()


async def called(session: Session, **arguments: str) -> str:
    """Call the server's tool, and return its text or why it failed."""
    call = OpenCall(20, 20, lambda fields: None)
    try:
        [tool] = await session.tools()
        result = await session.call("lie", arguments, tool.hash, {}, call, None)
    except McpFailed as failed:
        return str(failed)
    assert isinstance(result, types.CallToolResult)
    return text_of(result)


def done(handler: Lying) -> None:
    handler.result(handler.message, {"content": [{"type": "text", "text": "done"}]})


def test_many_slow_calls_are_made_at_once() -> None:
    """None has to wait for a connection of another, and none fails because of the others."""
    together = threading.Barrier(40)

    def on_call(handler: Lying) -> None:
        together.wait(30)
        done(handler)

    async def calls(url: str) -> list[str]:
        async with session_at(url) as session:
            return await asyncio.gather(*(called(session) for _ in range(40)))

    with lying(on_call) as (url, _):
        assert ["done"] * 40 == asyncio.run(calls(url))


def test_calls_beyond_the_limit_of_a_session_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit is of calls, so a list of tools or a cancellation never has to wait for them."""
    monkeypatch.setattr(sessions, "MAX_CALLS", 2)
    counting, running, most = threading.Lock(), 0, 0
    are_two = threading.Event()

    def on_call(handler: Lying) -> None:
        nonlocal running, most
        with counting:
            running += 1
            most = max(most, running)
            if most == 2:
                are_two.set()
        are_two.wait(30)
        threading.Event().wait(0.05)  # for a third one, were there any
        with counting:
            running -= 1
        done(handler)

    async def calls(url: str) -> list[str]:
        async with session_at(url) as session:
            return await asyncio.gather(*(called(session) for _ in range(6)))

    with lying(on_call) as (url, _):
        assert ["done"] * 6 == asyncio.run(calls(url))
    assert 2 == most


def _hang_up(handler: Lying) -> None:
    handler.close_connection = True


def _break_off(handler: Lying) -> None:
    handler.send_response(200)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", "100")
    handler.end_headers()
    handler.wfile.write(b'{"jsonrpc":')
    handler.close_connection = True


def _compress(handler: Lying) -> None:
    handler.send(200, gzip.compress(b"{}"), **{"Content-Encoding": "gzip"})


def _refuse_connections(handler: Lying) -> None:
    handler.server.socket.shutdown(socket.SHUT_RDWR)
    result = {"content": [{"type": "text", "text": "done"}]}
    body = json.dumps({"jsonrpc": "2.0", "id": handler.message["id"], "result": result}).encode()
    # The client has to know that this connection ends: it could make its next call on it before.
    handler.send(200, body, **{"Content-Type": "application/json", "Connection": "close"})


@pytest.mark.parametrize(
    ("failure", "expected"),
    [
        (_hang_up, [LOST]),
        (_break_off, [LOST]),
        (_compress, [f"{failed_requests.COMPRESSED}{MAY_BE_DONE}"]),
        # The call after it needs a new connection.
        (_refuse_connections, ["done", failed_requests.NOT_CONNECTED]),
    ],
)
def test_a_request_without_a_response_fails_alone(
    failure: Callable[[Lying], None], expected: list[str]
) -> None:
    """A call in progress ends as it would have without it, and says what is known of the other."""
    began, released = threading.Event(), threading.Event()

    def on_call(handler: Lying) -> None:
        if handler.message["params"]["arguments"]:
            failure(handler)
            handler.close_connection = True
        else:
            began.set()
            released.wait(20)
            done(handler)

    async def calls(url: str) -> list[str]:
        async with session_at(url) as session:
            slow = asyncio.create_task(called(session))
            await asyncio.to_thread(began.wait, 20)
            others = [await called(session, what="fails") for _ in expected]
            released.set()
            return [await slow, *others]

    with lying(on_call) as (url, _):
        assert ["done", *expected] == asyncio.run(calls(url))


REQUEST = httpx2.Request("POST", "https://mcp.example.com/mcp", json={"method": "tools/call"})
TOKEN = httpx2.Request("POST", "https://login.example.com/token")


@pytest.mark.parametrize(
    ("error", "message", "may_be_done"),
    [
        (httpx2.ConnectError("no", request=REQUEST), failed_requests.NOT_CONNECTED, False),
        (httpx2.ConnectTimeout("no", request=REQUEST), "did not respond in time", False),
        (egress.Refused("Not allowed."), "Not allowed.", False),
        (httpx2.ReadTimeout("no", request=REQUEST), "did not respond in time", True),
        (httpx2.ReadError("no", request=REQUEST), failed_requests.LOST, True),
        (OSError("no"), failed_requests.LOST, True),
        (httpx2.ReadError("no", request=TOKEN), failed_requests.NOT_AUTHORIZED, False),
    ],
)
def test_a_failure_says_whether_the_call_may_have_been_made(
    error: Exception, message: str, may_be_done: bool
) -> None:
    """It was not if the server was not connected to, or if its authorization failed before."""
    made = failed_requests.response_to(REQUEST, error).json()["error"]

    assert message in made["message"]
    assert may_be_done is failed_requests.may_be_done(made["data"])
    assert failed_requests.may_be_done({"mark": "a server's", "may_be_done": True}) is None
