"""The stream of what a server sends outside of its calls, opened again where it breaks."""

import asyncio
import json
import queue
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import httpx2
import pytest

from arkloop.shared.security.egress import Policy
from arkloop.worker.mcp import McpFailed, stream_pauses
from arkloop.worker.mcp.bounded_messages import STREAM_OF
from arkloop.worker.mcp.checked_http import CheckedClient
from arkloop.worker.mcp.open_calls import OpenCall
from arkloop.worker.mcp.results import text_of
from arkloop.worker.mcp.sessions import Rules, Session
from tests.worker.mcp.lying_mcp_server import Lying, lying
from tests.worker.mcp.sdk_server import server_at

pytestmark = pytest.mark.processes

POLICY = Policy.of(["127.0.0.0/8"])
#: The response to a GET.
Get = Callable[[Lying], None]


def begin(handler: Lying, text: str = "retry: 10\ndata:\n\n") -> None:
    """Open the stream, and let the client wait a moment only before it opens another."""
    handler.send_response(200)
    handler.send_header("Content-Type", "text/event-stream")
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    say(handler, text)


def say(handler: Lying, text: str) -> None:
    handler.wfile.write(f"{len(text):x}\r\n{text}\r\n".encode())
    handler.wfile.flush()


def break_off(handler: Lying) -> None:
    """End the connection in the middle of the stream, as proxies do with one that is silent."""
    begin(handler)
    handler.close_connection = True


def hang_up(handler: Lying) -> None:
    handler.close_connection = True


def fail(handler: Lying) -> None:
    handler.send(502, b"Bad Gateway")


def refuse(handler: Lying, status: int = 404) -> None:
    handler.send(status, b"")


@contextmanager
def asking(
    *gets: Get, opens: Callable[[Lying], bool] = lambda handler: True, **more: Any
) -> Iterator[str]:
    """Run a server that responds to GETs as given, and asks in the stream of the one after them.

    That is the first one that it `opens`; others have no access.
    """
    streams: queue.Queue[Lying] = queue.Queue()
    left, done = list(gets), threading.Event()

    def get(handler: Lying) -> None:
        if handler.path != "/mcp":
            refuse(handler)  # an authorization server's metadata
            return
        if left:
            left.pop(0)(handler)
            return
        if not opens(handler):
            refuse(handler, 401)
            return
        begin(handler)
        streams.put(handler)
        done.wait(60)

    def on_call(handler: Lying) -> None:
        stream = streams.get(timeout=10)
        say(stream, f"data: {json.dumps({'jsonrpc': '2.0', **handler.question('seats')})}\n\n")
        replied = handler.replies["seats"].get(timeout=10)["result"]["content"]["n"]
        handler.result(handler.message, {"content": [{"type": "text", "text": replied}]})

    about: dict[str, Any] = {
        "session_id": "s",
        "do_GET": get,
        "do_DELETE": lambda handler: handler.send(200, b""),
        "replies": defaultdict(queue.Queue),
    }
    with lying(on_call, **about, **more) as (url, _):
        try:
            yield url
        finally:
            done.set()


async def booked(session: Session) -> str:
    """Call the tool, reply to what it asks, and return its result."""
    call = OpenCall(20.0, 20.0, lambda fields: None)

    async def work() -> dict[str, Any]:
        [tool] = await session.tools()
        return {"text": text_of(await session.call("lie", {}, tool.hash, {}, call, None))}

    oauth = session.oauth
    call.begin(work() if oauth is None else oauth.keepers.during(call, lambda: None, work()))
    try:
        [asked] = (await call.outcome())["required"]["asked"]
        assert "seats" == asked["prompt"]
        call.continue_with({"action": "accept", "content": {"n": "3"}}, lambda fields: None)
        return str((await call.outcome())["text"])
    finally:
        call.cancel()
        await session.close()


#: Refusals that end: of a token, or while the server has not noticed that the stream is broken.
REFUSALS = [partial(refuse, status=status) for status in (401, 403, 408, 409, 429)]


