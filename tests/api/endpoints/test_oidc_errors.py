"""Errors that identity providers send: who is responsible, and what is recorded of them."""

import logging
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

import pytest
from flask import Flask
from sqlalchemy import update

from arkloop.shared.storage.connections import Connections
from arkloop.shared.storage.tables.accounts import identity_providers
from tests.api.endpoints.logins_by_provider import (
    CALLBACK,
    HOME,
    attempts,
    begin,
    documents,
    log_in,
    org,
    provider,
    settings,
)
from tests.clients import User, error_of
from tests.identity_provider import IdentityProvider
from tests.waiting import eventually

__all__ = ["attempts", "documents", "org", "provider", "settings"]  # fixtures


def refusals(owner: User) -> list[dict[str, Any]]:
    """Return the details of refused logins, the newest first."""
    entries = owner.get("/v1/audit-logs").json or []
    return [one["details"] for one in entries if one["action"] == "auth.login_failed"]


def denied(app: Flask, owner: User, error: str, **fields: Any) -> Any:
    """Return the response to a login that the provider sends back with an error."""
    client = app.test_client()
    state = parse_qs(urlsplit(begin(client, owner, **fields)).query)["state"][0]
    return client.get(f"{CALLBACK}?state={state}&error={quote(error)}")


@pytest.mark.parametrize(
    "response", [(401, {"error": "invalid_client"}), (400, {"error": "unauthorized_client"})]
)
def test_a_refused_client_is_a_matter_of_the_org_s_owners(
    org: User, provider: IdentityProvider, app: Flask, response: tuple[int, Any]
) -> None:
    """A secret that has expired shuts everybody out: no person is refused by that."""
    provider.token_response = response
    answer = log_in(app.test_client(), org, provider)

    assert (403, "identity_providers.client_refused") == error_of(answer)
    assert "an owner of the organization must" in (answer.json or {})["message"]
    assert "Retry-After" not in answer.headers
    error = response[1]["error"]
    expected = [{"reason": "client_refused", "provider_error": error}]
    eventually(lambda: expected == refusals(org))


def test_a_provider_that_takes_secrets_in_no_known_form_refuses_the_client(
    org: User, provider: IdentityProvider, app: Flask
) -> None:
    """Nothing is sent to it, and waiting would not help."""
    provider.metadata = {"token_endpoint_auth_methods_supported": ["private_key_jwt"]}
    answer = log_in(app.test_client(), org, provider)

    assert (403, "identity_providers.client_refused") == error_of(answer)
    assert [] == provider.forms
    eventually(lambda: [{"reason": "client_refused"}] == refusals(org))


def test_a_secret_that_cannot_be_decrypted_is_a_matter_of_the_operator(
    org: User,
    provider: IdentityProvider,
    app: Flask,
    connections: Connections,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The provider, which is not asked, has not failed; the log has the reason."""
    with connections.transaction() as tx:
        tx.sql.execute(
            update(identity_providers)
            .where(identity_providers.c.org_id == org.org_id)
            .values(client_secret_encrypted=b"\x01 of another key")
        )
    answer = log_in(app.test_client(), org, provider)

    assert (503, "identity_providers.secret_unreadable") == error_of(answer)
    assert [] == provider.forms
    assert "unavailable: encrypted with a key that is not in ARKLOOP_ENCRYPTION_KEY" in caplog.text
    assert [] == refusals(org)


def test_a_refused_code_is_recorded_with_the_provider_s_error(
    org: User, provider: IdentityProvider, app: Flask
) -> None:
    """The person is refused as before."""
    provider.token_response = (400, {"error": "invalid_grant", "error_description": "canary"})
    assert (403, "auth.login_refused") == error_of(log_in(app.test_client(), org, provider))
    expected = [{"reason": "code_refused", "provider_error": "invalid_grant"}]
    eventually(lambda: expected == refusals(org))


@pytest.mark.parametrize(
    ("error", "details"),
    [
        ("invalid_scope", {"provider_error": "invalid_scope"}),
        # No proof that the provider refuses the service: anybody can send a browser here with it.
        ("unauthorized_client", {"provider_error": "unauthorized_client"}),
        ("a b", {}),
        ("x" * 41, {}),
    ],
)
def test_the_code_of_a_denied_login_is_recorded(
    org: User, app: Flask, error: str, details: dict[str, str]
) -> None:
    """Other texts than codes are not."""
    assert (403, "auth.login_refused") == error_of(denied(app, org, error))
    eventually(lambda: [{"reason": "denied_at_provider", **details}] == refusals(org))


@pytest.mark.parametrize(
    ("response", "outcome", "code"),
    [
        ((400, {"error": "invalid_grant"}), "refused", "auth.login_refused"),
        ((401, {"error": "invalid_client"}), "refused", "identity_providers.client_refused"),
        ((500, {}), "failed", "identity_providers.unavailable"),
    ],
)
def test_a_failed_login_that_sends_the_browser_on_is_logged_as_failed(
    org: User,
    provider: IdentityProvider,
    app: Flask,
    caplog: pytest.LogCaptureFixture,
    response: tuple[int, Any],
    outcome: str,
    code: str,
) -> None:
    """The line of the request has the error, though its status is that of a redirect."""
    provider.token_response = response
    with caplog.at_level(logging.INFO):
        answer = log_in(app.test_client(), org, provider, return_to=f"{HOME}/console")
    assert (303, f"{HOME}/console?error={code}") == (answer.status_code, answer.location)

    lines = [vars(one) for one in caplog.records if one.message == "request"]
    seen = [(line["outcome"], line["error_code"]) for line in lines if CALLBACK == line["route"]]
    assert [(outcome, code)] == seen
