"""Access tokens of Google's service accounts.

The flow is RFC 7523, as https://developers.google.com/identity/protocols/oauth2/service-account
has it for HTTP: a claim signed with the account's key is exchanged for a token of an hour.
"""

import hashlib
import threading
import time
from collections.abc import Mapping

import httpx2
import jwt

from arkloop.shared.catalog.platforms import GOOGLE_TOKEN_URI
from arkloop.worker.contract.outcomes import ProviderError
from arkloop.worker.providers.sdk_errors import http_errors

SCOPE = "https://www.googleapis.com/auth/cloud-platform"
LIFETIME_SECONDS = 3600
#: A token is not used for this long before its end: a call lasts for minutes.
MARGIN_SECONDS = 600
MAX_TOKENS = 1_000

_lock = threading.Lock()
_tokens: dict[str, tuple[float, str]] = {}  # by the credentials' hash: until when, and the token


def token(credentials: Mapping[str, str], http: httpx2.Client) -> str:
    """Return a token for the account, a known one if it is valid for long enough.

    Raises:
        ProviderError: `auth` if the account is refused.
    """
    name = hashlib.sha256(repr(sorted(credentials.items())).encode()).hexdigest()
    until, known = _tokens.get(name, (0.0, ""))
    if time.monotonic() < until:
        return known
    fresh, seconds = _exchange(credentials, http)
    with _lock:
        if len(_tokens) >= MAX_TOKENS:
            _tokens.clear()
        _tokens[name] = (time.monotonic() + seconds - MARGIN_SECONDS, fresh)
    return fresh


def _exchange(credentials: Mapping[str, str], http: httpx2.Client) -> tuple[str, float]:
    now, uri = int(time.time()), credentials.get("token_uri") or GOOGLE_TOKEN_URI
    claim = {
        "iss": credentials["client_email"],
        "scope": SCOPE,
        "aud": uri,
        "iat": now,
        "exp": now + LIFETIME_SECONDS,
    }
    key_id = credentials.get("private_key_id")
    signed = jwt.encode(
        claim, credentials["private_key"], "RS256", headers={"kid": key_id} if key_id else None
    )
    grant = {"grant_type": "urn:ietf:params:oauth:grant-type:jwt-bearer", "assertion": signed}
    with http_errors():
        response = http.post(uri, data=grant)
        if 400 <= response.status_code < 500:
            why = f"Google refuses the service account (HTTP {response.status_code})."
            raise ProviderError("auth", why)
        response.raise_for_status()
        issued = response.json()
        return str(issued["access_token"]), float(issued.get("expires_in", LIFETIME_SECONDS))
