"""Identity providers whose addresses or keys change while processes keep their documents."""

from typing import Any

import pytest
from flask import Flask

from arkloop.api.auth.provider_documents import ProviderDocuments
from arkloop.shared.config import Settings
from arkloop.shared.security import egress
from tests.api.endpoints.logins_by_provider import (
    CALLBACK,
    attempts,
    begin,
    documents,
    log_in,
    org,
    provider,
    put,
    settings,
)
from tests.clients import User, error_of
from tests.identity_provider import OTHER_RSA_KEY, RSA_KEY, IdentityProvider, jwk

__all__ = ["attempts", "documents", "org", "provider", "settings"]  # fixtures

DISCOVERY = "/.well-known/openid-configuration"
POST = {"token_endpoint_auth_methods_supported": ["client_secret_post"]}
KEPT = "arkloop.provider_documents"


@pytest.mark.parametrize(
    ("name", "path"),
    [("token_endpoint", "/token"), ("jwks_uri", "/jwks"), ("userinfo_endpoint", "/userinfo")],
)
def test_an_address_that_has_moved_is_looked_up_again(
    org: User, provider: IdentityProvider, app: Flask, name: str, path: str
) -> None:
    """The person who meets the move is logged in: of each kind of address that is asked."""

    def person(number: int) -> None:
        subject = f"sub-{number}"
        provider.claims = {"sub": subject, "email": ..., "email_verified": ...}
        verified = {"email": f"{subject}@{provider.domain}", "email_verified": True}
        provider.userinfo = {"sub": subject, **verified}

    person(1)
    assert 200 == log_in(app.test_client(), org, provider).status_code
    person(2)
    provider.metadata, provider.gone = {name: f"{provider.url}/v2{path}"}, {path}
    provider.key, provider.kid, provider.keys = OTHER_RSA_KEY, "two", [jwk(OTHER_RSA_KEY, "two")]
    answer = log_in(app.test_client(), org, provider)

    assert 200 == answer.status_code, answer.text
    assert f"/v2{path}" in provider.asked


@pytest.mark.parametrize("kid", [None, "one"])
def test_a_key_that_was_replaced_is_read_again(
    org: User, provider: IdentityProvider, app: Flask, kid: str | None
) -> None:
    """Without a `kid`, or with that of the former key, only the signature shows it."""
    provider.kid, provider.keys = kid, [jwk(RSA_KEY, kid)]
    assert 200 == log_in(app.test_client(), org, provider).status_code
    provider.key, provider.keys = OTHER_RSA_KEY, [jwk(OTHER_RSA_KEY, kid)]
    assert 200 == log_in(app.test_client(), org, provider).status_code
    provider.key = RSA_KEY
    assert (403, "auth.login_refused") == error_of(log_in(app.test_client(), org, provider))


def test_a_provider_that_is_saved_again_is_read_again_by_every_process(
    org: User, provider: IdentityProvider, app: Flask, settings: Settings
) -> None:
    """A browser that is sent to an address that has moved shows nothing of that to the service."""
    assert 200 == log_in(app.test_client(), org, provider).status_code
    moved = f"{provider.url}/v2/authorize"
    provider.metadata = {"authorization_endpoint": moved}
    of_this_process = app.extensions[KEPT]
    app.extensions[KEPT] = ProviderDocuments(egress.Policy.of(settings.allowed_networks))
    assert 200 == put(org, provider, email_domains=[provider.domain]).status_code
    app.extensions[KEPT] = of_this_process

    assert begin(app.test_client(), org).startswith(f"{moved}?")
    asked = provider.asked.count(DISCOVERY)
    begin(app.test_client(), org)
    assert asked == provider.asked.count(DISCOVERY)


@pytest.mark.parametrize(
    ("metadata", "response", "sent_by_post"),
    [
        ({"userinfo_endpoint": None}, (500, {}), [False]),
        ({"userinfo_endpoint": None}, (401, {"error": "invalid_client"}), [False]),
        (POST, (500, {}), [False]),
        (POST, (400, {"error": "invalid_grant"}), [False]),
        (POST, (401, {"error": "invalid_client"}), [False, True]),
    ],
)
def test_a_code_is_sent_again_only_if_it_was_not_taken(
    org: User,
    provider: IdentityProvider,
    app: Flask,
    metadata: dict[str, Any],
    response: tuple[int, Any],
    sent_by_post: list[bool],
) -> None:
    """The provider has not moved but changed otherwise: it would take a second use for theft."""
    query = provider.authorize(begin(client := app.test_client(), org))
    provider.metadata, provider.token_response = metadata, response
    assert client.get(f"{CALLBACK}?{query}").status_code in (403, 503)
    assert sent_by_post == ["client_secret" in form for form in provider.forms]


@pytest.mark.parametrize("published", [{"status": "maintenance"}, {"issuer": "https://a.example"}])
def test_a_document_that_cannot_be_used_does_not_take_the_place_of_a_good_one(
    org: User,
    provider: IdentityProvider,
    app: Flask,
    monkeypatch: pytest.MonkeyPatch,
    published: dict[str, str],
) -> None:
    """A provider in trouble, whose documents are read again for that, is back when it is: with the
    addresses and keys that are known already.
    """
    assert 200 == log_in(app.test_client(), org, provider).status_code
    monkeypatch.setattr(provider, "published", lambda _path: published)
    provider.token_response = (500, {})
    answer = log_in(app.test_client(), org, provider)
    assert (503, "identity_providers.unavailable") == error_of(answer)
    provider.token_response, provider.kid = None, "two"
    assert (403, "auth.login_refused") == error_of(log_in(app.test_client(), org, provider))
    assert {DISCOVERY, "/jwks"} <= set(provider.asked)

    provider.kid = "one"
    assert 200 == log_in(app.test_client(), org, provider).status_code


def test_failures_do_not_decide_how_often_documents_are_read(
    org: User, provider: IdentityProvider, app: Flask, settings: Settings
) -> None:
    """A token endpoint that fails again and again has them read once in a while, and no other
    request made.
    """
    app.extensions[KEPT] = ProviderDocuments(egress.Policy.of(settings.allowed_networks))
    provider.token_response = (500, {})
    provider.asked.clear()
    for _ in range(3):
        answer = log_in(app.test_client(), org, provider)
        assert (503, "identity_providers.unavailable") == error_of(answer)

    assert [DISCOVERY, "/token", "/token", "/token"] == provider.asked
