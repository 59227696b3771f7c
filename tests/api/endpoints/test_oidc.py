"""Logins by an identity provider: who gets in, in which role, and what a reply must prove.

`tests/peers/test_oidc_provider.py` does the same with a provider that others wrote.
"""

import base64
import hashlib
import hmac
import json
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any
from urllib.parse import parse_qs, urlsplit

import jwt
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import select, update
from werkzeug.test import TestResponse

from arkloop.api.auth import provider_logins, signed_tokens
from arkloop.api.auth.provider_documents import ProviderDocuments
from arkloop.shared.config import Settings
from arkloop.shared.security import egress
from arkloop.shared.storage.connections import Connections
from arkloop.shared.storage.tables.accounts import refresh_tokens
from tests.clients import PASSWORD, Register, User, details_of, error_of
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
from tests.waiting import eventually, in_parallel

BEGIN, CALLBACK = "/v1/auth/oidc/begin", "/v1/auth/oidc/callback"
HOME = "https://runs.example.com"
Forge = Callable[[IdentityProvider, dict[str, Any]], str]


@pytest.fixture(scope="module")
def settings(settings: Settings) -> Settings:
    allowed = ("127.0.0.0/8",)
    origins = ("https://app.example.com",)
    return replace(settings, public_url=HOME, allowed_networks=allowed, cors_origins=origins)


@pytest.fixture(autouse=True)
def documents(app: Flask, settings: Settings) -> None:
    """Forget the documents of other tests, and read those of unknown keys again at once."""
    policy = egress.Policy.of(settings.allowed_networks)
    app.extensions["arkloop.provider_documents"] = ProviderDocuments(policy, refetch_seconds=0)


@pytest.fixture(autouse=True)
def attempts(app: Flask, connections: Connections) -> None:
    """Let no test count for the limit on requests of one address that others meet."""
    for key in connections.redis.scan_iter(f"*{connections.keys.provider_attempts()}*"):
        connections.redis.delete(key)


@pytest.fixture
def provider() -> Iterator[IdentityProvider]:
    with IdentityProvider() as started:
        yield started


def path(user: User) -> str:
    return f"/v1/orgs/{user.org_id}/identity-provider"


def put(user: User, provider: IdentityProvider, **fields: Any) -> TestResponse:
    body = {"issuer": provider.url, "client_id": CLIENT_ID, "client_secret": CLIENT_SECRET}
    return user.call("PUT", path(user), json={**body, **fields})


@pytest.fixture
def org(alice: User, provider: IdentityProvider) -> User:
    """The owner of an org whose people log in by the provider; those of corp.example join."""
    response = put(alice, provider, email_domains=[provider.domain])
    assert 200 == response.status_code, response.text
    return alice


def begin(client: FlaskClient, owner: User, **fields: Any) -> str:
    response = client.post(BEGIN, json={"org_id": str(owner.org_id), **fields})
    assert 200 == response.status_code, response.text
    return str((response.json or {})["authorization_url"])


def log_in(client: FlaskClient, owner: User, provider: IdentityProvider, **fields: Any) -> Any:
    query = provider.authorize(begin(client, owner, **fields))
    return client.get(f"{CALLBACK}?{query}")


def user_of(client: FlaskClient, response: TestResponse) -> dict[str, Any]:
    """Return what `/v1/me` shows to who has just logged in, by the token of the cookie."""
    assert response.status_code in (200, 303), response.text
    tokens = client.post("/v1/auth/refresh")
    assert 200 == tokens.status_code, tokens.text
    header = {"Authorization": f"Bearer {(tokens.json or {})['access_token']}"}
    return dict(client.get("/v1/me", headers=header).json or {}) | {"header": header}


def actions(owner: User) -> list[str]:
    return [entry["action"] for entry in owner.get("/v1/audit-logs").json or []]


# ---- who gets in ---------------------------------------------------------------------


