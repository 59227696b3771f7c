"""JSON Web Tokens by one algorithm and the keys of `ARKLOOP_JWT_SECRET` (RFC 8725).

The first key signs, and each verifies what it has signed. With several keys a token names its own:
`kid` is a hash of the key, looked up among ours and nowhere else. With one key there is no `kid`,
which earlier releases refuse; so a token without one is compared with every key.
"""

import base64
import hashlib
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

import jwt

from arkloop.shared import json_text
from arkloop.shared.config import Settings
from arkloop.shared.errors import Unauthorized
from arkloop.shared.security.encryption import split

ALGORITHM = "HS256"

_FORM = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")


def sign(settings: Settings, type_: str, claims: Mapping[str, Any]) -> str:
    """Sign claims; `type_` tells kinds of tokens apart, as their audiences do."""
    keys = _keys(settings.jwt_secret)
    kid, key = next(iter(keys.items()))
    headers = {"typ": type_, "kid": kid} if len(keys) > 1 else {"typ": type_}
    return jwt.encode(dict(claims), key, ALGORITHM, headers=headers)


def verify(
    settings: Settings,
    type_: str,
    token: str,
    *,
    audience: str,
    required: Iterable[str],
    issuer: str | None = None,
    max_length: int = 2048,
) -> dict[str, Any]:
    """Return the claims of a valid token of this type that one of our keys has signed.

    The header must be one that `sign` writes: no other algorithm, no `jku`, `jwk` or `crit` is ever
    looked at. The payload must mean one thing: no claim occurs twice.

    Raises:
        Unauthorized: anything else. Its message says so if the token has expired.
    """
    if len(token) > max_length or not _FORM.fullmatch(token):
        raise Unauthorized()
    header, payload, _ = token.split(".")
    try:
        for key in _keys_for(settings, json_text.loads(_decoded(header)), type_):
            try:
                jwt.decode(
                    token,
                    key,
                    algorithms=[ALGORITHM],
                    audience=audience,
                    issuer=issuer,
                    # A clock of another process that is ahead makes no token wrong.
                    options={"require": [*required], "strict_aud": True, "verify_iat": False},
                )
            except jwt.InvalidSignatureError:
                continue
            claims = json_text.loads(_decoded(payload))
            if type(claims.get("exp")) is not int:
                raise Unauthorized()
            return dict(claims)
    except jwt.ExpiredSignatureError as error:
        # The signature is right: only the holder of the token reads this.
        raise Unauthorized("The token has expired.") from error
    except (jwt.InvalidTokenError, ValueError) as error:
        raise Unauthorized() from error
    raise Unauthorized()


def secrets_of(settings: Settings) -> list[str]:
    """Return the keys, the one that signs first."""
    return list(_keys(settings.jwt_secret).values())


def _keys_for(settings: Settings, header: Any, type_: str) -> list[str]:
    """Return the keys that may have signed a token with this header."""
    ours = {"alg": ALGORITHM, "typ": type_}
    if header == ours:
        return secrets_of(settings)
    if isinstance(header, dict) and isinstance(kid := header.get("kid"), str):
        key = _keys(settings.jwt_secret).get(kid)
        if key is not None and header == {**ours, "kid": kid}:
            return [key]
    return []


def kid_of(key: str) -> str:
    """Name a key without giving it away: it has at least 32 random bytes."""
    return hashlib.sha256(b"arkloop kid " + key.encode()).hexdigest()[:16]


@lru_cache(maxsize=8)
def _keys(secret: str) -> dict[str, str]:
    """Return the keys of the setting by their `kid`."""
    return {kid_of(key): key for key in split(secret)}


def _decoded(segment: str) -> bytes:
    return base64.urlsafe_b64decode(segment + "=" * (-len(segment) % 4))
