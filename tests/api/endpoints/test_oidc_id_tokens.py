"""ID tokens of identity providers: their signature, their algorithm, their key, their claims."""

import hashlib
import hmac
import json
import time
from collections.abc import Callable
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from flask import Flask

from arkloop.api.auth.provider_documents import ProviderDocuments
from arkloop.shared.config import Settings
from arkloop.shared.security import egress
from tests.api.endpoints.logins_by_provider import (
    attempts,
    documents,
    encoded_bytes,
    log_in,
    now,
    org,
    provider,
    put,
    settings,
)
from tests.clients import User, error_of
from tests.identity_provider import (
    CLIENT_ID,
    CLIENT_SECRET,
    EC_KEY,
    ED_KEY,
    OTHER_RSA_KEY,
    RSA_KEY,
    SHORT_RSA_KEY,
    IdentityProvider,
    encoded,
    jwk,
)

__all__ = ["attempts", "documents", "org", "provider", "settings"]  # fixtures

Forge = Callable[[IdentityProvider, dict[str, Any]], str]


def public_pem() -> bytes:
    public = RSA_KEY.public_key()
    return public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def hs256(secret: bytes, **header: Any) -> Forge:
    """Sign by HMAC, with what is public for a secret."""

    def forge(provider: IdentityProvider, claims: dict[str, Any]) -> str:
        signed = encoded({"alg": "HS256", "kid": "one", **header}) + "." + encoded(claims)
        digest = hmac.digest(secret, signed.encode(), hashlib.sha256)
        return signed + "." + encoded_bytes(digest)

    return forge


def unsigned(algorithm: str, signature: str = "") -> Forge:
    return lambda _, claims: f"{encoded({'alg': algorithm})}.{encoded(claims)}.{signature}"


def with_claims(**changes: Any) -> Forge:
    """Change claims, `...` for none; a function is called for a time of now."""

    def forge(provider: IdentityProvider, claims: dict[str, Any]) -> str:
        called = {name: value() if callable(value) else value for name, value in changes.items()}
        changed = {**claims, **called}
        return provider.id_token({k: v for k, v in changed.items() if v is not ...})

    return forge


def with_headers(**headers: Any) -> Forge:
    def forge(provider: IdentityProvider, claims: dict[str, Any]) -> str:
        provider.headers = headers
        return provider.id_token(claims)

    return forge


def by(key: Any, algorithm: str = "RS256", kid: str | None = "one") -> Forge:
    """Sign with another key or algorithm, or name another key."""

    def forge(provider: IdentityProvider, claims: dict[str, Any]) -> str:
        provider.key, provider.algorithm, provider.kid = key, algorithm, kid
        return provider.id_token(claims)

    return forge


def by_short_key(_provider: IdentityProvider, claims: dict[str, Any]) -> str:
    """Sign with a key that the library would warn of."""
    signed = encoded({"alg": "RS256", "kid": "one"}) + "." + encoded(claims)
    signature = SHORT_RSA_KEY.sign(signed.encode(), padding.PKCS1v15(), hashes.SHA256())
    return f"{signed}.{encoded_bytes(signature)}"


def publishing(*keys: dict[str, Any], then: Forge) -> Forge:
    def forge(provider: IdentityProvider, claims: dict[str, Any]) -> str:
        provider.keys = list(keys)
        return then(provider, claims)

    return forge


def payload_as(change: Callable[[str], str]) -> Forge:
    """Sign a payload whose text was changed, with the right key."""

    def forge(provider: IdentityProvider, claims: dict[str, Any]) -> str:

        text = change(json.dumps(claims)).encode()
        return jwt.api_jws.encode(text, RSA_KEY, "RS256", headers={"kid": "one"})

    return forge


def tampered(provider: IdentityProvider, claims: dict[str, Any]) -> str:
    header, _, signature = provider.id_token(claims).split(".")
    return f"{header}.{encoded({**claims, 'sub': 'sub-of-an-admin'})}.{signature}"


