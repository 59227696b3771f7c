"""`/v1/orgs/{org_id}/identity-provider`: what an owner sets, and who sees it."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from flask import Flask
from werkzeug.test import TestResponse

from arkloop.api.auth.provider_documents import ProviderDocuments
from arkloop.shared.config import Settings
from arkloop.shared.security import egress
from arkloop.shared.storage.connections import Connections
from tests.clients import Register, User, details_of, error_of
from tests.identity_provider import CLIENT_ID, CLIENT_SECRET, IdentityProvider


@pytest.fixture(scope="module")
def settings(settings: Settings) -> Settings:
    allowed = ("127.0.0.0/8",)
    return replace(
        settings,
        public_url="https://runs.example.com",
        path_prefix="/arkloop",
        allowed_networks=allowed,
    )


@pytest.fixture
def provider(app: Flask, settings: Settings) -> Iterator[IdentityProvider]:
    policy = egress.Policy.of(settings.allowed_networks)
    app.extensions["arkloop.provider_documents"] = ProviderDocuments(policy, refetch_seconds=0)
    with IdentityProvider() as started:
        yield started


def path(user: User) -> str:
    return f"/v1/orgs/{user.org_id}/identity-provider"


def put(user: User, provider: IdentityProvider, **fields: Any) -> TestResponse:
    body = {"issuer": provider.url, "client_id": CLIENT_ID, **fields}
    return user.call("PUT", path(user), json=body)


def test_an_owner_sets_what_admins_see(
    alice: User, provider: IdentityProvider, register: Register
) -> None:
    """All of it but the secret; a second one takes the place of the first."""
    made = put(alice, provider, client_secret=CLIENT_SECRET, email_domains=["corp.example"])
    shown = dict(made.json or {})
    times = {name: shown[name] for name in ("created_at", "updated_at")}
    expected = {
        "org_id": str(alice.org_id),
        "issuer": provider.url,
        "client_id": CLIENT_ID,
        "has_client_secret": True,
        "signing_algorithm": "RS256",
        "email_domains": ["corp.example"],
        "joining_role": "member",
        "assumes_verified_email": False,
        "session_hours": 12,
        "redirect_uri": "https://runs.example.com/arkloop/v1/auth/oidc/callback",
    }
    assert {**expected, **times} == shown
    admin, member = (register(org_of=alice, role=role) for role in ("admin", "member"))
    assert shown == admin.get(path(alice)).json
    assert (403, "auth.forbidden") == error_of(member.get(path(alice)))

    again = put(alice, provider).json or {}
    assert (True, []) == (again["has_client_secret"], again["email_domains"])
    assert False is (put(alice, provider, client_secret=None).json or {})["has_client_secret"]


def test_nobody_but_an_owner_sets_it(
    alice: User, provider: IdentityProvider, register: Register
) -> None:
    """An admin could let the provider say that they are an owner."""
    assert (404, "identity_providers.not_found") == error_of(alice.get(path(alice)))
    for who in (register(org_of=alice, role="admin"), alice.api_key("admin")):
        assert (403, "auth.forbidden") == error_of(put(who, provider))
        assert (403, "auth.forbidden") == error_of(who.delete(path(alice)))
    assert (404, "identity_providers.not_found") == error_of(alice.delete(path(alice)))


@pytest.mark.parametrize("changes", [{"client_id": "another"}, {"issuer": ""}])
def test_a_secret_goes_only_where_it_was_given_for(
    alice: User, provider: IdentityProvider, changes: dict[str, str]
) -> None:
    """Another issuer or client requires the secret again."""
    assert 200 == put(alice, provider, client_secret=CLIENT_SECRET).status_code
    with IdentityProvider() as other:
        body = {name: value or other.url for name, value in changes.items()}
        assert ["client_secret"] == list(details_of(put(alice, provider, **body)))
        assert 200 == put(alice, provider, **body, client_secret="another").status_code


@pytest.mark.parametrize(
    "wrong",
    [
        {"issuer": "http://login.example.com"},
        {"issuer": "ftp://login.example.com"},
        {"issuer": "https://login.example.com?x=1"},
        {"issuer": "https://user@login.example.com"},
        {"issuer": "https://10.0.0.1"},
        {"issuer": "https://169.254.169.254"},
        {"issuer": "https://[::1]"},
        {"issuer": "https://localhost:22"},
        {"issuer": "x"},
        {"client_id": ""},
        {"client_id": "with space"},
        {"client_secret": ""},
        {"client_secret": "ü"},
        {"signing_algorithm": "HS256"},
        {"signing_algorithm": "none"},
        {"signing_algorithm": ["RS256", "HS256"]},
        {"email_domains": ["Corp.example"]},
        {"email_domains": ["bob@corp.example"]},
        {"email_domains": ["*.example"]},
        {"email_domains": ["example"]},
        {"email_domains": ["corp.example"] * 51},
        {"joining_role": "owner"},
        {"session_hours": 0},
        {"session_hours": 721},
        {"session_hours": "12"},
        {"assumes_verified_email": 1},
        {"org_id": "01a20e5a-2b91-76ef-b381-d919c4ad9778"},
    ],
)
def test_what_is_no_provider_is_refused(
    alice: User, provider: IdentityProvider, wrong: dict[str, Any]
) -> None:
    """The field is named, and nothing is stored."""
    [name] = wrong
    assert name == next(iter(details_of(put(alice, provider, **wrong)))).partition(".")[0]
    assert 404 == alice.get(path(alice)).status_code


@pytest.mark.parametrize(
    ("metadata", "field"),
    [
        ({"issuer": "https://evil.example"}, "issuer"),
        ({"issuer": None}, "issuer"),
        ({"token_endpoint": None}, "issuer"),
        ({"token_endpoint": "http://10.0.0.1/token"}, "issuer"),
        ({"jwks_uri": "file:///etc/passwd"}, "issuer"),
        ({"jwks_uri": "https://169.254.169.254/latest"}, "issuer"),
        ({"authorization_endpoint": "javascript:alert(1)"}, "issuer"),
        ({"userinfo_endpoint": 7}, "issuer"),
        ({"code_challenge_methods_supported": ["plain"]}, "issuer"),
        ({"id_token_signing_alg_values_supported": ["ES256"]}, "signing_algorithm"),
    ],
)
def test_a_provider_whose_document_is_wrong_is_refused(
    alice: User, provider: IdentityProvider, metadata: dict[str, Any], field: str
) -> None:
    """It is refused before anybody would try to log in by it."""
    provider.metadata = metadata
    assert [field] == list(details_of(put(alice, provider)))


def test_a_mistake_that_was_mended_at_the_provider_is_not_reported_again(
    alice: User,
    provider: IdentityProvider,
    app: Flask,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An owner who tries again has the document read, however soon that is."""
    policy = egress.Policy.of(settings.allowed_networks)
    app.extensions["arkloop.provider_documents"] = ProviderDocuments(policy)
    with monkeypatch.context() as patched:
        patched.setattr(provider, "published", lambda _path: None)
        assert ["issuer"] == list(details_of(put(alice, provider)))
    provider.metadata = {"code_challenge_methods_supported": ["plain"]}
    assert "PKCE" in details_of(put(alice, provider))["issuer"][0]
    provider.metadata = {}
    assert 200 == put(alice, provider).status_code


