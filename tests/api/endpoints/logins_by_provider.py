"""Logins by an identity provider of the tests, of people whose org has chosen it."""

import base64
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from arkloop.api.auth.provider_documents import ProviderDocuments
from arkloop.shared.config import Settings
from arkloop.shared.security import egress
from arkloop.shared.storage.connections import Connections
from tests.clients import PASSWORD, User
from tests.identity_provider import CLIENT_ID, CLIENT_SECRET, IdentityProvider

BEGIN, CALLBACK = "/v1/auth/oidc/begin", "/v1/auth/oidc/callback"
LINK = "/v1/auth/oidc/link"

HOME = "https://runs.example.com"


@pytest.fixture(scope="module")
def settings(settings: Settings) -> Settings:
    allowed = ("127.0.0.0/8",)
    origins = ("https://app.example.com",)
    known = replace(settings, public_url=HOME, allowed_networks=allowed, cors_origins=origins)
    return replace(known, request_log=True)


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


def link(user: User, provider: IdentityProvider, password: str = PASSWORD) -> Any:
    """Log in at the provider as a person whom the user's login is to be linked to."""
    begun = user.post(LINK, {"password": password})
    assert 200 == begun.status_code, begun.text
    query = provider.authorize((begun.json or {})["authorization_url"])
    return user.client.get(f"{CALLBACK}?{query}")


def join(user: User, owner: User) -> User:
    """Let a user join the owner's org, besides their own; returns them by a login in it."""
    invited = owner.post(f"/v1/orgs/{owner.org_id}/invitations", {"name": "x", "role": "member"})
    body = {"login": user.login, "password": PASSWORD}
    body["invitation"] = (invited.json or {})["token"]
    joined = user.client.post("/v1/auth/login", json=body)
    assert 200 == joined.status_code, joined.text
    return replace(user, org_id=owner.org_id, token=(joined.json or {})["access_token"])


def user_of(client: FlaskClient, response: TestResponse) -> dict[str, Any]:
    """Return what `/v1/me` shows to who has just logged in, by the token of the cookie."""
    assert response.status_code in (200, 303), response.text
    tokens = client.post("/v1/auth/refresh")
    assert 200 == tokens.status_code, tokens.text
    header = {"Authorization": f"Bearer {(tokens.json or {})['access_token']}"}
    return dict(client.get("/v1/me", headers=header).json or {}) | {"header": header}


def actions(owner: User) -> list[str]:
    return [entry["action"] for entry in owner.get("/v1/audit-logs").json or []]


# ---- what a reply must prove ---------------------------------------------------------


def encoded_bytes(part: bytes) -> str:

    return base64.urlsafe_b64encode(part).rstrip(b"=").decode()


def now() -> int:
    """Return the time as tokens have it; that of the import may be an hour ago in a long run."""
    return int(time.time())