FORGED: dict[str, Forge] = {
    "alg none": unsigned("none"),
    "alg None with a signature": unsigned("None", "eA"),
    "alg NONE": unsigned("NONE"),
    "no alg": lambda _, claims: f"{encoded({'kid': 'one'})}.{encoded(claims)}.eA",
    "HS256 with the public key as PEM": hs256(public_pem()),
    "HS256 with the public key as JWK": hs256(json.dumps(jwk(RSA_KEY)).encode()),
    "HS256 with the modulus": hs256(jwk(RSA_KEY)["n"].encode()),
    "HS256 with the client's secret": hs256(CLIENT_SECRET.encode()),
    "HS256 with an empty secret": hs256(b""),
    "a key of its own under a kid that is known": by(OTHER_RSA_KEY),
    "a kid that is not known": by(OTHER_RSA_KEY, kid="two"),
    "a kid that is a path": by(OTHER_RSA_KEY, kid="../../dev/null"),
    "a kid that is SQL": by(OTHER_RSA_KEY, kid="x' UNION SELECT 'key"),
    "a kid that is a URL": by(OTHER_RSA_KEY, kid="http://127.0.0.1:9/jwks"),
    "no kid with another key": by(OTHER_RSA_KEY, kid=None),
    "another algorithm of the family": by(RSA_KEY, "RS384"),
    "PSS instead of PKCS": by(RSA_KEY, "PS256"),
    "another family whose key is published": publishing(jwk(EC_KEY), then=by(EC_KEY, "ES256")),
    "Ed25519, which is published": publishing(jwk(ED_KEY), then=by(ED_KEY, "EdDSA")),
    "a key of its own in the header": with_headers(jwk=jwk(RSA_KEY)),
    "an address of keys in the header": with_headers(jku="http://127.0.0.1:9/jwks"),
    "a certificate in the header": with_headers(x5c=["MIIB"]),
    "an address of a certificate in the header": with_headers(x5u="http://127.0.0.1:9/crt"),
    "an extension that is critical": with_headers(crit=["exp"], exp=1),
    "an access token": with_headers(typ="at+jwt"),
    "a logout token": with_headers(typ="logout+jwt"),
    "another issuer": with_claims(iss="https://evil.example"),
    "the issuer with a slash": lambda p, claims: p.id_token({**claims, "iss": p.url + "/"}),
    "no issuer": with_claims(iss=...),
    "a list of issuers": lambda p, claims: json_token({**claims, "iss": [p.url]}),
    "another audience": with_claims(aud="another-client"),
    "no audience": with_claims(aud=...),
    "an empty list of audiences": with_claims(aud=[]),
    "another audience beside ours": with_claims(aud=[CLIENT_ID, "another-client"]),
    "both, authorized for us": with_claims(aud=[CLIENT_ID, "other"], azp=CLIENT_ID),
    "another authorized party": with_claims(azp="another-client"),
    "null as authorized party": with_claims(azp=None),
    "another nonce": with_claims(nonce="another"),
    "no nonce": with_claims(nonce=...),
    "null as nonce": with_claims(nonce=None),
    "expired": with_claims(exp=lambda: now() - 3_600),
    "expired beyond the leeway": with_claims(exp=lambda: now() - 120),
    "no end": with_claims(exp=...),
    "an end that is a text": with_claims(exp=lambda: str(now() + 300)),
    "an end that is a fraction": with_claims(exp=lambda: now() + 300.5),
    "an end that is true": with_claims(exp=True),
    "an end of 1e308": with_claims(exp=1e308),
    "issued in the future": with_claims(iat=lambda: now() + 3_600),
    "issued a day ago": with_claims(iat=lambda: now() - 86_400),
    "no time of issue": with_claims(iat=...),
    "not yet valid": with_claims(nbf=lambda: now() + 3_600),
    "no subject": with_claims(sub=...),
    "an empty subject": with_claims(sub=""),
    "a subject that is a number": lambda _, claims: json_token({**claims, "sub": 1}),
    "a subject of 256 characters": with_claims(sub="x" * 256),
    "a subject with NUL": with_claims(sub="sub\0"),
    "the hash of another access token": with_claims(at_hash="AAAAAAAAAAAAAAAAAAAAAA"),
    "a claim that is there twice": payload_as(lambda text: '{"sub": "root", ' + text[1:]),
    "a payload that is a list": payload_as(lambda text: f"[{text}]"),
    "a payload that is not JSON": payload_as(lambda _: "sub"),
    "a payload that was changed": tampered,
    "four parts": lambda p, claims: p.id_token(claims) + ".x",
    "no signature": lambda p, claims: p.id_token(claims).rpartition(".")[0] + ".",
    "a token that is too long": with_claims(name="x" * 20_000),
    "a short RSA key": publishing(jwk(SHORT_RSA_KEY), then=by_short_key),
    "a key for encryption": publishing(jwk(RSA_KEY, use="enc"), then=by(RSA_KEY)),
    "a key of another algorithm": publishing(jwk(RSA_KEY, alg="PS256"), then=by(RSA_KEY)),
    "a key that is not for signatures": publishing(
        jwk(RSA_KEY, key_ops=["encrypt"]), then=by(RSA_KEY)
    ),
    "a key whose uses are no list": publishing(jwk(RSA_KEY, key_ops=5), then=by(RSA_KEY)),
    "two keys with one kid": publishing(jwk(OTHER_RSA_KEY), jwk(RSA_KEY), then=by(RSA_KEY)),
    "no kid among several keys": publishing(
        jwk(OTHER_RSA_KEY, "two"), jwk(RSA_KEY), then=by(RSA_KEY, kid=None)
    ),
    "no published key": publishing(then=by(RSA_KEY)),
    "a published secret": publishing(
        {"kty": "oct", "k": "c2VjcmV0", "kid": "one"}, then=hs256(b"secret")
    ),
}