def test_somebody_of_the_org_s_domain_joins_and_comes_back(
    org: User, provider: IdentityProvider, app: Flask
) -> None:
    """The first login makes a user without a password; later ones find it by `sub` alone."""
    client, again = app.test_client(), app.test_client()
    first = user_of(client, log_in(client, org, provider))
    provider.claims = {"email": "robert@elsewhere.example", "email_verified": False}
    later = user_of(again, log_in(again, org, provider))

    assert (str(org.org_id), "member") == (first["org_id"], first["role"])
    assert first["username"].startswith("bob")
    assert f"bob@{provider.domain}" == first["email"]
    assert first["id"] == later["id"]
    body = {"login": first["email"], "password": "none"}
    assert 401 == app.test_client().post("/v1/auth/login", json=body).status_code
    done = actions(org)
    assert {"user.created", "member.joined", "identity_provider.changed"} <= set(done)
    assert 2 + 1 == done.count("auth.logged_in")  # and the owner's own


def test_the_browser_gets_both_tokens(org: User, provider: IdentityProvider, app: Flask) -> None:
    """A page, the cookie with the refresh token, and none with what the login needed."""
    client = app.test_client()
    response = log_in(client, org, provider)

    assert "You are logged in." in response.text
    cookies = response.headers.getlist("Set-Cookie")
    [kept] = [one for one in cookies if one.startswith("arkloop_refresh_token=")]
    assert "HttpOnly" in kept and "SameSite=Strict" in kept and "Path=/v1/auth" in kept
    [gone] = [one for one in cookies if one.startswith("arkloop_oidc_login=")]
    assert "Max-Age=0" in gone
    assert "canary" not in response.text + str(cookies)


def test_a_member_is_found_by_their_verified_address(
    org: User, provider: IdentityProvider, app: Flask, register: Register
) -> None:
    """They keep user and role, and from then on log in by the provider alone."""
    admin = register(org_of=org, role="admin")
    provider.claims = {"email": f"{admin.login}@EXAMPLE.com"}
    client = app.test_client()
    seen = user_of(client, log_in(client, org, provider))

    assert (str(admin.id), "admin") == (seen["id"], seen["role"])
    body = {"login": admin.login, "password": PASSWORD}
    assert 401 == app.test_client().post("/v1/auth/login", json=body).status_code
    assert 401 == admin.get("/v1/me").status_code
    assert "identity.linked" in actions(org)


@pytest.mark.parametrize("case", ["owner", "member of two"])
def test_an_owner_and_a_member_of_two_orgs_keep_their_password(
    org: User, provider: IdentityProvider, app: Flask, register: Register, case: str
) -> None:
    """The one for a provider that is out of order, the other since that is another org's, too."""
    user = register(org_of=org, role="owner") if case == "owner" else register()
    if case != "owner":
        name = {"name": "x", "role": "member"}
        token = (org.post(f"/v1/orgs/{org.org_id}/invitations", name).json or {})["token"]
        body = {"login": user.login, "password": PASSWORD, "invitation": token}
        assert 200 == app.test_client().post("/v1/auth/login", json=body).status_code
    provider.claims = {"email": f"{user.login}@example.com"}
    client = app.test_client()
    assert str(user.id) == user_of(client, log_in(client, org, provider))["id"]

    body = {"login": user.login, "password": PASSWORD}
    assert 200 == app.test_client().post("/v1/auth/login", json=body).status_code


