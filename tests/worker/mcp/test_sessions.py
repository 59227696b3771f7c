"""Sessions with OAuth that a server has lost, and tokens that it refuses."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any
from urllib.parse import parse_qs

import pytest

from arkloop.shared.security.egress import Policy
from arkloop.worker.mcp import AuthorizationRequired, McpFailed
from arkloop.worker.mcp.open_calls import OpenCall
from arkloop.worker.mcp.sessions import Rules
from arkloop.worker.mcp.sidecar import Sessions
from tests.closed_port import closed_port
from tests.worker.mcp.lying_mcp_server import Lying, lying
from tests.worker.mcp.oauth_servers import CALLBACK, NOTHING
from tests.worker.mcp.sdk_server import server_at

pytestmark = pytest.mark.processes

HOUR = 3600.0


class Hosts:
    """A server that responds with 401 to each session but one, and its authorization server."""

    def __init__(self) -> None:
        self.session = "first"
        self.given: list[str] = []  # sessions, by `initialize`
        self.valid = "a0"  # access token
        self.token_status = 200
        self.is_down = False
        self.token_requests: list[str] = []
        self.lists_need_access = True
        self.takes_calls = True

    def post(self, handler: Lying) -> None:
        if handler.path != "/token":
            Lying.do_POST(handler)
            return
        form = parse_qs(handler.rfile.read(int(handler.headers["Content-Length"])).decode())
        self.token_requests.append(form["refresh_token"][0])
        number = len(self.token_requests)
        if self.token_status != 200:
            self._json(handler, self.token_status, {"error": "invalid_grant"})
            return
        self.valid = f"a{number}"
        tokens = {"access_token": self.valid, "refresh_token": f"r{number}"}
        self._json(handler, 200, {**tokens, "token_type": "Bearer", "expires_in": HOUR})

    def get(self, handler: Lying) -> None:
        base = f"http://{handler.headers['Host']}"
        issuer = f"http://127.0.0.1:{closed_port()}" if self.is_down else base
        if "oauth-protected-resource" in handler.path:
            about = {"resource": f"{base}/mcp", "authorization_servers": [issuer]}
            self._json(handler, 200, about)
        elif "oauth-authorization-server" in handler.path:
            self._json(handler, 200, metadata_of(base))
        else:
            Lying.do_GET(handler)

    def result(self, handler: Lying, message: dict[str, Any], result: dict[str, Any]) -> None:
        method, session = message["method"], handler.headers["Mcp-Session-Id"]
        has_access = f"Bearer {self.valid}" == handler.headers["Authorization"]
        has_access |= method == "tools/list" and not self.lists_need_access
        has_access &= method != "tools/call" or self.takes_calls
        if not has_access or (method != "initialize" and session != self.session):
            handler.send(401, b"", **{"WWW-Authenticate": "Bearer"})
            return
        if method == "initialize":
            self.given.append(self.session)
        Lying.result(handler, message, result)

    def lie(self, handler: Lying) -> None:
        handler.result(handler.message, {"content": [{"type": "text", "text": "done"}]})

    def _json(self, handler: Lying, status: int, body: dict[str, Any]) -> None:
        text = json.dumps(body).encode()
        handler.send(status, text, **{"Content-Type": "application/json"})


def metadata_of(base: str) -> dict[str, Any]:
    places = {f"{name}_endpoint": f"{base}/{name[:5]}" for name in ("token", "authorization")}
    return {"issuer": base, **places, "response_types_supported": ["code"]}


class Caller:
    """An end user with a grant that has a refresh token, whose calls a worker's sidecar makes."""

    def __init__(self, url: str, obtained_at: float) -> None:
        base = url.removesuffix("/mcp")
        own = {"client_id": "own", "redirect_uris": [CALLBACK]}
        oauth = {"client_id": "own", "client_secret": None, "redirect_uri": CALLBACK}
        tokens = {"access_token": "a0", "refresh_token": "r0", "token_type": "Bearer"}
        self.server = replace(server_at(url), oauth=oauth, owner="somebody")
        self.grant: Any = {
            "at": [base, f"{base}/token", "own"],
            "server_url": url,
            "client": own,
            "metadata": metadata_of(base),
            "resource": None,
            "issuer": base,
            "asked": None,
            "id": "g0",
            "tokens": tokens,
            "expires_at": None,
            "obtained_at": obtained_at,
        }
        self.sessions = Sessions(Rules(Policy.of(["127.0.0.0/8"]), stdio=False))
        self.hash = ""

    async def ask(self, do: str, **more: Any) -> dict[str, Any]:
        access = {**NOTHING, "grant": self.grant}
        request = {"do": do, "server": self.server.to_json(), "access": access, "seconds": 20.0}
        call = OpenCall(20.0, 20.0, lambda fields: None)
        return await self.sessions.answer({**request, **more}, call, self._keep)

    async def call(self) -> str:
        if not self.hash:
            self.hash = (await self.ask("tools"))["tools"][0]["hash"]
        what = {"tool": "lie", "arguments": {}, "pinned": self.hash}
        return str((await self.ask("call", **what, meta={}, replies=None))["text"])

    def _keep(self, grant: Any) -> None:
        self.grant = grant


