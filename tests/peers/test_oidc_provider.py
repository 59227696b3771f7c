"""Logins by `oidc-provider`, an identity provider that others wrote."""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urljoin, urlsplit

import httpx2
import pytest
from flask import Flask

from arkloop.cli.dev.embedded_server import free_port
from arkloop.shared.config import Settings
from tests.clients import Register, User, details_of, error_of
from tests.peers.conftest import INSTALLED, missing, serving

pytestmark = pytest.mark.peers

SERVER = Path(__file__).with_name("identity_provider.mjs")
HOME, CALLBACK = "https://runs.example.com", "/v1/auth/oidc/callback"
SECRET = "a-secret-of-the-client/with+signs"


@pytest.fixture(scope="module")
def settings(settings: Settings) -> Settings:
    return replace(settings, public_url=HOME, allowed_networks=("127.0.0.0/8",))


@pytest.fixture(scope="module")
def issuer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if not (INSTALLED / "oidc-provider").exists():
        missing("oidc-provider")
    port = free_port()
    # A module finds its packages beside itself.
    program = INSTALLED.parent / SERVER.name
    program.write_text(SERVER.read_text())
    command = ["node", str(program), str(port), HOME + CALLBACK]
    ready = "/.well-known/openid-configuration"
    yield from serving(command, f"http://127.0.0.1:{port}", ready)


@pytest.fixture
def org(register: Register, issuer: str) -> User:
    owner = register()
    body: dict[str, Any] = {"issuer": issuer, "client_id": "arkloop", "client_secret": SECRET}
    body |= {"email_domains": ["corp.example"]}
    path = f"/v1/orgs/{owner.org_id}/identity-provider"
    response = owner.call("PUT", path, json=body)
    assert 200 == response.status_code, response.text
    return owner


def visit(url: str, login: str) -> str:
    """Log in at the provider's pages as a browser does; returns the query of the way back."""
    with httpx2.Client(trust_env=False, timeout=60) as browser:
        response = browser.get(url)
        for _ in range(10):
            place = response.headers.get("location", "")
            if place.startswith(HOME):
                return urlsplit(place).query
            if place:
                response = browser.get(urljoin(str(response.url), place))
                continue
            form = re.search(r'<form[^>]* action="([^"]+)"', response.text)
            prompt = re.search(r'name="prompt" value="([^"]+)"', response.text)
            assert form and prompt, response.text
            sent = {"prompt": prompt[1], "login": login, "password": "any"}
            response = browser.post(urljoin(str(response.url), form[1]), data=sent)
    raise AssertionError("the provider sends nobody back")


def begin(app: Flask, owner: User) -> Any:
    client = app.test_client()
    response = client.post("/v1/auth/oidc/begin", json={"org_id": str(owner.org_id)})
    assert 200 == response.status_code, response.text
    return client, (response.json or {})["authorization_url"]


def test_a_person_logs_in_and_comes_back(org: User, app: Flask) -> None:
    """The whole flow with a server that checks each part of it; its userinfo has the address."""
    found = []
    for _ in range(2):
        client, url = begin(app, org)
        response = client.get(f"{CALLBACK}?{visit(url, 'bob')}")
        assert 200 == response.status_code, response.text
        token = (client.post("/v1/auth/refresh").json or {})["access_token"]
        found.append(org.with_token(token).get("/v1/me").json or {})

    assert ["bob@corp.example", "member"] == [found[0]["email"], found[0]["role"]]
    assert found[0]["id"] == found[1]["id"]


def test_who_has_no_verified_address_stays_out(org: User, app: Flask) -> None:
    """The provider says so."""
    client, url = begin(app, org)
    response = client.get(f"{CALLBACK}?{visit(url, 'unverified-eve')}")
    assert (403, "auth.login_refused") == error_of(response)


def test_a_code_is_of_use_once_and_to_its_own_login(org: User, app: Flask) -> None:
    """The provider takes neither a code again nor another login's verifier."""
    client, url = begin(app, org)
    query = visit(url, "carol")
    other, other_url = begin(app, org)
    state = parse_qs(urlsplit(other_url).query)["state"][0]
    code = parse_qs(query)["code"][0]
    stolen = other.get(CALLBACK, query_string={"state": state, "code": code})
    assert (403, "auth.login_refused") == error_of(stolen)
    assert 200 == client.get(f"{CALLBACK}?{query}").status_code
    client, url = begin(app, org)
    state = parse_qs(urlsplit(url).query)["state"][0]
    again = client.get(CALLBACK, query_string={"state": state, "code": code})
    assert (403, "auth.login_refused") == error_of(again)


def test_a_wrong_secret_lets_nobody_in(org: User, app: Flask, issuer: str) -> None:
    """The provider refuses this service as its client, which an owner has to mend."""
    path = f"/v1/orgs/{org.org_id}/identity-provider"
    body = {"issuer": issuer, "client_id": "arkloop", "email_domains": ["corp.example"]}
    wrong = {**body, "client_secret": "wrong"}
    assert 200 == org.call("PUT", path, json=wrong).status_code
    client, url = begin(app, org)
    response = client.get(f"{CALLBACK}?{visit(url, 'dave')}")
    assert (403, "identity_providers.client_refused") == error_of(response)


def test_an_algorithm_that_it_does_not_sign_with_is_refused(
    org: User, app: Flask, issuer: str
) -> None:
    """The owner gets the error when setting it."""
    path = f"/v1/orgs/{org.org_id}/identity-provider"
    body = {"issuer": issuer, "client_id": "arkloop", "client_secret": SECRET}
    response = org.call("PUT", path, json={**body, "signing_algorithm": "ES512"})
    assert ["signing_algorithm"] == list(details_of(response))