def test_somebody_invited_joins_in_the_role_of_the_invitation(
    alice: User, provider: IdentityProvider, app: Flask, register: Register
) -> None:
    """An invitation of another org is of no use, and stays open."""
    assert 200 == put(alice, provider).status_code
    other = register()
    body = {"name": "Bob", "role": "admin"}
    [token, others] = [
        (one.post(f"/v1/orgs/{one.org_id}/invitations", body).json or {})["token"]
        for one in (alice, other)
    ]
    client = app.test_client()

    refused = log_in(client, alice, provider, invitation=others)
    assert (400, "invitations.invalid") == error_of(refused)
    assert 1 == len(other.get(f"/v1/orgs/{other.org_id}/invitations").json or [])
    seen = user_of(client, log_in(client, alice, provider, invitation=token))
    assert "admin" == seen["role"]
    again = log_in(app.test_client(), alice, provider, invitation=token)
    assert (400, "invitations.invalid") == error_of(again)


STRANGERS: dict[str, tuple[str, dict[str, Any]]] = {
    "of another domain": ("not_invited", {"email": "bob@other.example"}),
    "of a domain within": ("not_invited", {"email": "bob@DOMAIN.evil.example"}),
    "of a domain below": ("not_invited", {"email": "bob@sub.DOMAIN"}),
    "with two at signs": ("address_invalid", {"email": "bob@DOMAIN@DOMAIN"}),
    "unverified": ("address_not_verified", {"email_verified": False}),
    "not said to be verified": ("address_not_verified", {"email_verified": ...}),
    "verified as a number": ("address_not_verified", {"email_verified": 1}),
    "verified as another text": ("address_not_verified", {"email_verified": "yes"}),
    "verified as null": ("address_not_verified", {"email_verified": None}),
    "without an address": ("address_not_verified", {"email": ...}),
    "with a list of addresses": ("address_not_verified", {"email": ["bob@DOMAIN"]}),
}


@pytest.mark.parametrize("who", STRANGERS)
def test_who_may_not_join_is_refused_and_recorded(
    org: User, provider: IdentityProvider, app: Flask, who: str
) -> None:
    """Nothing is made for them; the audit log has the reason."""
    reason, claims = STRANGERS[who]
    email = claims.get("email")
    if isinstance(email, str):
        claims = {**claims, "email": email.replace("DOMAIN", provider.domain)}
    provider.claims, provider.userinfo = claims, {"sub": "sub-1"}
    client = app.test_client()
    response = log_in(client, org, provider)

    assert (403, "auth.login_refused") == error_of(response)
    assert 401 == client.post("/v1/auth/refresh").status_code
    assert 1 == len(org.get(f"/v1/orgs/{org.org_id}/members").json or [])
    eventually(lambda: "auth.login_failed" in actions(org))
    entry = (org.get("/v1/audit-logs").json or [])[0]
    assert {"reason": reason} == entry["details"]
    assert "unknown" == entry["actor"]["type"]


def test_an_account_outside_the_org_is_not_taken_in_by_its_address(
    org: User, provider: IdentityProvider, app: Flask, register: Register
) -> None:
    """A person who has registered with somebody's address gets no seat in their org."""
    squatter = register()
    provider.claims = {"email": f"{squatter.login}@example.com"}
    assert 200 == put(org, provider, email_domains=["example.com"]).status_code

    assert (403, "auth.login_refused") == error_of(log_in(app.test_client(), org, provider))
    assert 200 == squatter.get("/v1/me").status_code


def test_an_address_that_was_given_to_somebody_else_is_no_way_in(
    org: User, provider: IdentityProvider, app: Flask
) -> None:
    """A new `sub` with the address of a member whom the provider knows already is refused."""
    assert 200 == log_in(app.test_client(), org, provider).status_code
    provider.claims = {"sub": "sub-2"}

    assert (403, "auth.login_refused") == error_of(log_in(app.test_client(), org, provider))


def test_who_was_removed_stays_out_until_invited(
    org: User, provider: IdentityProvider, app: Flask
) -> None:
    """Also if the domain of the address would let them join; their login has ended."""
    client = app.test_client()
    bob = user_of(client, log_in(client, org, provider))
    assert 204 == org.delete(f"/v1/orgs/{org.org_id}/members/{bob['id']}").status_code

    assert 401 == client.post("/v1/auth/refresh").status_code
    assert (403, "auth.login_refused") == error_of(log_in(client, org, provider))
    body = {"name": "Bob", "role": "member"}
    token = (org.post(f"/v1/orgs/{org.org_id}/invitations", body).json or {})["token"]
    assert bob["id"] == user_of(client, log_in(client, org, provider, invitation=token))["id"]


