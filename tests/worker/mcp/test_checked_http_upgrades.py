"""Servers that give their sessions no ids, and are replaced by another version of themselves."""

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import httpx2
import pytest

from arkloop.shared.security.egress import Policy
from arkloop.worker.mcp import McpFailed
from arkloop.worker.mcp.bounded_messages import MAX_BYTES, MAX_VALUES
from arkloop.worker.mcp.failed_requests import is_rejected_unread, relies_on_handshake
from arkloop.worker.mcp.open_calls import OpenCall
from arkloop.worker.mcp.sessions import Rules
from arkloop.worker.mcp.sidecar import Sessions
from tests.worker.mcp.lying_mcp_server import Lying, lying
from tests.worker.mcp.sdk_server import Sdk, server_at

pytestmark = pytest.mark.processes

MODERN = "2026-07-28"


class Replaced:
    """A server of the kind `modern`, `stateless` or `stateful`, which changes with its versions."""

    def __init__(
        self, kind: str, status: int = 400, body: bytes = b"", media_type: str = "application/json"
    ) -> None:
        self.kind = kind
        self.rejects_calls = False
        self.status, self.body, self.media_type = status, body, media_type
        self.requests: Counter[str] = Counter()

    def respond(self, handler: Lying, message: dict[str, Any]) -> None:
        method = str(message.get("method"))
        is_rejected = method == "tools/call" and self.rejects_calls
        if is_rejected or not self._knows(method, handler):
            self.requests[f"rejected {method}"] += 1
            body = self.body.replace(b"ID", json.dumps(message.get("id")).encode())
            handler.send(self.status, body, **{"Content-Type": self.media_type})
        else:
            self.requests[method] += 1
            Lying.respond(handler, message)

    def _knows(self, method: str, handler: Lying) -> bool:
        if self.kind == "stateful":
            return method == "initialize" or handler.headers["Mcp-Session-Id"] == "given"
        return (handler.headers["Mcp-Protocol-Version"] == MODERN) == (self.kind == "modern")


class Caller:
    """A worker's sidecar, in this process."""

    def __init__(self, url: str) -> None:
        self._server = server_at(url)
        self.sessions = Sessions(Rules(Policy.of(["127.0.0.0/8"]), stdio=False))

    async def ask(self, do: str, **more: Any) -> dict[str, Any]:
        request = {"do": do, "server": self._server.to_json(), "access": None, "seconds": 20.0}
        call = OpenCall(20.0, 20.0, lambda fields: None)
        return await self.sessions.answer({**request, **more}, call, lambda grant: None)

    async def tool(self) -> str:
        [tool] = (await self.ask("tools"))["tools"]
        return str(tool["hash"])

    async def call(self, pinned: str) -> str:
        what = {"tool": "lie", "arguments": {}, "pinned": pinned}
        return str((await self.ask("call", **what, meta={}, replies=None))["text"])


def with_caller(replaced: Replaced, story: Callable[[Caller], Awaitable[None]]) -> None:
    async def in_loop(url: str) -> None:
        caller = Caller(url)
        try:
            await story(caller)
        finally:
            await caller.sessions.close()

    more: dict[str, Any] = {
        "is_modern": property(lambda _: replaced.kind == "modern"),
        "session_id": property(lambda _: "given" if replaced.kind == "stateful" else None),
        "respond": lambda handler, message: replaced.respond(handler, message),
        "do_DELETE": lambda handler: handler.send(200, b""),
    }
    done = {"content": [{"type": "text", "text": "done"}]}
    with lying(lambda handler: handler.result(handler.message, done), **more) as (url, _):
        asyncio.run(in_loop(url))


def _error(code: int, id_: int | None = None, **data: Any) -> bytes:
    error = {"code": code, "message": "No valid session ID provided", "data": data}
    return json.dumps({"jsonrpc": "2.0", "id": id_, "error": error}).encode()