def json_token(claims: dict[str, Any]) -> str:
    """Sign claims of types that the library would not sign."""

    payload = json.dumps(claims).encode()
    return jwt.api_jws.encode(payload, RSA_KEY, "RS256", headers={"kid": "one"})


@pytest.mark.parametrize("kind", FORGED)
def test_a_forged_id_token_is_refused(
    org: User, provider: IdentityProvider, app: Flask, kind: str
) -> None:
    """Nobody is logged in by it, and no address in it is asked."""
    provider.forge = FORGED[kind]
    client = app.test_client()
    began = time.thread_time()
    response = log_in(client, org, provider)
    seconds = time.thread_time() - began

    assert (403, "auth.login_refused") == error_of(response)
    assert "reply was refused" in (response.json or {})["message"]
    assert 401 == client.post("/v1/auth/refresh").status_code
    assert seconds < 2
    assert {"/.well-known/openid-configuration", "/jwks", "/token"} >= {*provider.asked}


def test_a_right_id_token_is_taken(org: User, provider: IdentityProvider, app: Flask) -> None:
    """What the forged ones were made of; also with one audience in a list, and without a kid."""
    for forge in (
        None,
        with_claims(aud=[CLIENT_ID], azp=CLIENT_ID, nbf=now),
        by(RSA_KEY, kid=None),
        with_headers(typ="JWT", x5t="of no concern"),
        publishing(jwk(OTHER_RSA_KEY, "two"), jwk(EC_KEY, "three"), jwk(RSA_KEY), then=by(RSA_KEY)),
    ):
        provider.forge, provider.headers = forge, {}
        assert 200 == log_in(app.test_client(), org, provider).status_code


@pytest.mark.parametrize(
    ("algorithm", "key"), [("ES256", EC_KEY), ("EdDSA", ED_KEY), ("PS256", RSA_KEY)]
)
def test_the_org_names_the_algorithm(
    alice: User, provider: IdentityProvider, app: Flask, algorithm: str, key: Any
) -> None:
    """Any algorithm but this one is refused."""
    fields = {"signing_algorithm": algorithm, "email_domains": [provider.domain]}
    assert 200 == put(alice, provider, **fields).status_code
    provider.key, provider.algorithm, provider.keys = key, algorithm, [jwk(key), jwk(RSA_KEY, "2")]
    assert 200 == log_in(app.test_client(), alice, provider).status_code
    provider.key, provider.algorithm, provider.kid = RSA_KEY, "RS256", "2"
    assert (403, "auth.login_refused") == error_of(log_in(app.test_client(), alice, provider))


def test_a_key_that_the_provider_has_added_is_found(
    org: User, provider: IdentityProvider, app: Flask
) -> None:
    """A `kid` that is not known has the keys read again; one that was withdrawn is gone then."""
    assert 200 == log_in(app.test_client(), org, provider).status_code
    provider.key, provider.kid, provider.keys = OTHER_RSA_KEY, "two", [jwk(OTHER_RSA_KEY, "two")]
    assert 200 == log_in(app.test_client(), org, provider).status_code
    provider.key, provider.kid = RSA_KEY, "one"
    assert (403, "auth.login_refused") == error_of(log_in(app.test_client(), org, provider))


def test_tokens_do_not_decide_how_often_keys_are_read(
    org: User, provider: IdentityProvider, app: Flask, settings: Settings
) -> None:
    """A kid of nobody's has them read once in a while; everything else is kept for an hour."""
    policy = egress.Policy.of(settings.allowed_networks)
    app.extensions["arkloop.provider_documents"] = ProviderDocuments(policy)
    provider.asked.clear()
    for number in range(5):
        provider.forge = by(OTHER_RSA_KEY, kid=f"kid-{number}")
        assert 403 == log_in(app.test_client(), org, provider).status_code

    assert 1 == provider.asked.count("/jwks")
    assert 1 == provider.asked.count("/.well-known/openid-configuration")
