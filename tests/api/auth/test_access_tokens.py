"""Access tokens: the one form that is ours is taken, everything else is a 401 (RFC 8725)."""

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from flask.testing import FlaskClient

from arkloop.api.auth import access_tokens
from arkloop.shared.config import Settings
from arkloop.shared.errors import Unauthorized
from tests.clients import User, error_of

HEADER = {"alg": "HS256", "typ": "at+jwt"}
PUBLIC_KEY = "-----BEGIN PUBLIC KEY-----\nMFwwDQYJKoZIhvcNAQEB\n-----END PUBLIC KEY-----\n"


def base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def signed(header: Any, claims: Any, secret: str, digest: Any = hashlib.sha256) -> str:
    """Sign a token of these parts, which are objects or ready JSON."""
    parts = [
        base64url((part if isinstance(part, str) else json.dumps(part)).encode())
        for part in (header, claims)
    ]
    signature = hmac.digest(secret.encode(), ".".join(parts).encode(), digest)
    return ".".join((*parts, base64url(signature)))


@pytest.fixture
def claims(alice: User) -> dict[str, Any]:
    """The claims of a token of alice's."""
    payload = alice.token.split(".")[1]
    return dict(json.loads(base64.urlsafe_b64decode(payload + "==")))


@pytest.fixture
def status_of(client: FlaskClient) -> Callable[[str], int]:
    """Call it for what a token gets; a 401 always has its challenge."""

    def status(token: str) -> int:
        response = client.get("/v1/me", headers={"Authorization": f"Bearer {token}"})
        if response.status_code == 401:
            assert "auth.unauthorized" == error_of(response)[1]
            assert "Bearer" == response.headers["WWW-Authenticate"]
        return response.status_code

    return status


Status = Callable[[str], int]


def test_a_token_made_by_hand_is_like_ours(
    claims: dict[str, Any], settings: Settings, status_of: Status
) -> None:
    """Proves the other tests: what they change is all that is wrong."""
    assert 200 == status_of(signed(HEADER, claims, settings.jwt_secret))


def test_a_token_lives_for_15_minutes(claims: dict[str, Any]) -> None:
    """An access token is valid for 15 minutes, to the second."""
    assert 15 * 60 == claims["exp"] - claims["iat"]
    assert abs(time.time() - claims["iat"]) < 60


@pytest.mark.parametrize(
    "changes",
    [
        {"exp": None},
        {"exp": 1},
        {"exp": "9999999999"},
        {"exp": 9999999999.5},
        {"exp": 1e308},
        {"exp": 2**62},
        {"exp": True},
        {"exp": [9999999999]},
        {"nbf": 9999999999},
        {"nbf": "soon"},
        {"iss": None},
        {"iss": "somebody"},
        {"iss": ["arkloop"]},
        {"aud": None},
        {"aud": "another"},
        {"aud": ["arkloop-api"]},
        {"aud": ["arkloop-api", "another"]},
        {"sub": None},
        {"sub": "x"},
        {"sub": 1},
        {"sub": "01a20e5a-2b91-76ef-b381-d919c4ad9778"},
        {"org": None},
        {"org": "01a20e5a-2b91-76ef-b381-d919c4ad9778"},
        {"sid": None},
        {"sid": "01a20e5a-2b91-76ef-b381-d919c4ad9778"},
    ],
    ids=str,
)
def test_claims_that_are_not_in_order_are_refused(
    claims: dict[str, Any], settings: Settings, status_of: Status, changes: dict[str, Any]
) -> None:
    """Missing, mistyped, out of time, for or from somebody else; signed rightly all the same."""
    changed = {name: value for name, value in {**claims, **changes}.items() if value is not None}

    assert 401 == status_of(signed(HEADER, changed, settings.jwt_secret))


