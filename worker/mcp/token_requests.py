"""Requests to a token endpoint: how a client's secret is sent, and why a request is refused."""

from dataclasses import replace
from urllib.parse import parse_qsl

import httpx2
from mcp.client.auth.oauth2 import OAuthContext
from mcp.shared.auth import OAuthClientInformationFull, OAuthMetadata
from pydantic import BaseModel, Field, ValidationError

from arkloop.worker.mcp.server import Server

BASIC, POST = "client_secret_basic", "client_secret_post"


def registered_by_hand(server: Server) -> OAuthClientInformationFull | None:
    """Return the client that an admin has registered, None if there is none."""
    oauth = server.oauth or {}
    client_id, secret = oauth.get("client_id"), oauth.get("client_secret")
    if client_id is None:
        return None
    method = "none" if secret is None else None  # None: as `choose_method` finds
    return OAuthClientInformationFull(
        client_id=client_id, client_secret=secret, token_endpoint_auth_method=method
    )


def choose_method(context: OAuthContext, by_hand: OAuthClientInformationFull | None) -> None:
    """Choose how a secret is sent for which no method is known: in the form, or by HTTP Basic if
    the metadata lists that alone.

    The SDK sends none then. The SDK for TypeScript registers clients so, whose secret it demands.
    Where the metadata lists neither, the secret is sent only if an admin has given it.
    """
    client, supported = context.client_info, _methods(context.oauth_metadata) or [POST]
    if client is None or not client.client_secret or client.token_endpoint_auth_method:
        return
    if POST in supported or (client is by_hand and BASIC not in supported):
        client.token_endpoint_auth_method = POST
    elif BASIC in supported:
        client.token_endpoint_auth_method = BASIC


async def by_basic(
    context: OAuthContext, sent: httpx2.Request, response: httpx2.Response
) -> httpx2.Request | None:
    """Return a request with HTTP Basic in place of a refused one with the secret in its form.

    By RFC 7591 and 8414 what names no method means Basic, but there are authorization servers that
    accept only the form then. None: the client was not refused, no such request was sent, or the
    metadata lists no Basic.
    """
    if not await _is_client_refused(response):
        return None
    form = dict(parse_qsl((await sent.aread()).decode(), keep_blank_values=True))
    client, secret = context.client_info, form.pop("client_secret", None)
    supported = _methods(context.oauth_metadata)
    if client is None or secret is None or not (supported is None or BASIC in supported):
        return None
    client = client.model_copy(update={"token_endpoint_auth_method": BASIC})
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    form, headers = replace(context, client_info=client).prepare_token_auth(form, headers)
    return httpx2.Request("POST", sent.url, data=form, headers=headers)


async def better_of(
    context: OAuthContext, in_form: httpx2.Response, with_basic: httpx2.Response
) -> httpx2.Response:
    """Return the response that says more, and keep to Basic if the client was accepted."""
    client = context.client_info
    if client is not None and await _is_client_accepted(with_basic):
        client.token_endpoint_auth_method = BASIC
        return with_basic
    return with_basic if is_unavailable(with_basic) else in_form


def _methods(metadata: OAuthMetadata | None) -> list[str] | None:
    return None if metadata is None else metadata.token_endpoint_auth_methods_supported


#: What is called otherwise than in RFC 6749; this one is GitHub's.
_OWN_ERRORS = {"bad_verification_code": "invalid_grant"}


class _Refusal(BaseModel):
    """The response of a token endpoint that refuses a request (RFC 6749, section 5.2).

    GitHub's has the status 200.
    """

    error: str = Field(pattern="^[a-z0-9_.-]{1,64}$")


async def error_of(response: httpx2.Response) -> str | None:
    """Return why the token endpoint refuses a request, None if it does not say so."""
    try:
        error = _Refusal.model_validate_json(await response.aread()).error
    except ValidationError:
        return None
    return _OWN_ERRORS.get(error, error)


async def _is_client_refused(response: httpx2.Response) -> bool:
    """Return whether the client, or the method of its secret, is not accepted."""
    if not response.is_client_error:
        return False
    error = await error_of(response)
    return error == "invalid_client" or (response.status_code == 401 and error != "invalid_grant")


async def _is_client_accepted(response: httpx2.Response) -> bool:
    """Return whether the client is accepted, whatever its code or refresh token is worth."""
    error = await error_of(response)
    return error == "invalid_grant" or (error is None and response.is_success)


def is_unavailable(response: httpx2.Response) -> bool:
    """Return whether the same request may be accepted later."""
    return response.status_code == 429 or response.status_code >= 500