def test_a_provider_that_says_nothing_of_verification_can_be_believed(
    org: User, provider: IdentityProvider, app: Flask
) -> None:
    """If the org says so; what it says is false stays false."""
    fields = {"email_domains": [provider.domain], "assumes_verified_email": True}
    assert 200 == put(org, provider, **fields).status_code
    provider.claims = {"email_verified": False}
    assert (403, "auth.login_refused") == error_of(log_in(app.test_client(), org, provider))
    provider.claims = {"email_verified": ...}
    assert 200 == log_in(app.test_client(), org, provider).status_code


def test_the_address_may_be_in_userinfo_alone(
    org: User, provider: IdentityProvider, app: Flask
) -> None:
    """It is asked at the first login, and believed of this very person only."""
    provider.claims = {"email": ..., "email_verified": ...}
    claims = {"email": f"bob@{provider.domain}", "email_verified": True}
    for sub in ("sub-2", None, ["sub-1"]):
        provider.userinfo = {**claims, "sub": sub}
        refused = log_in(app.test_client(), org, provider)
        assert (403, "auth.login_refused") == error_of(refused)
    provider.userinfo = {**claims, "sub": "sub-1"}
    assert 200 == log_in(app.test_client(), org, provider).status_code
    asked = provider.asked.count("/userinfo")
    assert 200 == log_in(app.test_client(), org, provider).status_code

    assert 4 == asked == provider.asked.count("/userinfo")


def test_of_those_who_come_at_once_as_one_person_one_user_is_made(
    org: User, provider: IdentityProvider, app: Flask
) -> None:
    """The others are that user, too."""
    clients = [app.test_client() for _ in range(4)]
    queries = [provider.authorize(begin(client, org)) for client in clients]
    answers = in_parallel(4, lambda n: clients[n].get(f"{CALLBACK}?{queries[n]}"))

    assert [200] * 4 == [answer.status_code for answer in answers]
    assert 2 == len(org.get(f"/v1/orgs/{org.org_id}/members").json or [])


# ---- what such a login may -----------------------------------------------------------


def test_a_login_by_a_provider_is_bound_to_its_org(
    org: User, provider: IdentityProvider, app: Flask, register: Register
) -> None:
    """It neither sees nor ends what the user has elsewhere: its org's owners chose the provider."""
    user = register()
    body: dict[str, Any] = {"name": "x", "role": "member"}
    token = (org.post(f"/v1/orgs/{org.org_id}/invitations", body).json or {})["token"]
    body = {"login": user.login, "password": PASSWORD, "invitation": token}
    assert 200 == app.test_client().post("/v1/auth/login", json=body).status_code
    provider.claims = {"email": f"{user.login}@example.com"}
    client = app.test_client()
    seen = user_of(client, log_in(client, org, provider))

    assert [str(org.org_id)] == [one["id"] for one in seen["orgs"]]
    assert 2 == len((user.get("/v1/me").json or {})["orgs"])
    listed = (client.get("/v1/auth/sessions", headers=seen["header"]).json or {})["items"]
    assert 2 == len(listed)  # that by the invitation, and this one
    mine = (user.get("/v1/auth/sessions").json or {})["items"]
    [elsewhere] = [one["id"] for one in mine if one["is_current"]]
    ended = client.delete(f"/v1/auth/sessions/{elsewhere}", headers=seen["header"])
    assert (404, "sessions.not_found") == error_of(ended)
    assert 200 == user.get("/v1/me").status_code


