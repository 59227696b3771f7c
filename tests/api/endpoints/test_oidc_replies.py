"""Replies of identity providers, and providers that do not work."""

import hashlib
import re
from typing import Any
from urllib.parse import parse_qs, urlsplit

import jwt
import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from arkloop.api.auth import provider_logins, signed_tokens
from arkloop.api.auth.provider_documents import ProviderDocuments
from arkloop.shared.accounts import suspensions
from arkloop.shared.config import Settings
from arkloop.shared.security import egress
from arkloop.shared.storage.connections import Connections
from tests.api.endpoints.logins_by_provider import (
    BEGIN,
    CALLBACK,
    HOME,
    attempts,
    begin,
    documents,
    encoded_bytes,
    log_in,
    now,
    org,
    path,
    provider,
    put,
    settings,
    user_of,
)
from tests.clients import User, details_of, error_of
from tests.identity_provider import CLIENT_ID, IdentityProvider

__all__ = ["attempts", "documents", "org", "provider", "settings"]  # fixtures


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


def test_a_browser_is_led_back_from_a_reply_of_another_login(
    org: User, provider: IdentityProvider, app: Flask
) -> None:
    """It goes to the page of the login that its cookie has, which stays; without one, to the
    console.
    """
    client = app.test_client()
    headers = {"Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}
    query = provider.authorize(begin(client, org))

    def led_to(client: FlaskClient) -> tuple[int, str | None, bool]:
        response = client.get(f"{CALLBACK}?{query}", headers=headers)
        sets_cookie = "Set-Cookie" in response.headers
        return response.status_code, response.headers.get("Location"), sets_cookie

    code = "error=auth.login_state_invalid"
    assert (303, f"/console?{code}", False) == led_to(app.test_client())
    url = begin(client, org, return_to=f"{HOME}/start?tab=1")
    assert (303, f"{HOME}/start?tab=1&{code}", False) == led_to(client)
    assert not provider.forms
    response = client.get(f"{CALLBACK}?{provider.authorize(url)}", headers=headers)
    assert (303, f"{HOME}/start?tab=1") == (response.status_code, response.headers["Location"])
    begin(client, org)
    assert (303, f"/console?{code}", False) == led_to(client)


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
        "expired": signed_tokens.sign(settings, "oidc+jwt", {**claims, "exp": now() - 60}),
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
    """The page that was named gets the error's code; without one, the user sees it."""
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
    """Such a page cannot log in by a password either."""
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
        (401, {"error": ["invalid_client"]}),
        (403, "no JSON"),
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


def test_a_login_to_a_suspended_org_is_refused(
    org: User, provider: IdentityProvider, app: Flask, connections: Connections
) -> None:
    """Its provider is asked for nothing, before and after the person was there; both work again
    afterwards.
    """
    client = app.test_client()
    query = provider.authorize(begin(client, org))
    with connections.transaction() as tx:
        suspensions.suspend(tx, org.org_id, "Unpaid bills")

    refused = client.get(f"{CALLBACK}?{query}")

    assert (401, "org.suspended") == error_of(refused)
    assert not [one for one in refused.headers.getlist("Set-Cookie") if "refresh_token" in one]
    assert [] == provider.forms
    begun = client.post(BEGIN, json={"org_id": str(org.org_id)})
    assert (401, "org.suspended") == error_of(begun)
    assert [] == begun.headers.getlist("Set-Cookie")
    with connections.transaction() as tx:
        suspensions.resume(tx, org.org_id)
    assert 200 == client.get(f"{CALLBACK}?{provider.authorize(begin(client, org))}").status_code
