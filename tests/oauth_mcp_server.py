"""An MCP server over HTTP on loopback that requires OAuth: `oauth_mcp_server.py PORT FOLDER`.

It is its own authorization server, which lets everybody in as somebody new. FOLDER has the
switches of the test (`denies`: a visit denies access; `expires_in`: seconds of tokens; `slow`: a
call lasts as long as it is there), and gets a line in `log` for each thing that happens.
`POST /revoke?what=access` or `=all` revokes tokens.
"""

import asyncio
import secrets
import sys
import time
from pathlib import Path

from mcp.server.auth.middleware.auth_context import get_access_token
from mcp.server.auth.provider import (
    AccessToken,
    AuthorizationCode,
    AuthorizationParams,
    RefreshToken,
    TokenError,
    construct_redirect_uri,
)
from mcp.server.auth.settings import AuthSettings, ClientRegistrationOptions
from mcp.server.mcpserver import MCPServer
from mcp.shared.auth import OAuthClientInformationFull, OAuthToken
from pydantic import AnyHttpUrl
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

PORT, FOLDER = int(sys.argv[1]), Path(sys.argv[2])
URL = f"http://127.0.0.1:{PORT}"


def note(line: str) -> None:
    with (FOLDER / "log").open("a") as log:
        log.write(f"{line}\n")


class People:
    """An authorization server in memory."""

    def __init__(self) -> None:
        self.clients: dict[str, OAuthClientInformationFull] = {}
        self.codes: dict[str, AuthorizationCode] = {}
        self.access: dict[str, AccessToken] = {}
        self.refresh: dict[str, RefreshToken] = {}

    async def get_client(self, client_id: str) -> OAuthClientInformationFull | None:
        return self.clients.get(client_id)

    async def register_client(self, client_info: OAuthClientInformationFull) -> None:
        note("registered")
        self.clients[client_info.client_id] = client_info

    async def authorize(
        self, client: OAuthClientInformationFull, params: AuthorizationParams
    ) -> str:
        back = str(params.redirect_uri)
        if (FOLDER / "denies").exists():
            return construct_redirect_uri(back, error="access_denied", state=params.state)
        code = f"canary-code-{secrets.token_urlsafe(24)}"
        self.codes[code] = AuthorizationCode(
            code=code,
            scopes=params.scopes or [],
            expires_at=time.time() + 60,
            client_id=client.client_id,
            code_challenge=params.code_challenge,
            redirect_uri=params.redirect_uri,
            redirect_uri_provided_explicitly=params.redirect_uri_provided_explicitly,
            resource=params.resource,
            subject=f"person-{len(self.codes) + 1}",
        )
        return construct_redirect_uri(back, code=code, state=params.state)

    async def load_authorization_code(
        self, client: OAuthClientInformationFull, authorization_code: str
    ) -> AuthorizationCode | None:
        return self.codes.get(authorization_code)

    async def exchange_authorization_code(
        self, client: OAuthClientInformationFull, authorization_code: AuthorizationCode
    ) -> OAuthToken:
        code = authorization_code
        if code.expires_at == 0:
            raise TokenError("invalid_grant")
        code.expires_at = 0  # it is kept: each person has one
        note(f"exchanged {code.subject}")
        return self._issue(client, code.subject, code.resource)

    async def load_refresh_token(
        self, client: OAuthClientInformationFull, refresh_token: str
    ) -> RefreshToken | None:
        return self.refresh.get(refresh_token)

    async def exchange_refresh_token(
        self, client: OAuthClientInformationFull, refresh_token: RefreshToken, scopes: list[str]
    ) -> OAuthToken:
        del self.refresh[refresh_token.token]
        note(f"refreshed {refresh_token.subject}")
        return self._issue(client, refresh_token.subject, refresh_token.resource)

    def _issue(
        self, client: OAuthClientInformationFull, subject: str | None, resource: str | None
    ) -> OAuthToken:
        access, refresh = (f"canary-token-{secrets.token_urlsafe(24)}" for _ in range(2))
        wanted = FOLDER / "expires_in"
        seconds = int(wanted.read_text()) if wanted.exists() else 3600
        owner = {"client_id": client.client_id, "scopes": [], "subject": subject}
        self.access[access] = AccessToken(
            token=access, expires_at=int(time.time()) + seconds, resource=resource, **owner
        )
        self.refresh[refresh] = RefreshToken(token=refresh, resource=resource, **owner)
        return OAuthToken(access_token=access, refresh_token=refresh, expires_in=seconds)

    async def load_access_token(self, token: str) -> AccessToken | None:
        found = self.access.get(token)
        return found if found and (found.expires_at or 0) >= time.time() else None

    async def revoke_token(self, token: AccessToken | RefreshToken) -> None:
        raise NotImplementedError


people = People()
server = MCPServer(
    "oauth",
    auth_server_provider=people,
    auth=AuthSettings(
        issuer_url=AnyHttpUrl(URL),
        resource_server_url=AnyHttpUrl(f"{URL}/mcp"),
        validate_token_resource=True,
        client_registration_options=ClientRegistrationOptions(enabled=True),
    ),
)


@server.custom_route("/revoke", methods=["POST"])
async def revoke(request: Request) -> Response:
    people.access.clear()
    if request.query_params["what"] == "all":
        people.refresh.clear()
    return PlainTextResponse("revoked")


@server.tool()
async def whoami() -> str:
    """Return who has authorized this call."""
    token = get_access_token()
    assert token is not None
    note(f"called {token.subject}")
    while (FOLDER / "slow").exists():
        await asyncio.sleep(0.05)
    return str(token.subject)


server.run("streamable-http", host="127.0.0.1", port=PORT)