def with_caller(story: Callable[[Hosts, Caller], Awaitable[None]], *, age: float = HOUR) -> None:
    """Tell a story of somebody who has made a call, with a grant of this age."""

    async def told(hosts: Hosts, url: str) -> None:
        caller = Caller(url, time.time() - age)
        assert "done" == await caller.call()
        await story(hosts, caller)
        await caller.sessions.close()

    hosts = Hosts()
    more: dict[str, Any] = {
        "session_id": property(lambda _: hosts.session),
        "do_POST": lambda handler: hosts.post(handler),
        "do_GET": lambda handler: hosts.get(handler),
        "do_DELETE": lambda handler: handler.send(200, b""),
        "result": lambda *message: hosts.result(*message),
    }
    with lying(lambda handler: hosts.lie(handler), **more) as (url, _):
        asyncio.run(told(hosts, url))


@pytest.mark.parametrize("token_status", [200, 400, 503, None])
def test_calls_in_a_lost_session_are_made_in_a_new_one(token_status: int | None) -> None:
    """The token may be the reason, so it is refreshed, but by one call alone. Where that is not
    possible it may be good all the same. `None`: nothing responds.
    """

    async def story(hosts: Hosts, caller: Caller) -> None:
        hosts.session = "second"
        hosts.token_status, hosts.is_down = token_status or 200, token_status is None

        assert ["done"] * 8 == await asyncio.gather(*(caller.call() for _ in range(8)))

        assert ["first", "second"] == hosts.given
        if token_status == 200:
            assert ["r0"] == hosts.token_requests

    with_caller(story)


@pytest.mark.parametrize("lists_need_access", [True, False])
def test_a_token_that_is_revoked_is_refreshed_in_its_session(lists_need_access: bool) -> None:
    """The server may keep a state in it. Once the refresh token is revoked as well, somebody is
    asked for access.
    """

    async def story(hosts: Hosts, caller: Caller) -> None:
        hosts.lists_need_access = lists_need_access
        hosts.valid = "revoked"
        assert ["done"] * 8 == await asyncio.gather(*(caller.call() for _ in range(8)))
        assert (["first"], ["r0"]) == (hosts.given, hosts.token_requests)

        caller.grant = {**caller.grant, "id": "g1", "obtained_at": time.time() - HOUR}
        hosts.valid, hosts.token_status = "revoked", 400
        with pytest.raises(AuthorizationRequired):
            await caller.call()

    with_caller(story)


def test_a_new_token_that_is_revoked_is_refreshed() -> None:
    """A 401 to a token of the last minute may be about the session, of which a new one is made."""

    async def story(hosts: Hosts, caller: Caller) -> None:
        hosts.valid = "revoked"
        assert ["done"] * 8 == await asyncio.gather(*(caller.call() for _ in range(8)))
        assert ["r0"] == hosts.token_requests

    with_caller(story, age=1.0)


def test_a_new_token_that_calls_alone_need_is_refreshed() -> None:
    """The list of tools says nothing about it, so no new session follows."""

    async def story(hosts: Hosts, caller: Caller) -> None:
        hosts.lists_need_access, hosts.valid = False, "revoked"
        assert ["done"] * 8 == await asyncio.gather(*(caller.call() for _ in range(8)))
        assert (["first"], ["r0"]) == (hosts.given, hosts.token_requests)

    with_caller(story, age=1.0)


@pytest.mark.parametrize("age", [1.0, HOUR])
def test_access_that_calls_alone_lack_is_asked_for(age: float) -> None:
    """Without a token the list of tools is refused as well, as in a lost session."""

    async def story(hosts: Hosts, caller: Caller) -> None:
        hosts.takes_calls, hosts.token_status = False, 400
        for _ in range(2):
            with pytest.raises(AuthorizationRequired):
                await caller.call()

    with_caller(story, age=age)


def test_a_session_outlives_an_authorization_server_that_is_down() -> None:
    """Its token has expired meanwhile, so that no other session would work either."""

    async def story(hosts: Hosts, caller: Caller) -> None:
        hosts.valid, hosts.token_status = "revoked", 503
        expired = {"expires_at": time.time() - 1, "obtained_at": time.time() - HOUR}
        caller.grant = {**caller.grant, "id": "g1", **expired}
        for do in (caller.call(), caller.ask("tools")):
            with pytest.raises(McpFailed, match="not available; try again later"):
                await do

        hosts.token_status = 200
        assert "done" == await caller.call()
        assert ["first"] == hosts.given

    with_caller(story)
