"""Accounts that another provider knows or knew, and browsers that have begun no link."""

from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest
from flask import Flask
from werkzeug.test import TestResponse

from arkloop.api.app import create_app
from arkloop.shared.accounts import accounts, operators
from arkloop.shared.storage.connections import Connections
from tests.api.endpoints.logins_by_provider import (
    CALLBACK,
    HOME,
    LINK,
    attempts,
    documents,
    join,
    link,
    log_in,
    org,
    path,
    provider,
    put,
    settings,
    user_of,
)
from tests.clients import PASSWORD, Register, User, details_of, error_of
from tests.identity_provider import IdentityProvider

__all__ = ["attempts", "documents", "org", "provider", "settings"]  # fixtures

REQUIRED = (403, "auth.link_required")


# ---- known to a former provider ------------------------------------------------------


@pytest.mark.parametrize("move", ["replaced", "removed"])
@pytest.mark.parametrize("kind", ["owner", "operator", "member of two"])
def test_members_whom_a_former_provider_knew_link_no_account_again(
    org: User,
    provider: IdentityProvider,
    app: Flask,
    register: Register,
    connections: Connections,
    kind: str,
    move: str,
) -> None:
    """They have proved once whose the account is, perhaps with a password that they have forgotten
    since; nobody's address changes. A member whom no provider knew has proved nothing.
    """
    role = "owner" if kind == "owner" else "member"
    user = join(register(), org) if kind == "member of two" else register(org_of=org, role=role)
    if kind == "operator":
        with connections.transaction() as tx:
            operators.add(tx, user.id)
    unknown = join(register(), org)
    provider.claims = {"email": f"{user.login}@example.com"}
    assert 200 == link(user, provider).status_code

    for _ in range(2):
        if move == "removed":
            assert 204 == org.call("DELETE", path(org)).status_code
        assert 200 == put(org, provider, client_id="another").status_code
        assert 200 == put(org, provider).status_code
        client = app.test_client()
        assert str(user.id) == user_of(client, log_in(client, org, provider))["id"]
    provider.claims = {"email": f"{unknown.login}@example.com", "sub": "sub-2"}
    assert REQUIRED == error_of(log_in(app.test_client(), org, provider))


def test_an_account_without_a_password_is_found_again_after_its_provider_has_changed(
    org: User, provider: IdentityProvider, app: Flask
) -> None:
    """Its keys are those of the person, who keeps them and has no password to give."""
    first, second = app.test_client(), app.test_client()
    before = user_of(first, log_in(first, org, provider))
    token = before["header"]["Authorization"].removeprefix("Bearer ")
    key = User(first, before["username"], before["id"], org.org_id, token).api_key()
    assert 200 == put(org, provider, client_id="another").status_code
    assert 200 == put(org, provider, email_domains=[provider.domain]).status_code

    assert before["id"] == user_of(second, log_in(second, org, provider))["id"]
    assert 200 == key.get("/v1/me").status_code


def test_a_member_who_was_removed_has_to_link_again(
    org: User, provider: IdentityProvider, app: Flask, register: Register
) -> None:
    """A former link ends with the membership."""
    user = register()
    member = join(replace(user, client=app.test_client()), org)
    provider.claims = {"email": f"{user.login}@example.com"}
    assert 200 == link(member, provider).status_code
    assert 200 == put(org, provider, client_id="another").status_code
    assert 200 == put(org, provider).status_code
    assert 204 == org.delete(f"/v1/orgs/{org.org_id}/members/{user.id}").status_code
    join(user, org)

    assert REQUIRED == error_of(log_in(app.test_client(), org, provider))


# ---- known to the provider of another org --------------------------------------------


@pytest.mark.parametrize("has_password", [True, False])
def test_an_account_that_another_org_s_provider_knows_is_nobody_s_by_its_address(
    org: User,
    provider: IdentityProvider,
    app: Flask,
    register: Register,
    connections: Connections,
    has_password: bool,
) -> None:
    """A stranger makes it by a provider of their own, and comes back with an invitation of theirs,
    whatever becomes of its password.
    """
    boss, client = register(), app.test_client()
    address = f"victim-{boss.login}@example.com"
    with IdentityProvider() as own:
        own.claims = {"email": address, "sub": "stranger"}
        assert 200 == put(boss, own, email_domains=["example.com"]).status_code
        made = UUID(user_of(client, log_in(client, boss, own))["id"])
    members = f"/v1/orgs/{boss.org_id}/members/{made}"
    token = (boss.post(f"{members}/password-reset").json or {})["token"]
    reset = {"token": token, "password": PASSWORD}
    assert 200 == client.post("/v1/auth/password-reset", json=reset).status_code
    join(User(client, address, made, boss.org_id, ""), org)
    assert 204 == boss.delete(members).status_code
    if not has_password:
        with connections.transaction() as tx:
            accounts.change_password(tx, user_id=made, password_hash=accounts.NO_PASSWORD)
    provider.claims = {"email": address}

    assert REQUIRED == error_of(log_in(app.test_client(), org, provider))


# ---- the browser ---------------------------------------------------------------------


def test_a_link_belongs_to_a_browser_into_which_nobody_can_plant_it(
    provider: IdentityProvider, org: User, register: Register, connections: Connections
) -> None:
    """Another host of the domain can set any cookie for the victim, but none whose name begins with
    `__Host-`: the victim would give their identity to the account of the stranger.
    """
    user = register(org_of=org, role="member")
    provider.claims = {"email": f"{user.login}@example.com"}
    safe = replace(connections, settings=replace(connections.settings, secure_cookies=True))
    app = create_app(connections=safe)

    def begun(client: Any) -> tuple[TestResponse, str]:
        header = {"Authorization": f"Bearer {user.token}"}
        body = {"password": PASSWORD}
        response = client.post(LINK, json=body, headers=header, base_url=HOME)
        assert 200 == response.status_code, response.text
        return response, provider.authorize((response.json or {})["authorization_url"])

    response, query = begun(app.test_client())
    ours, own = (line.split("; ") for line in response.headers.getlist("Set-Cookie"))
    assert own[0].startswith("__Host-arkloop_oidc_link=")
    assert {"Secure", "HttpOnly", "Path=/", "SameSite=Lax"} <= set(own[1:])
    assert not any(part.startswith("Domain") for part in own)
    victim = app.test_client()
    name, _, value = ours[0].partition("=")
    victim.set_cookie(name, value, domain="runs.example.com", path="/v1/auth/oidc")
    planted = victim.get(f"{CALLBACK}?{query}", base_url=HOME)
    assert (400, "auth.login_state_invalid") == error_of(planted)

    browser = app.test_client()
    _, query = begun(browser)
    linked = browser.get(f"{CALLBACK}?{query}", base_url=HOME)
    assert 200 == linked.status_code, linked.text
    assert "__Host-arkloop_oidc_link=;" in str(linked.headers)


# ---- accounts without a password -----------------------------------------------------


def test_an_account_without_a_password_has_none_to_give(
    org: User, provider: IdentityProvider, app: Flask
) -> None:
    """The response says so as often as it is asked, and counts no attempt."""
    client = app.test_client()
    header = user_of(client, log_in(client, org, provider))["header"]
    for _ in range(12):
        refused = client.post(LINK, json={"password": "none"}, headers=header)
        [why] = details_of(refused)["password"]
        assert why.startswith("is not set for this account")