def test_what_is_wrong_now_is_reported_whatever_was_right_before(
    alice: User, provider: IdentityProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A document that is kept for logins does not hide that it cannot be read any more."""
    assert 200 == put(alice, provider).status_code
    with monkeypatch.context() as patched:
        patched.setattr(provider, "published", lambda _path: None)
        assert "HTTP status 404" in details_of(put(alice, provider))["issuer"][0]
    provider.metadata = {"code_challenge_methods_supported": ["plain"]}
    assert "PKCE" in details_of(put(alice, provider))["issuer"][0]
    begun = alice.call("POST", "/v1/auth/oidc/begin", json={"org_id": str(alice.org_id)})
    assert 200 == begun.status_code
    provider.metadata = {}
    assert 200 == put(alice, provider).status_code


@pytest.mark.parametrize("setting", ["public_url", "encryption_key"])
def test_without_a_setting_no_provider_is_taken(
    alice: User, provider: IdentityProvider, connections: Connections, setting: str
) -> None:
    """A server to which nobody could come back, or that can keep no secret, says so."""
    known = connections.settings
    connections.settings = replace(known, **{setting: None})
    try:
        details = details_of(put(alice, provider, client_secret=CLIENT_SECRET))
    finally:
        connections.settings = known
    assert [[f"ARKLOOP_{setting.upper()} is not set on this server"]] == list(details.values())


def test_a_refusal_says_that_the_org_s_key_is_under_another_one(
    alice: User, provider: IdentityProvider, connections: Connections
) -> None:
    """It does not say that no key is set, which an operator would look for in vain."""
    put(alice, provider, client_secret=CLIENT_SECRET)
    known = connections.settings
    connections.settings = replace(known, encryption_key="n" * 32)
    try:
        details = details_of(put(alice, provider, client_secret=CLIENT_SECRET))
    finally:
        connections.settings = known
    why = "the organization's key is encrypted with a key that is not in ARKLOOP_ENCRYPTION_KEY"
    assert {"client_secret": [why]} == details