@pytest.mark.parametrize(
    "header",
    [
        {**HEADER, "alg": "none"},
        {**HEADER, "alg": "None"},
        {**HEADER, "alg": "NONE"},
        {**HEADER, "alg": "HS512"},
        {**HEADER, "alg": "RS256"},
        {**HEADER, "alg": ""},
        {"typ": "at+jwt"},
        {"alg": "HS256"},
        {**HEADER, "typ": "JWT"},
        {**HEADER, "typ": "stream-ticket+jwt"},
        {**HEADER, "kid": "../../dev/null"},
        {**HEADER, "kid": "' OR 1=1 --"},
        {**HEADER, "kid": "https://evil.example.com/key"},
        {**HEADER, "kid": "\0"},
        {**HEADER, "kid": "k" * 10_000},
        {**HEADER, "kid": "unknown"},
        {**HEADER, "jku": "https://evil.example.com/jwks.json"},
        {**HEADER, "x5u": "https://evil.example.com/cert.pem"},
        {**HEADER, "jwk": {"kty": "oct", "k": "AAAA"}},
        {**HEADER, "crit": ["unknown"], "unknown": 1},
        {**HEADER, "b64": False, "crit": ["b64"]},
        '{"alg": "HS256", "alg": "none", "typ": "at+jwt"}',
        "[]",
        "null",
        "x",
    ],
    ids=lambda header: str(header)[:60],
)
def test_any_other_header_is_refused(
    claims: dict[str, Any], settings: Settings, status_of: Status, header: Any
) -> None:
    """A header has one algorithm and one type, and names no key."""
    assert 401 == status_of(signed(header, claims, settings.jwt_secret))


@pytest.mark.parametrize("secret", ["", "another secret of a good length", PUBLIC_KEY])
def test_another_key_is_refused(claims: dict[str, Any], status_of: Status, secret: str) -> None:
    """A token signed with another key is refused, even if that key is public."""
    assert 401 == status_of(signed(HEADER, claims, secret))


def test_another_digest_is_refused(
    claims: dict[str, Any], settings: Settings, status_of: Status
) -> None:
    """The header's algorithm is the signature's."""
    assert 401 == status_of(signed(HEADER, claims, settings.jwt_secret, hashlib.sha512))


def test_claims_that_are_given_twice_are_refused(
    claims: dict[str, Any], settings: Settings, status_of: Status
) -> None:
    """Two readers could see two users."""
    text = json.dumps(claims)[:-1] + f', "sub": "{claims["sub"]}"}}'

    assert 401 == status_of(signed(HEADER, text, settings.jwt_secret))


@pytest.mark.parametrize("payload", ["[]", "null", "1", "{", '{"exp": NaN}'])
def test_a_payload_that_is_no_object_is_refused(
    settings: Settings, status_of: Status, payload: str
) -> None:
    """A right signature makes nothing right."""
    assert 401 == status_of(signed(HEADER, payload, settings.jwt_secret))


def test_every_part_of_a_token_counts(alice: User, status_of: Status) -> None:
    """Cut, swapped, doubled, without its signature, with anything around it: all wrong."""
    header, payload, signature = alice.token.split(".")
    for token in (
        f"{header}.{payload}.",
        f"{header}.{payload}",
        f"{header}..{signature}",
        f".{payload}.{signature}",
        f"{payload}.{header}.{signature}",
        f"{header}.{payload}.{signature}.{signature}",
        f"{header}.{payload}.{signature[:-2]}",
        f"{header}.{payload}.{signature}=",
        f"{header}.{payload}. {signature}",
        f"{alice.token},{alice.token}",
        f"{alice.token} x",
        "null",
        "undefined",
        "é",
    ):
        assert 401 == status_of(token), token


def test_a_huge_token_is_refused_at_once(settings: Settings) -> None:
    """A megabyte of it is not even decoded."""
    token = ".".join(["a" * 1_000_000] * 3)
    began = time.thread_time()

    with pytest.raises(Unauthorized):
        access_tokens.verify(settings, token)

    assert time.thread_time() - began < 0.05


def test_the_secret_is_not_shown(alice: User, settings: Settings) -> None:
    """Settings that end up in a log or traceback keep it to themselves."""
    claims = access_tokens.verify(settings, alice.token)

    assert (alice.id, alice.org_id) == (claims.user_id, claims.org_id)
    assert settings.jwt_secret not in repr(settings)
