"""Access tokens: JWTs (RFC 7519, RFC 9068) of one algorithm, one issuer, one header."""

import base64
import re
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID

import jwt

from arkloop.shared import json_text
from arkloop.shared.config import Settings
from arkloop.shared.errors import Unauthorized
from arkloop.shared.ids import parse_id

LIFETIME_SECONDS = 15 * 60
ALGORITHM = "HS256"
TYPE = "at+jwt"
ISSUER = "arkloop"
AUDIENCE = "arkloop-api"

_MAX_LENGTH = 2048
_CLOCK_SKEW_SECONDS = 60  # between the machines of one deployment
_HEADER = {"alg": ALGORITHM, "typ": TYPE}
_FORM = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")


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
    return jwt.encode(claims, settings.jwt_secret, ALGORITHM, headers={"typ": TYPE})


def verify(settings: Settings, token: str) -> Claims:
    """Return the claims of a valid token that this service issued.

    The header must be the one that `issue` writes: no other algorithm, no `kid`,
    `jku`, `jwk` or `crit` is ever looked at (RFC 8725, 3.1 and 3.5).

    Raises:
        Unauthorized: anything else.
    """
    if len(token) > _MAX_LENGTH or not _FORM.fullmatch(token):
        raise Unauthorized()
    header, payload, _ = token.split(".")
    try:
        if json_text.loads(_decoded(header)) != _HEADER:
            raise Unauthorized()
        jwt.decode(
            token,
            settings.jwt_secret,
            algorithms=[ALGORITHM],
            audience=AUDIENCE,
            issuer=ISSUER,
            # A clock of another process that is ahead makes no token wrong.
            options={"require": ["exp", "sub"], "strict_aud": True, "verify_iat": False},
        )
        claims = json_text.loads(_decoded(payload))
    except (jwt.InvalidTokenError, ValueError) as error:
        raise Unauthorized() from error
    expires_at = claims["exp"]
    # An end later than the service sets is refused, however it is signed.
    latest = time.time() + LIFETIME_SECONDS + _CLOCK_SKEW_SECONDS
    if type(expires_at) is not int or expires_at > latest:
        raise Unauthorized()
    user_id, org_id, session_id = (parse_id(claims.get(name)) for name in ("sub", "org", "sid"))
    if user_id is None or org_id is None or session_id is None:
        raise Unauthorized()
    return Claims(user_id, org_id, session_id, datetime.fromtimestamp(expires_at, UTC))


def _decoded(segment: str) -> bytes:
    return base64.urlsafe_b64decode(segment + "=" * (-len(segment) % 4))
