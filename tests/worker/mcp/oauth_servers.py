"""A resource and an authorization server in memory, and processes with sessions at them."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar
from urllib.parse import parse_qs

import httpx2

from arkloop.shared.ids import new_id
from arkloop.worker.mcp import AuthorizationRequired, McpFailed
from arkloop.worker.mcp.oauth import EndUserOAuth
from arkloop.worker.mcp.open_calls import OpenCall
from arkloop.worker.mcp.server import Server

RESOURCE, ISSUER = "https://mcp.example.com", "https://login.example.com"
CALLBACK = "https://runs.example.com/v1/mcp-oauth/callback"
NOTHING = {"grant": None, "client": None, "answered": None}

T = TypeVar("T")


class Internet:
    """Both servers; `valid` are the access tokens that the resource accepts."""

    def __init__(self) -> None:
        self.issuer = ISSUER
        self.authorize = "authorize"  # the path of its page, which may have a query
        self.named: str | None = None  # what the resource calls it, if not the same
        self.valid: set[str] = set()
        self.token_status, self.token_error = 200, "invalid_grant"
        self.auth_methods: list[str] | None = None  # that its metadata has
        self.refusal_status = 401
        self.accepts: str | None = None  # how a client's secret has to be sent
        self.token_requests: list[tuple[str, dict[str, str]]] = []
        self.seen: list[httpx2.Request] = []
        self.registrations = 0
        self.forgotten: set[str] = set()  # clients that the token endpoint refuses
        self.registered: dict[str, Any] = {}  # what the response has besides the id
        self.needs, self.gives, self.shows_scope = "", "", False  # scopes, also of new tokens
        self.scopes: dict[str, str] = {}
        self.is_slow = asyncio.Event()

    async def __call__(self, request: httpx2.Request) -> httpx2.Response:
        self.seen.append(request)
        match request.url.path:
            case "/mcp":
                token = request.headers.get("Authorization", "").removeprefix("Bearer ")
                if token not in self.valid:
                    return httpx2.Response(401, headers={"WWW-Authenticate": 'Bearer scope="base"'})
                if not set(self.needs.split()) <= set(self.scopes[token].split()):
                    error = f'Bearer error="insufficient_scope", scope="{self.needs}"'
                    return httpx2.Response(403, headers={"WWW-Authenticate": error})
                if request.content == b'{"slow": true}':
                    await self.is_slow.wait()
                return httpx2.Response(200, json={"token": token})
            case "/.well-known/oauth-protected-resource/mcp":
                named = [self.named or self.issuer]
                about = {"resource": f"{RESOURCE}/mcp", "authorization_servers": named}
                return httpx2.Response(200, json=about)
            case "/.well-known/oauth-authorization-server":
                places = {
                    name: f"{self.issuer.rstrip('/')}/{path}"
                    for name, path in (
                        ("authorization_endpoint", self.authorize),
                        ("token_endpoint", "token"),
                        ("registration_endpoint", "register"),
                    )
                }
                metadata = {"issuer": self.issuer, **places}
                if self.auth_methods is not None:
                    metadata |= {"token_endpoint_auth_methods_supported": self.auth_methods}
                return httpx2.Response(200, json=metadata)
            case "/register":
                self.registrations += 1
                client = "registered" if self.registrations == 1 else f"c{self.registrations}"
                return httpx2.Response(201, json={**self.registered, "client_id": client})
            case "/token":
                return self._issue(request)
        return httpx2.Response(404)

    def _issue(self, request: httpx2.Request) -> httpx2.Response:
        form = {name: values[0] for name, values in parse_qs(request.content.decode()).items()}
        self.token_requests.append((request.url.host, form))
        sent = "client_secret_post" if "client_secret" in form else "none"
        if "Authorization" in request.headers:
            sent = "client_secret_basic"
        if self.accepts not in (None, sent) or form["client_id"] in self.forgotten:
            return httpx2.Response(self.refusal_status, json={"error": "invalid_client"})
        if self.token_status != 200:
            return httpx2.Response(self.token_status, json={"error": self.token_error})
        number = len(self.token_requests)
        self.valid = {f"access-{number}"}
        self.scopes[f"access-{number}"] = self.gives
        shown = {"scope": self.gives} if self.shows_scope else {}
        tokens = {"access_token": f"access-{number}", "refresh_token": f"refresh-{number}"}
        return httpx2.Response(
            200, json={**tokens, **shown, "token_type": "Bearer", "expires_in": 3600}
        )


async def waited_for(oauth: EndUserOAuth | None, work: Coroutine[Any, Any, T]) -> T:
    """Do the work while a request of the worker waits in the session."""
    assert oauth is not None
    call = OpenCall(20.0, 20.0, lambda fields: None)
    return await oauth.keepers.during(call, lambda: None, work)


class Process:
    """A sidecar's session with the resource, as the worker begins one from what it has stored."""

    def __init__(self, internet: Internet, access: dict[str, Any], **oauth: str) -> None:
        given = {"client_id": None, "client_secret": None, "redirect_uri": CALLBACK, **oauth}
        server = Server(
            org_id=new_id(), config_id=new_id(), name="v", url=f"{RESOURCE}/mcp", oauth=given
        )
        self.oauth = EndUserOAuth(server)
        self.oauth.take(json.loads(json.dumps({**NOTHING, **access})))
        self._http = httpx2.AsyncClient(
            transport=httpx2.MockTransport(internet),
            auth=self.oauth,
            headers={"X-Key": "of the resource"},
            max_redirects=32,
        )

    async def post(self, content: str = "{}", *, is_waited_for: bool = True) -> int:
        """Send a message, by default while a request of the worker waits."""
        posting = self._http.post(f"{RESOURCE}/mcp", content=content)
        answer = await (waited_for(self.oauth, posting) if is_waited_for else posting)
        return answer.status_code

    async def refused(self) -> McpFailed:
        assert 401 == await self.post()
        problem = self.oauth.problem_of(None)
        assert problem is not None
        return problem

    async def asked(self) -> dict[str, Any]:
        problem = await self.refused()
        assert isinstance(problem, AuthorizationRequired)
        return dict(problem.made)


async def granted(internet: Internet, **oauth: str) -> dict[str, Any]:
    """Return the grant of somebody who has authorized access."""
    made = await Process(internet, {}, **oauth).asked()
    process = Process(internet, {"answered": {**made, "code": "the code", "iss": None}}, **oauth)
    assert 200 == await process.post()
    assert process.oauth.grant is not None
    return process.oauth.grant


def in_loop(story: Callable[[Internet], Awaitable[None]]) -> None:
    async def told() -> None:
        await story(Internet())

    asyncio.run(told())