def test_a_login_by_a_provider_ends_after_the_hours_of_the_org(
    org: User, provider: IdentityProvider, app: Flask, connections: Connections
) -> None:
    """However often it is refreshed: then the provider is asked whether the person is still one."""
    assert 200 == put(org, provider, email_domains=[provider.domain], session_hours=2).status_code
    client = app.test_client()
    seen = user_of(client, log_in(client, org, provider))
    assert 200 == client.post("/v1/auth/refresh").status_code

    of_user = refresh_tokens.c.user_id == seen["id"]
    with connections.transaction() as tx:
        query = select(refresh_tokens.c.expires_at, refresh_tokens.c.session_ends_at)
        rows = tx.sql.execute(query.where(of_user)).all()
        assert 1 == len({row.expires_at for row in rows}) == len({row[1] for row in rows})
        left = rows[0].expires_at.timestamp() - time.time()
        assert 7_100 < left < 7_300
        ended = {"session_ends_at": rows[0].session_ends_at.replace(year=2020)}
        tx.sql.execute(update(refresh_tokens).where(of_user).values(**ended))
    eventually(lambda: 401 == client.get("/v1/me", headers=seen["header"]).status_code)
    assert 200 == client.post("/v1/auth/refresh").status_code  # whose next one has ended
    assert 401 == client.post("/v1/auth/refresh").status_code


def test_logins_end_with_the_provider(org: User, provider: IdentityProvider, app: Flask) -> None:
    """Removed, or replaced by another issuer: nobody knows whose `sub` is whose then."""
    client = app.test_client()
    seen = user_of(client, log_in(client, org, provider))
    assert 204 == org.delete(path(org)).status_code

    assert 401 == client.get("/v1/me", headers=seen["header"]).status_code
    assert 401 == client.post("/v1/auth/refresh").status_code
    begun = app.test_client().post(BEGIN, json={"org_id": str(org.org_id)})
    assert (404, "identity_providers.not_found") == error_of(begun)


# ---- what a reply must prove ---------------------------------------------------------


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


def encoded_bytes(part: bytes) -> str:

    return base64.urlsafe_b64encode(part).rstrip(b"=").decode()


def unsigned(algorithm: str, signature: str = "") -> Forge:
    return lambda _, claims: f"{encoded({'alg': algorithm})}.{encoded(claims)}.{signature}"


def with_claims(**changes: Any) -> Forge:
    """Change claims, `...` for none."""

    def forge(provider: IdentityProvider, claims: dict[str, Any]) -> str:
        changed = {**claims, **changes}
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


NOW = int(time.time())
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
    "expired": with_claims(exp=NOW - 3_600),
    "expired beyond the leeway": with_claims(exp=NOW - 120),
    "no end": with_claims(exp=...),
    "an end that is a text": with_claims(exp=str(NOW + 300)),
    "an end that is a fraction": with_claims(exp=NOW + 300.5),
    "an end that is true": with_claims(exp=True),
    "an end of 1e308": with_claims(exp=1e308),
    "issued in the future": with_claims(iat=NOW + 3_600),
    "issued a day ago": with_claims(iat=NOW - 86_400),
    "no time of issue": with_claims(iat=...),
    "not yet valid": with_claims(nbf=NOW + 3_600),
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
    began = time.monotonic()
    response = log_in(client, org, provider)
    seconds = time.monotonic() - began

    assert (403, "auth.login_refused") == error_of(response)
    assert "reply was refused" in (response.json or {})["message"]
    assert 401 == client.post("/v1/auth/refresh").status_code
    assert seconds < 2
    assert {"/jwks", "/token"} >= {*provider.asked[1:]}


