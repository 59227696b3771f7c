"""Logins by an identity provider in cells, where each org has a public URL of its own."""

from dataclasses import replace
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from flask import Flask
from flask.testing import FlaskClient

from arkloop.shared.config import Settings
from arkloop.shared.storage import org_urls
from arkloop.shared.storage.connections import Connections
from tests.api.endpoints.logins_by_provider import (
    BEGIN,
    CALLBACK,
    LINK,
    attempts,
    documents,
    org,
    path,
    provider,
    put,
)
from tests.clients import PASSWORD, Register, User, details_of, error_of
from tests.identity_provider import IdentityProvider

__all__ = ["attempts", "documents", "org", "provider"]  # fixtures

CELL, ACME, GLOBEX = (f"https://{name}.runs.example.com" for name in ("cell-1", "acme", "globex"))


@pytest.fixture(scope="module")
def settings(settings: Settings) -> Settings:
    return replace(settings, public_url=CELL, allowed_networks=("127.0.0.0/8",))


def give(connections: Connections, owner: User, url: str | None) -> None:
    """Give an org a public URL of its own, as `arkloop orgs set` does."""
    with connections.transaction() as tx:
        org_urls.change(tx, owner.org_id, url)


def begun(client: FlaskClient, owner: User, host: str, return_to: str | None = None) -> Any:
    """Begin a login as the console at this host does."""
    body = {"org_id": str(owner.org_id), "return_to": return_to or f"{host}/console"}
    return client.post(BEGIN, json=body, base_url=host, headers={"Origin": host})


@pytest.mark.parametrize("home", [ACME, CELL])
def test_people_log_in_at_the_public_url_of_their_org(
    org: User, provider: IdentityProvider, app: Flask, connections: Connections, home: str
) -> None:
    """The provider sends them back there, where the page gets its access token by the cookie."""
    give(connections, org, None if home == CELL else home)
    uri = home + CALLBACK
    assert uri == (org.get(path(org)).json or {})["redirect_uri"]

    browser = app.test_client()
    began = begun(browser, org, home)
    assert 200 == began.status_code, began.text
    url = (began.json or {})["authorization_url"]
    assert [uri] == parse_qs(urlsplit(url).query)["redirect_uri"]
    back = browser.get(f"{CALLBACK}?{provider.authorize(url)}", base_url=home)

    assert (303, f"{home}/console") == (back.status_code, back.headers["Location"])
    tokens = browser.post("/v1/auth/refresh", base_url=home, headers={"Origin": home})
    assert 200 == tokens.status_code, tokens.text


def test_a_login_outlives_a_change_of_the_public_url(
    org: User, provider: IdentityProvider, app: Flask, connections: Connections
) -> None:
    """The page leads back to the former one, and its code is exchanged for that."""
    browser = app.test_client()
    url = (begun(browser, org, CELL).json or {})["authorization_url"]
    back = provider.authorize(url)
    give(connections, org, ACME)

    response = browser.get(f"{CALLBACK}?{back}", base_url=CELL)

    assert (303, f"{CELL}/console") == (response.status_code, response.headers["Location"])


def test_a_login_begins_at_the_public_url_as_browsers_write_it(
    org: User, provider: IdentityProvider, app: Flask, connections: Connections
) -> None:
    """It was set with the default port; the redirect URI stays as it was registered."""
    with_port = f"{ACME}:443"
    give(connections, org, with_port)
    for public_url in (ACME, with_port):
        began = begun(app.test_client(), org, ACME, f"{public_url}/console")
        assert 200 == began.status_code, began.text
        query = parse_qs(urlsplit((began.json or {})["authorization_url"]).query)
        assert [with_port + CALLBACK] == query["redirect_uri"]
    assert ["return_to"] == list(details_of(begun(app.test_client(), org, ACME, f"{ACME}:8443/")))


def test_a_login_leads_to_no_public_url_of_another_org(
    org: User, provider: IdentityProvider, app: Flask, connections: Connections, register: Register
) -> None:
    """Its code would come to the other org's page, and so would a login that an owner has begun."""
    other = register()
    assert 200 == put(other, provider).status_code
    give(connections, org, ACME)
    give(connections, other, GLOBEX)

    for owner, elsewhere in ((org, GLOBEX), (other, ACME), (org, CELL)):
        for page in (f"{elsewhere}/console", f"{ACME}.evil.example/"):
            refused = begun(app.test_client(), owner, ACME, page)
            assert ["return_to"] == list(details_of(refused))
    link = {"password": PASSWORD, "return_to": f"{GLOBEX}/console"}
    assert ["return_to"] == list(details_of(org.post(LINK, link)))
    assert 200 == org.post(LINK, {**link, "return_to": f"{ACME}/console"}).status_code


def test_a_public_url_of_an_org_is_none_of_the_others(
    org: User, provider: IdentityProvider, app: Flask, connections: Connections, register: Register
) -> None:
    """An org without one has that of the installation, and one that was taken back is gone."""
    give(connections, org, ACME)
    other = register()
    assert 200 == put(other, provider).status_code

    assert ["return_to"] == list(details_of(begun(app.test_client(), other, ACME)))
    assert 200 == begun(app.test_client(), other, CELL).status_code
    give(connections, org, None)
    assert ["return_to"] == list(details_of(begun(app.test_client(), org, ACME)))
    assert 200 == begun(app.test_client(), org, CELL).status_code


def test_a_login_stays_in_the_browser_at_the_public_url(
    org: User, provider: IdentityProvider, app: Flask, connections: Connections
) -> None:
    """The cell's own host has no cookie of it."""
    give(connections, org, ACME)
    browser = app.test_client()
    url = (begun(browser, org, ACME).json or {})["authorization_url"]

    refused = browser.get(f"{CALLBACK}?{provider.authorize(url)}", base_url=CELL)
    assert (400, "auth.login_state_invalid") == error_of(refused)