@pytest.mark.parametrize("later", [break_off, hang_up, fail, *REFUSALS])
def test_a_server_asks_in_its_stream_however_often_that_broke(
    later: Get, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The SDK gives up after two failures in a row, of a stream that breaks or cannot be opened."""
    monkeypatch.setattr(stream_pauses, "REOPEN_SECONDS", 0.01)

    async def story(url: str) -> str:
        return await booked(Session(server_at(url), Rules(POLICY, stdio=False)))

    with asking(break_off, *[later] * 3) as url:
        assert "3" == asyncio.run(story(url))


async def opened(client: CheckedClient, url: str) -> int:
    """Return the status of a stream, which ends at once."""
    async with client.stream("GET", url) as response:
        assert b"" == (await response.aread()).replace(b"retry: 10\ndata:\n\n", b"")
    return response.status_code


@pytest.mark.parametrize(("failure", "status"), [(hang_up, None), (fail, 502)])
def test_a_stream_that_was_never_open_fails(failure: Get, status: int | None) -> None:
    """The SDK asks a server that has none twice, and not for the whole time of the session."""

    async def story(url: str) -> None:
        async with CheckedClient({}, POLICY) as client:
            if status is None:
                with pytest.raises(httpx2.TransportError):
                    await client.get(url)
            else:
                assert status == (await client.get(url)).status_code

    with asking(failure) as url:
        asyncio.run(story(url))


def test_a_stream_that_is_refused_is_not_opened_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server may have lost the session."""
    monkeypatch.setattr(stream_pauses, "REOPEN_SECONDS", 0.01)

    async def story(url: str) -> list[int]:
        async with CheckedClient({}, POLICY) as client:
            return [await opened(client, url) for _ in range(3)]

    with asking(break_off, fail, refuse) as url:
        assert [200, 200, 404] == asyncio.run(story(url))


def test_the_stream_of_a_call_fails_where_it_cannot_be_opened_again() -> None:
    """The call fails soon after its server is gone, and not at the end of its time."""

    async def story(url: str) -> None:
        async with CheckedClient({}, POLICY) as client:
            assert 200 == await opened(client, url)
            STREAM_OF.set("call")
            with pytest.raises(httpx2.TransportError):
                await opened(client, url)

    with asking(break_off, hang_up) as url:
        asyncio.run(story(url))


def test_a_call_fails_where_its_stream_breaks_whenever_it_is_opened_again() -> None:
    """The call fails soon, and not at the end of its time."""

    def break_off_with_id(handler: Lying) -> None:
        begin(handler, "id: 1\nretry: 10\ndata:\n\n")
        handler.close_connection = True

    def get(handler: Lying) -> None:
        if handler.headers["Last-Event-ID"]:
            break_off_with_id(handler)
        else:
            handler.send(405, b"")

    async def story(url: str) -> None:
        session = Session(server_at(url), Rules(POLICY, stdio=False))
        call = OpenCall(20.0, 20.0, lambda fields: None)
        try:
            [tool] = await session.tools()
            async with asyncio.timeout(5):
                with pytest.raises(McpFailed, match="connection to the server was lost"):
                    await session.call("lie", {}, tool.hash, {}, call, None)
        finally:
            await session.close()

    more: dict[str, Any] = {
        "session_id": "s",
        "do_GET": get,
        "do_DELETE": lambda handler: handler.send(200, b""),
    }
    with lying(break_off_with_id, **more) as (url, _):
        asyncio.run(story(url))


def test_a_stream_that_ends_at_once_is_opened_once_a_second() -> None:
    """Its server may ask for no pause; and calls do not list the tools before each of them."""
    gets, lists = 0, 0

    def get(handler: Lying) -> None:
        nonlocal gets
        gets += 1
        begin(handler, "retry: 0\ndata:\n\n")
        handler.close_connection = True

    def respond(handler: Lying, message: dict[str, Any]) -> None:
        nonlocal lists
        lists += message.get("method") == "tools/list"
        Lying.respond(handler, message)

    async def story(url: str) -> None:
        session = Session(server_at(url), Rules(POLICY, stdio=False))
        try:
            [tool] = await session.tools()
            for opened in range(1, 4):
                while gets < opened:
                    await asyncio.sleep(0.01)
                call = OpenCall(20.0, 20.0, lambda fields: None)
                await session.call("lie", {}, tool.hash, {}, call, None)
        finally:
            await session.close()

    done = {"content": [{"type": "text", "text": "done"}]}
    more: dict[str, Any] = {
        "session_id": "s",
        "do_GET": get,
        "do_DELETE": lambda handler: handler.send(200, b""),
        "respond": respond,
    }
    started = time.monotonic()
    with lying(lambda handler: handler.result(handler.message, done), **more) as (url, _):
        asyncio.run(story(url))
    assert 1 == lists
    assert gets <= 2 + (time.monotonic() - started) / stream_pauses.REOPEN_SECONDS