def test_a_right_id_token_is_taken(org: User, provider: IdentityProvider, app: Flask) -> None:
    """What the forged ones were made of; also with one audience in a list, and without a kid."""
    for forge in (
        None,
        with_claims(aud=[CLIENT_ID], azp=CLIENT_ID, nbf=NOW),
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
    """One, and no other is taken any more."""
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


# ---- whose reply it is ---------------------------------------------------------------


def test_a_reply_is_taken_once(org: User, provider: IdentityProvider, app: Flask) -> None:
    """Neither the state again nor the code; also if the provider forgets what it has given."""
    client = app.test_client()
    query = provider.authorize(begin(client, org))
    [cookie] = [one for one in [client.get_cookie("arkloop_oidc_login", path=BEGIN[:13])] if one]
    assert 200 == client.get(f"{CALLBACK}?{query}").status_code
    assert (400, "auth.login_state_invalid") == error_of(client.get(f"{CALLBACK}?{query}"))

    client.set_cookie("arkloop_oidc_login", cookie.value, path=BEGIN[:13])
    assert (403, "auth.login_refused") == error_of(client.get(f"{CALLBACK}?{query}"))
    state, code = (parse_qs(query)[name][0] for name in ("state", "code"))
    challenge = provider.forms[0]["code_verifier"]
    digest = hashlib.sha256(challenge.encode()).digest()
    asked = {"code_challenge": encoded_bytes(digest), "nonce": nonce_of(cookie.value)}
    provider._codes[code] = {**asked, "redirect_uri": provider.forms[0]["redirect_uri"]}
    client.set_cookie("arkloop_oidc_login", cookie.value, path=BEGIN[:13])
    again = client.get(f"{CALLBACK}?state={state}&code={code}")
    assert (400, "auth.login_state_invalid") == error_of(again)


def test_a_reply_is_not_taken_by_who_asks_for_headers_alone(
    org: User, provider: IdentityProvider, app: Flask
) -> None:
    """A scanner of links that comes before the browser leaves the code and the state alone."""
    client = app.test_client()
    query = provider.authorize(begin(client, org))
    headers = client.head(f"{CALLBACK}?{query}")
    assert (200, []) == (headers.status_code, headers.headers.getlist("Set-Cookie"))
    assert not provider.forms
    assert 200 == client.get(f"{CALLBACK}?{query}").status_code


def nonce_of(cookie: str) -> str:

    claims = jwt.decode(cookie, options={"verify_signature": False})
    return str(claims["login"]["nonce"])


def test_a_reply_belongs_to_the_browser_that_began(
    org: User, provider: IdentityProvider, app: Flask
) -> None:
    """Nobody is logged in as somebody else by an address that they were sent (login CSRF)."""
    attacker, victim = app.test_client(), app.test_client()
    query = provider.authorize(begin(attacker, org))
    assert (400, "auth.login_state_invalid") == error_of(victim.get(f"{CALLBACK}?{query}"))
    begin(victim, org)
    assert (400, "auth.login_state_invalid") == error_of(victim.get(f"{CALLBACK}?{query}"))
    assert not provider.forms


@pytest.mark.parametrize("cookie", ["", "x", "a.b.c", "expired", "another type", "changed"])
def test_a_cookie_that_is_not_ours_begins_nothing(
    org: User, provider: IdentityProvider, app: Flask, settings: Settings, cookie: str
) -> None:
    """It is signed, for ten minutes, and for nothing else."""
    client = app.test_client()
    query = provider.authorize(begin(client, org))
    kept = client.get_cookie("arkloop_oidc_login", path=BEGIN[:13])
    assert kept is not None

    claims = jwt.decode(kept.value, options={"verify_signature": False})
    forged = {
        "expired": signed_tokens.sign(settings, "oidc+jwt", {**claims, "exp": NOW - 60}),
        "another type": signed_tokens.sign(settings, "JWT", claims),
        "changed": kept.value[:-4] + "AAAA",
    }.get(cookie, cookie)
    client.set_cookie("arkloop_oidc_login", forged, path=BEGIN[:13])

    assert (400, "auth.login_state_invalid") == error_of(client.get(f"{CALLBACK}?{query}"))


def test_the_request_has_what_the_flow_demands(
    org: User, provider: IdentityProvider, app: Flask
) -> None:
    """Code flow with PKCE, state and nonce, none of which is used twice."""
    asked = [parse_qs(urlsplit(begin(app.test_client(), org)).query) for _ in range(2)]

    for name, value in {
        "response_type": "code",
        "client_id": CLIENT_ID,
        "redirect_uri": f"{HOME}{CALLBACK}",
        "scope": "openid email profile",
        "code_challenge_method": "S256",
    }.items():
        assert [value] == asked[0][name]
    for name in ("state", "nonce", "code_challenge"):
        assert asked[0][name] != asked[1][name]
        assert re.fullmatch("[A-Za-z0-9_-]{43}", asked[0][name][0])


def test_a_reply_of_another_issuer_is_not_exchanged(
    org: User, provider: IdentityProvider, app: Flask
) -> None:
    """Neither `iss` of somebody else, nor none of a provider that promises it (RFC 9207)."""
    client = app.test_client()
    query = provider.authorize(begin(client, org), iss="https://evil.example")
    assert (403, "auth.login_refused") == error_of(client.get(f"{CALLBACK}?{query}"))
    query = provider.authorize(begin(client, org), iss=provider.url)
    assert 200 == client.get(f"{CALLBACK}?{query}").status_code
    provider.metadata = {"authorization_response_iss_parameter_supported": True}
    assert 200 == put(org, provider).status_code
    provider.forms.clear()
    assert (403, "auth.login_refused") == error_of(log_in(client, org, provider))
    assert not provider.forms


def test_a_login_that_was_begun_with_another_provider_is_over(
    org: User, provider: IdentityProvider, app: Flask
) -> None:
    """Its code would go to another server than the one that has made it."""
    client = app.test_client()
    query = provider.authorize(begin(client, org))
    with IdentityProvider() as other:
        assert 200 == put(org, other).status_code
        assert (400, "auth.login_state_invalid") == error_of(client.get(f"{CALLBACK}?{query}"))
        assert not other.forms and not provider.forms


def test_a_provider_that_is_removed_during_a_login_lets_nobody_in(
    org: User, provider: IdentityProvider, app: Flask
) -> None:
    """While the code is exchanged, an owner removes the provider: the login is over."""

    def forge(provider: IdentityProvider, claims: dict[str, Any]) -> str:
        assert 204 == org.call("DELETE", path(org)).status_code
        return provider.id_token(claims)

    provider.forge = forge
    client = app.test_client()
    assert (400, "auth.login_state_invalid") == error_of(log_in(client, org, provider))
    assert 401 == client.post("/v1/auth/refresh").status_code


def test_who_cancels_at_the_provider_gets_back(
    org: User, provider: IdentityProvider, app: Flask
) -> None:
    """To the page that was named, with the code of the error; or sees it, without one."""
    client = app.test_client()
    state = parse_qs(urlsplit(begin(client, org)).query)["state"][0]
    response = client.get(f"{CALLBACK}?state={state}&error=access_denied")
    assert (403, "auth.login_refused") == error_of(response)

    url = begin(client, org, return_to="https://app.example.com/start?tab=1")
    state = parse_qs(urlsplit(url).query)["state"][0]
    response = client.get(f"{CALLBACK}?state={state}&error=access_denied")
    back = "https://app.example.com/start?tab=1&error=auth.login_refused"
    assert (303, back) == (response.status_code, response.headers["Location"])


def test_the_browser_returns_to_a_page_of_the_product(
    org: User, provider: IdentityProvider, app: Flask
) -> None:
    """It then has the cookie that the page gets its access token by."""
    client = app.test_client()
    response = log_in(client, org, provider, return_to=f"{HOME}/console/")
    assert (303, f"{HOME}/console/") == (response.status_code, response.headers["Location"])
    assert str(org.org_id) == user_of(client, response)["org_id"]


@pytest.mark.parametrize(
    "url",
    [
        "https://evil.example/",
        "https://runs.example.com.evil.example/",
        "https://runs.example.com",
        "https://runs.example.com@evil.example/",
        "http://runs.example.com/",
        "//evil.example/",
        "/console",
        "javascript:alert(1)",
        "https://runs.example.com/\\evil",
        "https://runs.example.com/#x",
        "https://runs.example.com/ x",
        "https://runs.example.com/\r\nSet-Cookie: x=1",
        "https://runs.example.com/\u2025",
        "",
        "https://runs.example.com/" + "x" * 1_000,
    ],
)
def test_a_login_does_not_lead_elsewhere(org: User, app: Flask, url: str) -> None:
    """The field is named."""
    body = {"org_id": str(org.org_id), "return_to": url}
    response = app.test_client().post(BEGIN, json=body)
    assert ["return_to"] == list(details_of(response))


def test_a_login_that_no_cookie_holds_is_not_begun(
    org: User, provider: IdentityProvider, app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A browser would drop the cookie, and the login would fail at its end."""
    monkeypatch.setattr(provider_logins, "MAX_COOKIE_LENGTH", 3_000)  # less than an issuer can add
    client = app.test_client()

    def begun(quotes: int) -> TestResponse:
        body = {"org_id": str(org.org_id), "return_to": f"{HOME}/" + '"' * quotes}
        return client.post(BEGIN, json=body)

    assert ["return_to"] == list(details_of(begun(900)))
    assert 200 == begun(400).status_code


def test_a_page_of_another_origin_begins_no_login(org: User, app: Flask) -> None:
    """As it cannot log in by a password."""
    headers = {"Origin": "https://evil.example"}
    response = app.test_client().post(BEGIN, json={"org_id": str(org.org_id)}, headers=headers)
    assert (403, "auth.forbidden") == error_of(response)


# ---- providers that do not work ------------------------------------------------------


@pytest.mark.parametrize(
    "response",
    [
        (500, {"error": "server_error"}),
        (302, {}),
        (200, "no JSON"),
        (200, []),
        (200, "x" * 300_000),
    ],
)
def test_a_provider_out_of_order_is_503(
    org: User, provider: IdentityProvider, app: Flask, response: tuple[int, Any]
) -> None:
    """Nothing of what it said is repeated."""
    provider.token_response = response
    answer = log_in(app.test_client(), org, provider)
    assert (503, "identity_providers.unavailable") == error_of(answer)
    assert "server_error" not in answer.text


@pytest.mark.parametrize(
    "response",
    [
        (400, {"error": "invalid_grant", "error_description": "canary"}),
        (401, {"error": "invalid_client"}),
        (200, {"access_token": "x"}),
        (200, {"id_token": 7}),
        (200, {"id_token": ""}),
    ],
)
def test_a_code_that_is_not_taken_is_a_refused_login(
    org: User, provider: IdentityProvider, app: Flask, response: tuple[int, Any]
) -> None:
    """The log of the service says what the provider said, by its status."""
    provider.token_response = response
    answer = log_in(app.test_client(), org, provider)
    assert (403, "auth.login_refused") == error_of(answer)
    assert "canary" not in answer.text


def test_a_provider_that_is_gone_is_not_asked_for_each_login(
    org: User, provider: IdentityProvider, app: Flask, settings: Settings
) -> None:
    """503 at once, until it is asked again after a while."""
    policy = egress.Policy.of(settings.allowed_networks)
    app.extensions["arkloop.provider_documents"] = ProviderDocuments(policy)
    provider.metadata = {"issuer": "https://evil.example"}
    provider.asked.clear()
    for _ in range(3):
        response = app.test_client().post(BEGIN, json={"org_id": str(org.org_id)})
        assert (503, "identity_providers.unavailable") == error_of(response)
    assert 1 == len(provider.asked)
