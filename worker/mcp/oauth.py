"""The OAuth of a session: the SDK's provider, for people who authorize while no process waits.

The SDK's flow waits for somebody to visit a page. Here it ends at that point: what it needs to go
on is part of `AuthorizationRequired`, which the worker stores, and comes back with the code. What
it gets is a *grant*, which the worker stores, too. The SDK remembers tokens alone between two
processes; a grant also has the time at which they expire, and the servers that they are from.
"""

import secrets
import time
from collections.abc import AsyncGenerator, Mapping
from typing import Any
from uuid import uuid4

import httpx2
from mcp.client.auth import OAuthClientProvider, OAuthFlowError
from mcp.client.auth.oauth2 import PKCEParameters
from mcp.client.auth.utils import validate_authorization_response_iss
from mcp.shared.auth import (
    AuthorizationCodeResult,
    OAuthClientInformationFull,
    OAuthClientMetadata,
    OAuthMetadata,
    OAuthToken,
    ProtectedResourceMetadata,
)
from pydantic import AnyUrl

from arkloop.worker.mcp import (
    AuthorizationRequired,
    McpFailed,
    authorization_failures,
    authorization_pages,
    failed_requests,
    token_requests,
)
from arkloop.worker.mcp.checked_http import call_id_of
from arkloop.worker.mcp.failed_requests import NOT_AUTHORIZED
from arkloop.worker.mcp.grant_keepers import GrantKeepers
from arkloop.worker.mcp.grants import has_expired, parsed, plain
from arkloop.worker.mcp.issuers import Issuer
from arkloop.worker.mcp.registrations import Registrations
from arkloop.worker.mcp.server import Server

CLIENT_NAME = "Arkloop Runs"
#: Within a session that has worked, a 401 to a list of tools refreshes no token of the last minute.
NEW_SECONDS = 60.0
#: Of requests to authorization servers; some answer in another form by default.
_HEADERS = {"User-Agent": "arkloop", "Accept": "application/json", "Accept-Encoding": "identity"}


class _ClientUnusable(Exception):
    """The lack of a registration that can be used, which the flow begins anew for."""


