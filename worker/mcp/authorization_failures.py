"""The reasons why people's access fails, without any content of a response but names of errors."""

import re

import httpx2
from mcp.client.auth import OAuthRegistrationError
from mcp.client.auth.utils import extract_field_from_www_auth, extract_scope_from_www_auth
from mcp.shared.auth import OAuthMetadata

from arkloop.worker.mcp import McpFailed
from arkloop.worker.mcp.elicitations import MAX_URL_CHARACTERS

MOVED = (
    "The server names another authorization server than the one that its client_secret was used at."
    " If that is right, an admin has to change `oauth`."
)
PAGE_TOO_LONG = f"the address of its page is longer than {MAX_URL_CHARACTERS:,} characters"
PAGE_NOT_VALID = "the address of its page is not one that a browser can open"
#: By the beginnings of the SDK's messages, whose version is pinned; servers sent what follows.
_REASONS = {
    "Authorization server metadata issuer mismatch": (
        "the metadata of its authorization server has another issuer than the server names"
    ),
    "Authorization response iss mismatch": "the code is from another issuer than was visited",
    "Authorization response missing iss": "the code came without the `iss` of its issuer",
    "Protected resource ": "its metadata is that of another resource",
    "Invalid registration response": "the response to the registration of a client is not valid",
    "Invalid token response": "the response to the code has no valid token",
    "Authorization server registered the client": (
        "its authorization server has registered a client without a usable secret"
    ),
}
_BY_HAND = "register a client by hand, and set `client_id` in `oauth`"
_STATUS = re.compile(r"Registration failed: (\d{3})\b")
_ERROR = re.compile(r'"error"\s*:\s*"([a-z0-9_.-]{1,64})"')


def failed(reason: str | None) -> McpFailed:
    """Return the failure of an authorization, with its reason if that is known."""
    return McpFailed(f"The authorization at the server failed{f': {reason}' if reason else ''}.")


def reason_of(error: Exception, metadata: OAuthMetadata | None) -> str | None:
    """Return why the SDK's flow has failed, None if nothing can be said.

    `metadata` is that of the authorization server, if it was found.
    """
    text = str(error)
    if isinstance(error, OAuthRegistrationError) and (status := _STATUS.match(text)):
        if metadata is not None and metadata.registration_endpoint is None:
            return f"its authorization server offers no registration: {_BY_HAND}"
        named = _ERROR.search(text)
        why = named[1] if named else f"HTTP status {status[1]}"
        return f"its authorization server has registered no client ({why}): {_BY_HAND}"
    return next((why for begins, why in _REASONS.items() if text.startswith(begins)), None)


def missing_scope(response: httpx2.Response) -> str | None:
    """Return what a token lacks for a request: "" if that is not named, None if nothing."""
    error = extract_field_from_www_auth(response, "error")
    if response.status_code != 403 or error != "insufficient_scope":
        return None
    return extract_scope_from_www_auth(response) or ""
