"""Client tokens: with one, a browser page of one end user of an org calls the service directly.

A token is `alc_` and a JWT, which is not stored. It names its end user, perhaps one thread, the
persona of new runs, and its scopes; it has no more rights than the API key or the login that it was
issued with has now, and ends with that.
"""

import time
from collections.abc import Collection
from datetime import UTC, datetime, timedelta
from uuid import UUID

from arkloop.api.auth import signed_tokens
from arkloop.shared.actors import DATA_PERMISSIONS, Actor
from arkloop.shared.config import Settings
from arkloop.shared.errors import Unauthorized
from arkloop.shared.times import now

PREFIX = "alc_"
#: Seconds.
MIN_LIFETIME, DEFAULT_LIFETIME, MAX_LIFETIME = 60, 900, 3600

_AUDIENCE = "arkloop-client"
_TYPE = "ct+jwt"
_MAX_LENGTH = 4096
_CLOCK_SKEW = 60  # seconds, between the machines of one deployment


def issue(
    settings: Settings,
    issuer: Actor,
    *,
    end_user_id: str,
    scopes: Collection[str],
    persona_id: str,
    thread_id: UUID | None,
    lifetime_seconds: int,
) -> tuple[str, datetime]:
    """Issue a token; returns it and the time of its end, which is no later than the issuing key's.

    That the issuer has the scopes is checked by the caller, and again whenever the token is used.
    """
    expires_at = (now() + timedelta(seconds=lifetime_seconds)).replace(microsecond=0)
    if issuer.api_key_id is not None and issuer.expires_at is not None:
        expires_at = min(expires_at, issuer.expires_at)
    claims = {
        "aud": _AUDIENCE,
        "exp": int(expires_at.timestamp()),
        "org": str(issuer.org_id),
        "sub": str(issuer.user_id),
        "key": issuer.api_key_id and str(issuer.api_key_id),
        "sid": issuer.session_id and str(issuer.session_id),
        "end_user": end_user_id,
        "scopes": sorted(scopes),
        "persona": persona_id,
        "thread": thread_id and str(thread_id),
    }
    return PREFIX + signed_tokens.sign(settings, _TYPE, claims), expires_at


def verify(settings: Settings, token: str) -> Actor:
    """Return the end user that the token stands for, with the scopes that it was issued with.

    Raises:
        Unauthorized: not a token of this service, or one that has expired.
    """
    if not token.startswith(PREFIX):
        raise Unauthorized()
    claims = signed_tokens.verify(
        settings,
        _TYPE,
        token.removeprefix(PREFIX),
        audience=_AUDIENCE,
        required=["exp", "sub", "org"],
        max_length=_MAX_LENGTH,
    )
    expires_at = claims["exp"]
    # An end later than the service sets is refused, however it is signed.
    if expires_at > time.time() + MAX_LIFETIME + _CLOCK_SKEW:
        raise Unauthorized()
    try:
        key_id, session_id, thread_id = (claims[name] for name in ("key", "sid", "thread"))
        if not (key_id or session_id) or not (claims["end_user"] and claims["persona"]):
            raise Unauthorized()
        return Actor(
            org_id=UUID(claims["org"]),
            user_id=UUID(claims["sub"]),
            role="end_user",
            permissions=frozenset(claims["scopes"]) & DATA_PERMISSIONS,
            api_key_id=UUID(key_id) if key_id else None,
            session_id=UUID(session_id) if session_id else None,
            expires_at=datetime.fromtimestamp(expires_at, UTC),
            end_user_id=claims["end_user"],
            thread_id=UUID(thread_id) if thread_id else None,
            persona_id=claims["persona"],
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Unauthorized() from error