@pytest.mark.parametrize(
    ("before", "after", "status", "body"),
    [
        ("modern", "stateful", 400, b""),
        ("modern", "stateful", 400, _error(-32000)),
        ("modern", "stateful", 404, b""),
        ("modern", "stateless", 400, _error(-32600)),
        ("stateless", "stateful", 410, b""),
        ("stateless", "modern", 400, _error(-32022, supported=[MODERN])),
    ],
)
@pytest.mark.parametrize("lists_first", [False, True])
def test_a_server_is_negotiated_with_anew_once_it_rejects_what_was_agreed(
    before: str, after: str, status: int, body: bytes, lists_first: bool
) -> None:
    """The next request succeeds, and a call has reached the tool once."""
    replaced = Replaced(before, status, body)

    async def story(caller: Caller) -> None:
        pinned = await caller.tool()
        assert "done" == await caller.call(pinned)

        replaced.kind = after
        replaced.requests.clear()
        if lists_first:
            assert pinned == await caller.tool()
        assert "done" == await caller.call(pinned)

    with_caller(replaced, story)
    assert 1 == replaced.requests["tools/call"]


def test_a_server_that_rejects_every_call_is_not_negotiated_with_for_ever() -> None:
    """A call is made twice: once more after a handshake, and then it fails."""
    replaced = Replaced("modern")
    replaced.rejects_calls = True

    async def story(caller: Caller) -> None:
        pinned = await caller.tool()
        for n in (1, 2):
            with pytest.raises(McpFailed, match="HTTP status 400"):
                await caller.call(pinned)
            assert 2 * n == replaced.requests["rejected tools/call"]
            assert 2 * n >= replaced.requests["server/discover"]

    with_caller(replaced, story)


@pytest.mark.parametrize("code", [-32600, -32602, -32020, -32021, -32000])
def test_a_tool_that_fails_with_an_error_of_the_protocol_is_called_once(
    call: Callable[..., str], sdk: Sdk, code: int
) -> None:
    """Servers of the protocol 2026-07-28 send 400 for some of these, whatever raised them."""
    (paid := sdk.folder / "paid").unlink(missing_ok=True)

    with pytest.raises(McpFailed, match="The account is closed"):
        call("pay", code=code)

    assert f"{code}\n" == paid.read_text()


@pytest.mark.parametrize("kind", ["modern", "stateless"])
@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (rb'"error":{"code":-32020,"message":"Too expensive \ud83d"}', "Too expensive"),
        (rb'"error":{"code":-32020,"message":"No.","data":{"why":"\ud83d"}}', "No."),
        (b'"error":{"code":"TOO_EXPENSIVE","message":"No."}', "HTTP status 400"),
        (b'"error":{"code":-32020}', "HTTP status 400"),
        (b'"error":{"code":-32020,"message":"No "word" of it"}', "HTTP status 400"),
        (b'"result":{"content":[],"isError":true}', "HTTP status 400"),
    ],
)
def test_a_tool_that_fails_with_an_odd_error_is_called_once(
    kind: str, fields: bytes, said: str
) -> None:
    """JavaScript cuts texts within characters, and servers choose codes of their own."""
    replaced = Replaced(kind, 400, b'{"jsonrpc":"2.0","id":ID,' + fields + b"}")
    replaced.rejects_calls = True

    async def story(caller: Caller) -> None:
        pinned = await caller.tool()
        with pytest.raises(McpFailed, match=said):
            await caller.call(pinned)

    with_caller(replaced, story)
    assert 1 == replaced.requests["rejected tools/call"]


ERROR = b'{"jsonrpc":"2.0","id":ID,"error":{"code":1,"message":"No."}}'


