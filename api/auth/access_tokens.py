"""Access tokens: JWTs (RFC 7519, RFC 9068) of one issuer."""

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID

from arkloop.api.auth import signed_tokens
from arkloop.shared.config import Settings
from arkloop.shared.errors import Unauthorized
from arkloop.shared.ids import parse_id

LIFETIME_SECONDS = 15 * 60
TYPE = "at+jwt"
ISSUER = "arkloop"
AUDIENCE = "arkloop-api"

_CLOCK_SKEW_SECONDS = 60  # between the machines of one deployment


@dataclass(frozen=True, slots=True)
class Claims:
    """The user, org and login of a token; `session_id` is the family of its refresh tokens."""

    user_id: UUID
    org_id: UUID
    session_id: UUID
    expires_at: datetime


def issue(settings: Settings, *, user_id: UUID, org_id: UUID, session_id: UUID) -> str:
    """Issue a token that lives for 15 minutes, and never longer than its session."""
    now = int(time.time())
    claims = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "sub": str(user_id),
        "org": str(org_id),
        "sid": str(session_id),
        "iat": now,
        "exp": now + LIFETIME_SECONDS,
    }
    return signed_tokens.sign(settings, TYPE, claims)


def verify(settings: Settings, token: str) -> Claims:
    """Return the claims of a valid token that this service issued. Raises: Unauthorized."""
    claims = signed_tokens.verify(
        settings, TYPE, token, audience=AUDIENCE, issuer=ISSUER, required=["exp", "sub"]
    )
    expires_at = claims["exp"]
    # An end later than the service sets is refused, however it is signed.
    latest = time.time() + LIFETIME_SECONDS + _CLOCK_SKEW_SECONDS
    if expires_at > latest:
        raise Unauthorized()
    user_id, org_id, session_id = (parse_id(claims.get(name)) for name in ("sub", "org", "sid"))
    if user_id is None or org_id is None or session_id is None:
        raise Unauthorized()
    return Claims(user_id, org_id, session_id, datetime.fromtimestamp(expires_at, UTC))
