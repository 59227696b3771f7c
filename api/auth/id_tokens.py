"""ID tokens of identity providers (OpenID Connect Core 1.0, 3.1.3.7; RFC 8725).

Which one algorithm a provider signs with is said by the org, not by the token; `kid` chooses among
the provider's published keys, and no key or address in a token is ever looked at.
"""

import base64
import hashlib
import hmac
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jwt
from jwt.exceptions import PyJWTError

from arkloop.shared import json_text

#: Each with the key type, and the curve if there is one, that it requires (RFC 7518, RFC 8037).
ALGORITHMS: Mapping[str, tuple[str, str | None]] = {
    **dict.fromkeys(("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"), ("RSA", None)),
    "ES256": ("EC", "P-256"),
    "ES384": ("EC", "P-384"),
    "ES512": ("EC", "P-521"),
    "EdDSA": ("OKP", "Ed25519"),
}
LEEWAY_SECONDS = 60
#: A token is made for the login that waits for it.
MAX_AGE_SECONDS = 600
MAX_LENGTH = 16_384
MAX_SUBJECT_LENGTH = 255
MIN_RSA_BITS = 2048

_FORM = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
#: Headers that name a key or an extension. Nothing of the kind is used.
_FORBIDDEN_HEADERS = ("crit", "jku", "jwk", "x5c", "x5u", "b64", "enc", "zip")
_HASHES = {"256": hashlib.sha256, "384": hashlib.sha384, "512": hashlib.sha512}

Jwk = Mapping[str, Any]


class BadIdToken(Exception):
    """The token proves nothing; the message is for the log, and has nothing of the token."""


class BadKey(BadIdToken):
    """A token that no published key fits: perhaps they were read too long ago."""


def verify(
    token: str,
    keys_of: Callable[[str | None], Sequence[Jwk]],
    *,
    algorithm: str,
    issuer: str,
    client_id: str,
    nonce: str,
    access_token: str | None = None,
) -> dict[str, Any]:
    """Return the claims of a token of this issuer, for this client and this login.

    `keys_of` returns the provider's published keys with a `kid`, or all of them for None.

    Raises:
        BadIdToken: `BadKey` if other keys could verify it.
    """
    if len(token) > MAX_LENGTH or not _FORM.fullmatch(token):
        raise BadIdToken("not a signed JWT")
    header, payload, _ = token.split(".")
    kid = _kid(_object(header), algorithm)
    key = _key(keys_of(kid), algorithm)
    try:
        jwt.decode(
            token,
            key,
            algorithms=[algorithm],
            issuer=issuer,
            leeway=LEEWAY_SECONDS,
            options={"require": ["iss", "sub", "aud", "exp", "iat"], "verify_aud": False},
        )
    except jwt.InvalidSignatureError:
        raise BadKey("another signature") from None
    except (PyJWTError, ValueError, TypeError, OverflowError) as error:
        raise BadIdToken(type(error).__name__) from None
    claims = _object(payload)
    _check_times(claims)
    _check_audience(claims, client_id)
    _check_login(claims, nonce, access_token, algorithm)
    return claims


def _kid(header: Mapping[str, Any], algorithm: str) -> str | None:
    """Return which key a header names. Raises: BadIdToken: a header that could mislead."""
    if header.get("alg") != algorithm:
        raise BadIdToken("another algorithm than that of the provider")
    if named := [name for name in _FORBIDDEN_HEADERS if name in header]:
        raise BadIdToken(f"header {named[0]}")
    type_ = header.get("typ", "JWT")
    if not isinstance(type_, str) or type_.upper() != "JWT":
        raise BadIdToken("another type of token")
    kid = header.get("kid")
    if kid is not None and not isinstance(kid, str):
        raise BadIdToken("kid is no string")
    return kid


def _key(published: Sequence[Jwk], algorithm: str) -> Any:
    """Return the only one of these keys that this algorithm can use. Raises: BadKey."""
    kty, curve = ALGORITHMS[algorithm]
    fitting = [
        jwk
        for jwk in published
        if jwk.get("kty") == kty
        and (curve is None or jwk.get("crv") == curve)
        and jwk.get("use", "sig") == "sig"
        and jwk.get("alg", algorithm) == algorithm
        and _can_verify(jwk.get("key_ops", ["verify"]))
        and "k" not in jwk
        and "d" not in jwk  # everybody could sign with it
    ]
    if len(fitting) != 1:
        raise BadKey("no such key" if not fitting else "no kid, and several keys")
    try:
        key = jwt.PyJWK(dict(fitting[0]), algorithm).key
    except (PyJWTError, ValueError, TypeError, KeyError) as error:
        raise BadKey("the published key cannot be read") from error
    if kty == "RSA" and key.key_size < MIN_RSA_BITS:
        raise BadKey(f"the published key has less than {MIN_RSA_BITS} bits")
    return key


def _can_verify(uses: Any) -> bool:
    return isinstance(uses, list) and "verify" in uses


def _check_times(claims: Mapping[str, Any]) -> None:
    # Else 1e308, "0" or true would be times to some readers.
    for name in ("exp", "iat", "nbf"):
        if name in claims and type(claims[name]) is not int:
            raise BadIdToken(f"{name} is no whole number")
    if claims["iat"] < time.time() - MAX_AGE_SECONDS - LEEWAY_SECONDS:
        raise BadIdToken("issued too long ago")


def _check_audience(claims: Mapping[str, Any], client_id: str) -> None:
    audience = claims["aud"]
    # Other clients of the provider are not trusted with tokens for this one.
    if audience != client_id and audience != [client_id]:
        raise BadIdToken("another audience")
    if claims.get("azp", client_id) != client_id:
        raise BadIdToken("another authorized party")


def _check_login(
    claims: Mapping[str, Any], nonce: str, access_token: str | None, algorithm: str
) -> None:
    given = claims.get("nonce")
    if not isinstance(given, str) or not hmac.compare_digest(given.encode(), nonce.encode()):
        raise BadIdToken("another nonce")
    subject = claims["sub"]
    if not isinstance(subject, str) or not 1 <= len(subject) <= MAX_SUBJECT_LENGTH:
        raise BadIdToken("sub is no subject")
    if "at_hash" in claims and access_token is not None:
        digest = _HASHES.get(algorithm[2:], hashlib.sha512)(access_token.encode()).digest()
        half = base64.urlsafe_b64encode(digest[: len(digest) // 2]).rstrip(b"=").decode()
        if claims["at_hash"] != half:
            raise BadIdToken("another access token")


def _object(segment: str) -> dict[str, Any]:
    """Read a part of a token. Raises: BadIdToken: not an object that means one thing."""
    try:
        found = json_text.loads(base64.urlsafe_b64decode(segment + "=" * (-len(segment) % 4)))
    except ValueError as error:
        raise BadIdToken("not the JSON of a token") from error
    if not isinstance(found, dict):
        raise BadIdToken("not an object")
    return found