@pytest.mark.parametrize("kind", ["modern", "stateless"])
@pytest.mark.parametrize(
    ("media_type", "body"),
    [
        ("application/json", b"[" + ERROR + b"]"),
        ("text/html; charset=utf-8", ERROR),
        ("text/event-stream", b"data: " + ERROR + b"\n\n"),
        ("text/plain", b" " * MAX_BYTES + ERROR),
    ],
)
def test_a_tool_is_called_once_whatever_its_error_is_sent_as(
    kind: str, media_type: str, body: bytes
) -> None:
    """Frameworks send the text of a JSON document as a page; some servers know only arrays."""
    replaced = Replaced(kind, 400, body, media_type)
    replaced.rejects_calls = True

    async def story(caller: Caller) -> None:
        pinned = await caller.tool()
        with pytest.raises(McpFailed):
            await caller.call(pinned)

    with_caller(replaced, story)
    assert 1 == replaced.requests["rejected tools/call"]


@pytest.mark.parametrize("status", [401, 403, 408, 429, 500, 503])
def test_a_status_with_other_reasons_leads_to_no_negotiation(status: int) -> None:
    """The server may have carried out the call, or refuses it for good."""
    replaced = Replaced("modern", status)

    async def story(caller: Caller) -> None:
        pinned = await caller.tool()
        replaced.rejects_calls = True
        with pytest.raises(McpFailed, match=f"HTTP status {status}"):
            await caller.call(pinned)
        replaced.rejects_calls = False
        assert "done" == await caller.call(pinned)

    with_caller(replaced, story)
    assert 1 == replaced.requests["server/discover"]
    assert 1 == replaced.requests["rejected tools/call"]


@pytest.mark.parametrize(
    ("sent", "relies"),
    [
        ({"json": {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}}, True),
        ({"json": {"jsonrpc": "2.0", "id": 1, "result": {}}}, False),
        ({"json": {"jsonrpc": "2.0", "method": "notifications/cancelled"}}, False),
        ({"json": {"jsonrpc": "2.0", "id": 1, "method": "initialize"}}, False),
        ({"json": {"jsonrpc": "2.0", "id": 1, "method": "server/discover"}}, False),
        ({"json": {"redirect_uris": ["https://example.com/callback"]}}, False),
        ({"data": {"code": "c"}}, False),
    ],
)
def test_only_requests_after_the_handshake_rely_on_it(sent: dict[str, Any], relies: bool) -> None:
    """The rejection of anything else, also of a notification, leaves the session in use."""
    assert relies is relies_on_handshake(httpx2.Request("POST", "http://127.0.0.1/mcp", **sent))


@pytest.mark.parametrize(
    ("body", "is_unread"),
    [
        (_error(-32600, 7), False),
        (_error(-32020, 7), False),
        (_error(-32022, 7, supported=[MODERN]), True),
        (_error(-32600, 8), True),
        (_error(-32600), True),
        (b"{", True),
        (b'{"id": "7", "error": "of another kind"}', False),
        (b'{"id": 7.0, "error": {"code": 1.5}}', False),
        (b'{"id": 77, "error": "of another request"}', True),
        (b'{"id": 7, "error": {"code": -32022}}', True),
        (b'{"id": null, "error": {"data": {"input": {"id": 7}}}}', True),
        (b'{"jsonrpc": "2.0", "id": 7, "error": {"message": "\xff"}}', False),
        (b"[" + b"0," * MAX_VALUES + b"0]", False),
        (b"[1, null]", True),
        (b"[" + _error(-32600, 8) + b"," + _error(-32600, 7) + b"]", False),
        (b"[" + _error(-32022, 7, supported=[MODERN]) + b"]", True),
    ],
)
def test_an_error_with_the_id_of_the_request_is_no_rejection(body: bytes, is_unread: bool) -> None:
    """A tool may have raised it, but for the one about the version."""
    call = {"jsonrpc": "2.0", "id": 7, "method": "tools/call"}
    request = httpx2.Request("POST", "http://127.0.0.1/mcp", json=call)
    assert is_unread is is_rejected_unread(request, body)
