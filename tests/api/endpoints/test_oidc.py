"""Logins by an identity provider: who gets in, in which role, and what such a login may.

`tests/peers/test_oidc_provider.py` does the same with a provider that others wrote.
"""

import time
from dataclasses import replace
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import select, update

from arkloop.shared.storage.connections import Connections
from arkloop.shared.storage.tables.accounts import refresh_tokens
from tests.api.endpoints.logins_by_provider import (
    BEGIN,
    CALLBACK,
    actions,
    attempts,
    begin,
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
from tests.clients import PASSWORD, Register, User, error_of
from tests.identity_provider import CLIENT_ID, IdentityProvider
from tests.waiting import eventually, in_parallel

__all__ = ["attempts", "documents", "org", "provider", "settings"]  # fixtures


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
    assert 2 == done.count("auth.logged_in")


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


def test_an_address_with_a_final_sigma_is_found(
    org: User, provider: IdentityProvider, app: Flask, register: Register
) -> None:
    """Python lowers it to another letter than Postgres, which compares addresses."""
    member = register(f"{org.login}-ΑΛΕΞΗΣ", org_of=org, role="member")
    provider.claims = {"email": f"{member.login}@example.com"}
    client = app.test_client()

    assert str(member.id) == user_of(client, log_in(client, org, provider))["id"]


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


@pytest.mark.parametrize("first", ["İbrahim", "ibrahim"])
def test_a_name_whose_capitals_python_lowers_otherwise_than_postgres_is_no_obstacle(
    org: User, provider: IdentityProvider, app: Flask, first: str
) -> None:
    """Somebody whose login would be equal to that of another in Postgres gets a free one."""
    names = [f"{name}{provider.domain}" for name in (first, "İbrahim")]
    seen = []
    for number, name in enumerate(names):
        email = f"person-{number}@{provider.domain}"
        provider.claims = {"sub": f"sub-{number}", "preferred_username": name, "email": email}
        client = app.test_client()
        seen.append(user_of(client, log_in(client, org, provider))["username"])

    assert names[0] == seen[0]
    assert seen[1].startswith(f"{names[1]}-")


STRANGERS: dict[str, tuple[str, dict[str, Any]]] = {
    "of another domain": ("not_invited", {"email": "bob@other.example"}),
    "of a domain within": ("not_invited", {"email": "bob@DOMAIN.evil.example"}),
    "of a domain below": ("not_invited", {"email": "bob@sub.DOMAIN"}),
    "with two at signs": ("address_invalid", {"email": "bob@DOMAIN@DOMAIN"}),
    "with a sign that becomes a letter": ("address_invalid", {"email": "bo\u212a@DOMAIN"}),
    "with a letter that becomes another": ("address_invalid", {"email": "b\u0130b@DOMAIN"}),
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


def test_an_account_of_another_org_s_provider_comes_in_by_a_reset_of_its_password(
    org: User, provider: IdentityProvider, app: Flask, register: Register
) -> None:
    """It has no password to log in with, so the refusal says how it gets one."""
    bob = user_of(first := app.test_client(), log_in(first, org, provider))
    second = register()
    assert 200 == put(second, provider, email_domains=[provider.domain]).status_code
    named = {"name": "Bob", "role": "member"}
    invited = second.post(f"/v1/orgs/{second.org_id}/invitations", named).json or {}
    for fields in ({}, {"invitation": invited["token"]}):
        refused = log_in(app.test_client(), second, provider, **fields)
        assert (403, "auth.login_refused") == error_of(refused)
        assert "has no password" in refused.text and "to reset its password" in refused.text

    reset = org.post(f"/v1/orgs/{org.org_id}/members/{bob['id']}/password-reset").json or {}
    chosen = {"token": reset["token"], "password": "horse battery"}
    assert 200 == app.test_client().post("/v1/auth/password-reset", json=chosen).status_code
    body = {"login": bob["username"], "password": "horse battery", "invitation": invited["token"]}
    client = app.test_client()
    joined = (client.post("/v1/auth/login", json=body).json or {})["access_token"]
    member = User(client, bob["username"], bob["id"], second.org_id, joined)
    linked = link(member, provider, password="horse battery")
    assert bob["id"] == user_of(client, linked)["id"]


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
    """The domain of the address does not let them join again, and their login has ended."""
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
    assert "/userinfo" not in provider.asked


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


def test_the_verification_may_be_in_userinfo_alone(
    org: User, provider: IdentityProvider, app: Flask
) -> None:
    """As with Okta's default server; the address that is believed is that of userinfo."""
    provider.claims = {"email": f"robert@{provider.domain}", "email_verified": ...}
    address = f"bob@{provider.domain}"
    for claims in ({"email": address}, {"email": address, "email_verified": False}):
        provider.userinfo = {"sub": "sub-1", **claims}
        refused = log_in(app.test_client(), org, provider)
        assert (403, "auth.login_refused") == error_of(refused)
    provider.userinfo = {"sub": "sub-1", "email": address, "email_verified": True}
    for _ in range(2):
        client = app.test_client()
        assert address == user_of(client, log_in(client, org, provider))["email"]

    assert 3 == provider.asked.count("/userinfo")


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
    member = join(replace(user, client=app.test_client()), org)
    provider.claims = {"email": f"{user.login}@example.com"}
    seen = user_of(client := member.client, link(member, provider))

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


def test_the_only_way_in_of_an_org_s_owners_is_not_removed(
    org: User, provider: IdentityProvider, app: Flask
) -> None:
    """The same holds for replacing it. Owners who have joined by it have no password; beside one
    with a password they do both.
    """
    members = f"/v1/orgs/{org.org_id}/members"
    bob = user_of(first := app.test_client(), log_in(first, org, provider))
    assert 200 == org.patch(f"{members}/{bob['id']}", {"role": "owner"}).status_code
    assert 200 == org.patch(f"{members}/{org.id}", {"role": "member"}).status_code
    client = app.test_client()
    header = user_of(client, log_in(client, org, provider))["header"]

    other = {"issuer": provider.url, "client_id": "another", "client_secret": "another"}
    for refused in (
        client.delete(path(org), headers=header),
        client.put(path(org), headers=header, json=other),
    ):
        assert (409, "identity_providers.required") == error_of(refused)
    same = client.put(path(org), headers=header, json={**other, "client_id": CLIENT_ID})
    assert 200 == same.status_code, same.text
    assert 200 == client.get("/v1/me", headers=header).status_code
    again = client.patch(f"{members}/{org.id}", json={"role": "owner"}, headers=header)
    assert 200 == again.status_code
    assert 204 == client.delete(path(org), headers=header).status_code