class EndUserOAuth(OAuthClientProvider):
    """The authorization of one owner at one server.

    It never raises into the SDK's transport, which would end the session and all its calls: a
    request that lacks access gets the server's 401, and `problem_of` says what is missing.
    """

    def __init__(self, server: Server) -> None:
        assert server.url is not None and server.oauth is not None
        redirect_uri = AnyUrl(server.oauth["redirect_uri"] or "")
        is_local = redirect_uri.scheme == "http"
        super().__init__(
            server.url,
            OAuthClientMetadata(
                client_name=CLIENT_NAME,
                redirect_uris=[redirect_uri],
                application_type="native" if is_local else "web",
            ),
            storage=self,
            redirect_handler=self._ask,
            callback_handler=_never,
        )
        self._server = server
        self._initialized = True
        self._clients = Registrations(server, self.context.client_metadata)
        self.context.client_info = self._clients.by_hand
        self._issuer: str | None = None  # of the authorization server that the client belongs to
        self.grant: dict[str, Any] | None = None
        self.keepers = GrantKeepers()
        self._seen: set[str] = set()
        self._answered: Mapping[str, Any] | None = None
        self._asked: Mapping[str, Any] | None = None  # by the page that the grant is from
        self._missing: str | None = None
        self._may_refresh = self._is_refreshing = self._is_exchanging = False
        self._redirect_uri = ""  # of the page that the code is from: ours may have changed since
        self._may_replace = False  # the client, if the code is refused to it
        #: Of the exchange of a code: the SDK makes further requests before it gives up.
        self._failure: McpFailed | None = None
        self._has_code = False  # to get a token by, in place of the grant's
        self._problems: dict[str | None, McpFailed] = {}
        #: True once the session has listed the server's tools.
        self.has_worked = False

    def take(self, access: Mapping[str, Any]) -> None:
        """Use `{grant, client, answered}` from now on.

        `grant` is the owner's, `client` that of a registration which was made before, `answered` a
        request with the code that came back. A grant from before one of this session is ignored.
        """
        grant, answered = access["grant"], access["answered"]
        self._failure, self._has_code = None, answered is not None
        self._clients.use_stored(access["client"])
        self._issuer = (access["client"] or {}).get("issuer") if grant is None else grant["at"][0]
        if answered is not None:
            self._answered = answered
            self._load(answered)
        elif grant is None:
            self.grant = None
            self._seen.clear()
            self.context.clear_tokens()
            if self._answered is None and not self.context.lock.locked():
                # Without one a client is registered; a flow in progress keeps its own.
                self.context.client_info = self._clients.known
        elif grant["id"] not in self._seen:
            self.grant = grant
            self._seen.add(grant["id"])
            self._load(grant)

    @property
    def had_access(self) -> bool:
        """True if the session has worked with a token that has not expired since.

        A request that is refused all the same may be about the session, which the server has lost.
        """
        is_granted = self.grant is not None and not has_expired(self.grant)
        return self.has_worked and is_granted and not self._has_code

    def problem_of(self, call_id: str | None) -> McpFailed | None:
        """Return why the request of a call, or those without an id, got no access."""
        return self._problems.pop(call_id, None)

    # ---- the flow --------------------------------------------------------------------

    async def async_auth_flow(
        self, request: httpx2.Request
    ) -> AsyncGenerator[httpx2.Request, httpx2.Response]:
        before = self.grant
        is_waited_for = self._is_waited_for(request)
        if is_waited_for:
            self._problems.pop(call_id_of(request), None)
            if self._failure is not None:
                self._problems[call_id_of(request)] = self._failure
                yield request  # for its 401
                return
        # The SDK's flow sends one request at a time, until its response begins. Those that have a
        # token need not wait; nor is a stream of notifications worth asking anybody.
        if not is_waited_for or self.context.is_token_valid():
            self._add_auth_header(request)
            response = yield request
            if not is_waited_for or response.status_code not in (401, 403):
                return
        flow = super().async_auth_flow(request)
        problem: McpFailed | None = None
        has_begun = False  # until then another request's flow has the lock
        was_unavailable = False  # a server that the flow itself needs, without a success since
        try:
            outgoing = await anext(flow)
            has_begun = True
            while True:
                if outgoing is request:
                    self.keepers.end_token_request()
                else:
                    outgoing.headers.update(_HEADERS)
                response = yield outgoing
                if outgoing is request:
                    self._may_refresh = response.status_code == 401
                    if self._may_refresh and self._is_about_session(request, before):
                        return
                    self._missing = authorization_failures.missing_scope(response)
                elif again := await token_requests.by_basic(self.context, outgoing, response):
                    again.headers.update(_HEADERS)
                    response = await token_requests.better_of(self.context, response, (yield again))
                if outgoing is not request:
                    is_down = token_requests.is_unavailable(response)
                    was_unavailable = is_down or (was_unavailable and not response.is_success)
                try:
                    outgoing = await flow.asend(response)
                except _ClientUnusable:
                    self._is_refreshing = False
                    request.headers.pop("Authorization", None)
                    flow, has_begun = super().async_auth_flow(request), False
                    outgoing = await anext(flow)
                    has_begun = True
        except StopAsyncIteration:
            return
        except McpFailed as failed:
            problem = failed
        except (OAuthFlowError, ValueError) as error:
            reason = authorization_failures.reason_of(error, self.context.oauth_metadata)
            problem = authorization_failures.failed(reason)
            if was_unavailable:
                problem = McpFailed(NOT_AUTHORIZED)
        finally:
            if has_begun:
                self._is_refreshing = False
                self.keepers.end_token_request()
                if self._is_exchanging:
                    self._keep_failure(problem)
                if self.context.client_info is None and self.grant is not None:
                    self._load(self.grant)  # no other client was registered
            await flow.aclose()
        self._problems[call_id_of(request)] = problem
        request.headers.pop("Authorization", None)
        yield request  # for its 401

    def _is_waited_for(self, request: httpx2.Request) -> bool:
        """Return whether a request of the worker waits for what becomes of this one.

        None does for a stream or a notification. These have the token that is there, and a server
        that refuses it does not learn, for example, that a call was cancelled. A reply, to a ping
        for example, is worth a new token, but no page.
        """
        message = failed_requests.message_of(request)
        if request.method != "POST" or failed_requests.is_notification(message):
            return False
        is_reply = failed_requests.replied_to(message) is not None
        return self.keepers.any_waits and (self.context.can_refresh_token() or not is_reply)

    def _is_about_session(self, request: httpx2.Request, before: object) -> bool:
        """Return whether a 401 within a session is not about its token, which is new: newer than
        the grant `before` that a call began with, as it may not hold for calls.
        """
        if not self.had_access or self.grant is None or "mcp-session-id" not in request.headers:
            return False
        is_new = time.time() - self.grant["obtained_at"] < NEW_SECONDS
        if call_id_of(request) is not None:
            is_new = self.grant is not before
        return is_new and self.context.can_refresh_token()

    def _keep_failure(self, problem: McpFailed | None) -> None:
        """Keep why a code was of no use, until the next `take`; None: the exchange broke off."""
        self._is_exchanging = False
        if not isinstance(problem, AuthorizationRequired):
            self._failure = problem or McpFailed(NOT_AUTHORIZED)
        if self.grant is not None:
            self._load(self.grant)  # it is as good as before

    async def _perform_authorization(self) -> httpx2.Request:
        if self._is_secret_of_another():
            raise McpFailed(authorization_failures.MOVED)
        # A server may have revoked the access token alone, or not have said when it expires.
        may_refresh = self._may_refresh and self._answered is None and self._is_granted_here()
        if may_refresh and self.context.can_refresh_token():
            self._may_refresh, self._is_refreshing = False, True
            return await self._refresh_token()
        return await super()._perform_authorization()

    def _expected_issuer(self) -> str:
        return Issuer(super()._expected_issuer())

    def _is_secret_of_another(self) -> bool:
        by_hand = self._clients.by_hand
        if by_hand is None or by_hand.client_secret is None:
            return False
        return self._issuer is not None and self._issuer != self._expected_issuer()

    def _is_granted_here(self) -> bool:
        return self.grant is not None and self.grant["at"] == self._where()

    async def _refresh_token(self) -> httpx2.Request:
        if self.grant is not None and not self._is_granted_here():
            # An earlier request has found another authorization server, and nobody went there.
            self._load(self.grant)
        self.keepers.begin_token_request()
        token_requests.choose_method(self.context, self._clients.by_hand)
        return await super()._refresh_token()

    async def _exchange_token_authorization_code(
        self, auth_code: str, code_verifier: str
    ) -> httpx2.Request:
        self.keepers.begin_token_request()
        token_requests.choose_method(self.context, self._clients.by_hand)
        ours = self.context.client_metadata
        of_page = ours.model_copy(update={"redirect_uris": [self._redirect_uri]})
        self.context.client_metadata = of_page
        try:
            return await super()._exchange_token_authorization_code(auth_code, code_verifier)
        finally:
            self.context.client_metadata = ours

    async def _handle_token_response(self, response: httpx2.Response) -> None:
        if not self._is_refreshing:
            await self._handle_exchange_response(response)
        elif not await self._handle_refresh_response(response):
            await self._perform_authorization_code_grant()

    async def _handle_exchange_response(self, response: httpx2.Response) -> None:
        error = await token_requests.error_of(response)
        if error is None and response.status_code in (200, 201):
            await super()._handle_token_response(response)
            return
        if error == "invalid_client" and self._may_replace and self._clients.by_hand is None:
            self.context.client_info = self._clients.in_place_of(self.context.client_info)
            await self._perform_authorization_code_grant()
        if error == "invalid_grant":  # a new code may be good
            await self._perform_authorization_code_grant()
        if token_requests.is_unavailable(response):
            raise McpFailed(NOT_AUTHORIZED)
        raise authorization_failures.failed(error or f"HTTP status {response.status_code}")

    async def _handle_refresh_response(self, response: httpx2.Response) -> bool:
        if token_requests.is_unavailable(response):
            raise McpFailed(NOT_AUTHORIZED)  # the grant may still be good
        error = await token_requests.error_of(response)
        if error == "invalid_client" and self._clients.by_hand is None:
            self.context.client_info = self._clients.in_place_of(self.context.client_info)
        return await super()._handle_refresh_response(response)

    async def _perform_authorization_code_grant(self) -> tuple[str, str]:
        answered, self._answered = self._answered, None
        if answered is None or answered["at"] != self._where():
            # If the server names another authorization server now, that one must not get the code.
            client = self.context.client_info
            of_page = self._clients.for_page(client, self._expected_issuer())
            self.context.client_info = of_page
            if of_page is None:
                raise _ClientUnusable
            try:
                return await super()._perform_authorization_code_grant()
            finally:
                self.context.client_info = client or of_page  # tokens are refreshed with their own
        self._is_exchanging, self._may_replace = True, not answered.get("is_replacement")
        # What a response without a `scope` has granted; the request may have asked for less.
        metadata = self.context.client_metadata
        metadata.scope = answered.get("scope", metadata.scope)
        validate_authorization_response_iss(answered["iss"], self.context.oauth_metadata)
        self._redirect_uri = authorization_pages.redirect_uri_of(answered["url"])
        return answered["code"], answered["verifier"]

    async def _ask(self, url: str) -> None:
        """Take the place of the SDK's own verifier and state, which are lost with this process."""
        pkce, state = PKCEParameters.generate(), secrets.token_urlsafe(32)
        ours: dict[str, Any] = {"state": state, "code_challenge": pkce.code_challenge}
        ours |= {"url": authorization_pages.address_of(url, ours), "verifier": pkce.code_verifier}
        ours["is_replacement"] = self._clients.is_replacement
        scopes = {"scope": self.context.client_metadata.scope, "missing": self._missing}
        raise AuthorizationRequired({**self._state(), **ours, **scopes})

    # ---- what is kept between two processes ------------------------------------------

    def _where(self) -> list[str | None]:
        """Return what an authorization code is bound to."""
        client = self.context.client_info
        client_id = None if client is None else client.client_id
        return [self._expected_issuer(), self._get_token_endpoint(), client_id]

    def _state(self) -> dict[str, Any]:
        return {
            "at": self._where(),
            "server_url": self._server.url,
            "client": plain(self.context.client_info),
            "metadata": plain(self.context.oauth_metadata),
            "resource": plain(self.context.protected_resource_metadata),
            "issuer": self.context.auth_server_url,
            "asked": self._asked,
        }

    def _load(self, kept: Mapping[str, Any]) -> None:
        context = self.context
        self._asked = kept.get("asked")
        tokens = parsed(OAuthToken, kept.get("tokens"))
        context.current_tokens, context.token_expiry_time = tokens, kept.get("expires_at")
        client = parsed(OAuthClientInformationFull, kept["client"])
        context.client_info = self._clients.by_hand or client
        context.oauth_metadata = parsed(OAuthMetadata, kept["metadata"])
        context.protected_resource_metadata = parsed(ProtectedResourceMetadata, kept["resource"])
        context.auth_server_url = kept["issuer"]

    async def set_tokens(self, tokens: OAuthToken) -> None:
        """Keep a new grant, for the worker to store."""
        self.grant = {
            **self._state(),
            "id": str(uuid4()),
            "obtained_at": time.time(),
            "tokens": plain(tokens),
            "expires_at": self.context.token_expiry_time,
        }
        self._seen.add(self.grant["id"])
        self._is_exchanging = False
        self.keepers.keep()

    async def get_tokens(self) -> OAuthToken | None:
        return self.context.current_tokens

    async def get_client_info(self) -> OAuthClientInformationFull | None:
        return self.context.client_info

    async def set_client_info(self, client_info: OAuthClientInformationFull) -> None:
        self._clients.add(client_info)


async def _never() -> AuthorizationCodeResult:
    raise AssertionError("`_ask` has ended the flow")
