"""Accounts whose address a person has at the identity provider: when they become that person's.

Anybody may have registered with the address. An account that can still be used without the provider
takes its password, too, or it would be one of two people.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from flask import Flask
from sqlalchemy import func, text, update

from arkloop.shared.accounts import api_keys, credentials, erasure, operators
from arkloop.shared.actors import PERMISSIONS_OF_ROLE, Actor
from arkloop.shared.catalog import mcp_access, mcp_configs
from arkloop.shared.runs.states import RunState
from arkloop.shared.storage.connections import Connections
from arkloop.shared.storage.tables.accounts import api_keys as keys
from arkloop.shared.storage.tables.accounts import refresh_tokens
from arkloop.shared.times import rfc3339
from tests.api.endpoints.logins_by_provider import (
    CALLBACK,
    LINK,
    attempts,
    begin,
    documents,
    join,
    link,
    log_in,
    org,
    provider,
    put,
    settings,
    user_of,
)
from tests.clients import PASSWORD, Register, User, details_of, error_of
from tests.identity_provider import IdentityProvider
from tests.shared_app import patient_connections
from tests.waiting import eventually

__all__ = [
    "attempts",
    "documents",
    "org",
    "patient_connections",
    "provider",
    "settings",
]  # fixtures

REQUIRED, REFUSED = (403, "auth.link_required"), (403, "auth.link_refused")
#: Members who keep their password when they are linked, by the reason.
WITH_PASSWORD = ["owner", "operator", "member of two"]


def entries(owner: User, action: str) -> list[dict[str, Any]]:
    """List the details of the entries of an action in the org's audit log."""
    found = owner.get(f"/v1/audit-logs?action={action}").json or []
    return [entry["details"] for entry in found]


def logs_in(app: Flask, user: User) -> int:
    """Return the status of a login with the user's password."""
    body = {"login": user.login, "password": PASSWORD}
    return app.test_client().post("/v1/auth/login", json=body).status_code


@pytest.fixture
def member(org: User, provider: IdentityProvider, register: Register) -> User:
    """A member of the org with a password, by whose address the provider knows the person."""
    user = register(org_of=org, role="member")
    provider.claims = {"email": f"{user.login}@example.com"}
    return user


@pytest.fixture
def with_password(
    request: pytest.FixtureRequest,
    org: User,
    provider: IdentityProvider,
    register: Register,
    connections: Connections,
) -> User:
    """A member of this kind who keeps the password for the reason of the parameter."""
    roles = {"owner": "owner", "operator": "member"}
    role = roles.get(request.param)
    user = join(register(), org) if role is None else register(org_of=org, role=role)
    if request.param == "operator":
        with connections.transaction() as tx:
            operators.add(tx, user.id)
    provider.claims = {"email": f"{user.login}@example.com"}
    return user


# ---- by the address alone ------------------------------------------------------------


def test_an_account_with_an_api_key_is_nobody_s_by_its_address(
    org: User, provider: IdentityProvider, app: Flask, member: User
) -> None:
    """The maker of the key would read what the person writes; so nothing changes."""
    key = member.api_key()
    client = app.test_client()

    assert REQUIRED == error_of(log_in(client, org, provider))
    page = "https://app.example.com/start"
    sent = log_in(client, org, provider, return_to=page)
    assert f"{page}?error=auth.link_required" == sent.headers["Location"]
    assert 401 == client.post("/v1/auth/refresh").status_code
    assert [200, 200] == [one.get("/v1/me").status_code for one in (key, member)]
    assert 200 == logs_in(app, member)
    refused = {"reason": "link_required", "user_id": str(member.id)}
    eventually(lambda: [refused] * 2 == entries(org, "auth.login_failed"))
    assert [] == entries(org, "identity.linked")


@pytest.mark.parametrize("with_password", WITH_PASSWORD, indirect=True)
def test_an_account_that_keeps_its_password_is_nobody_s_by_its_address(
    org: User, provider: IdentityProvider, app: Flask, with_password: User
) -> None:
    """Anybody who has registered with the address knows that password."""
    assert REQUIRED == error_of(log_in(app.test_client(), org, provider))
    assert 200 == logs_in(app, with_password)


@pytest.mark.parametrize("access", ["granted", "asked for", "of another"])
def test_an_account_with_access_to_an_mcp_server_is_nobody_s_by_its_address(
    org: User,
    provider: IdentityProvider,
    app: Flask,
    member: User,
    connections: Connections,
    access: str,
) -> None:
    """The person's runs would send what they write to what somebody else reads there."""
    server = {"transport": "streamable_http", "url": "https://notes.example/", "oauth": {}}
    made = {"state": f"state-{member.id}", "url": "https://notes.example/authorize"}
    with connections.transaction() as tx:
        config_id = mcp_configs.create(tx, org.org_id, name="notes", **server).id
        of = (org.org_id, config_id, mcp_access.owner_of(None, member.id))
        if access == "asked for":
            mcp_access.request(tx, *of, None, made)
        else:
            mcp_access.expect_grant(tx, *(of if access == "granted" else (*of[:2], "operator")))
    expected = 200 if access == "of another" else 403

    assert expected == log_in(app.test_client(), org, provider).status_code
    if expected == 403:
        assert str(member.id) == user_of(member.client, link(member, provider))["id"]


@pytest.mark.parametrize(
    "state", ["scheduled", "waiting", "offered", "completed", "of an end user"]
)
def test_an_account_with_a_run_that_has_not_ended_is_nobody_s_by_its_address(
    org: User,
    provider: IdentityProvider,
    app: Flask,
    member: User,
    make_run: Callable[..., UUID],
    state: str,
) -> None:
    """It would use what the person has authorized by then, and show it to somebody else."""
    later = rfc3339(datetime.now(UTC) + timedelta(days=30))
    bodies = {"scheduled": {"not_before": later}, "offered": {"on_busy": "steer"}}
    end_user = "u" if state == "of an end user" else None
    thread = member.thread(end_user_id=end_user)
    if state == "offered":
        make_run(org, thread)
    if body := bodies.get(state):
        body["message"] = "Send it on."
        assert 201 == member.post(f"/v1/threads/{thread}/runs", body).status_code
    elif state == "completed":
        make_run(member, thread, RunState.COMPLETED, ended_at=func.now())
    else:
        make_run(member, thread, RunState.WAITING, end_user_id=end_user)
    expected = 200 if state in ("completed", "of an end user") else 403

    assert expected == log_in(app.test_client(), org, provider).status_code
    if expected == 403:
        assert str(member.id) == user_of(member.client, link(member, provider))["id"]


@pytest.mark.parametrize("end", ["revoked", "expired", "of another"])
def test_a_key_that_is_not_in_force_does_not_count(
    org: User,
    provider: IdentityProvider,
    app: Flask,
    member: User,
    register: Register,
    connections: Connections,
    end: str,
) -> None:
    """An admin who revokes the keys of a stranger gives the person the account of their address."""
    user = register(org_of=org, role="member") if end == "of another" else member
    user.api_key()
    [shown] = user.get("/v1/api-keys").json or []
    if end == "revoked":
        assert 204 == org.delete(f"/v1/api-keys/{shown['id']}").status_code
    if end == "expired":
        with connections.transaction() as tx:
            past = {"expires_at": func.now() - timedelta(hours=1)}
            tx.sql.execute(update(keys).where(keys.c.id == shown["id"]).values(past))
    client = app.test_client()

    assert str(member.id) == user_of(client, log_in(client, org, provider))["id"]
    assert [401, 401] == [member.get("/v1/me").status_code, logs_in(app, member)]
    assert "address" == entries(org, "identity.linked")[0]["proof"]


def test_a_key_that_is_just_being_made_counts(
    org: User, provider: IdentityProvider, app: Flask, member: User, connections: Connections
) -> None:
    """Linking waits for its transaction."""
    session_id = (member.get("/v1/auth/sessions").json or {})["items"][0]["id"]
    actor = Actor(
        org_id=org.org_id,
        user_id=member.id,
        role="member",
        permissions=PERMISSIONS_OF_ROLE["member"],
        session_id=session_id,
    )
    client = app.test_client()
    query = provider.authorize(begin(client, org))
    waiting = text(
        "SELECT count(*) > 0 FROM pg_stat_activity WHERE :pid = ANY(pg_blocking_pids(pid))"
    )

    def is_waited_for() -> bool:
        with connections.reading() as sql:
            return bool(sql.scalar(waiting, {"pid": maker}))

    with ThreadPoolExecutor(1) as threads:
        with connections.transaction() as tx:
            maker = tx.sql.scalar(text("SELECT pg_backend_pid()"))
            credentials.permissions_now(tx.sql, actor)
            api_keys.create(tx, actor, name="in the last moment")
            linking = threads.submit(client.get, f"{CALLBACK}?{query}")
            eventually(is_waited_for)
        assert REQUIRED == error_of(linking.result())


def test_an_account_of_a_stranger_gives_way_when_it_is_removed_and_erased(
    org: User, provider: IdentityProvider, app: Flask, register: Register, connections: Connections
) -> None:
    """The person joins as a new user then, whatever logins and keys the stranger had."""
    domain = {"email_domains": ["example.com"]}
    assert 200 == put(org, provider, **domain).status_code
    stranger = join(register(), org)
    stranger.api_key()
    provider.claims = {"email": f"{stranger.login}@example.com"}
    assert REQUIRED == error_of(log_in(app.test_client(), org, provider))
    removed = org.delete(f"/v1/orgs/{org.org_id}/members/{stranger.id}")
    assert 204 == removed.status_code
    refused = log_in(app.test_client(), org, provider)
    assert (403, "auth.login_refused") == error_of(refused)
    assert "ask the operator of the service to erase it" in refused.text
    erasure.erase_user(connections, stranger.id)
    client = app.test_client()

    seen = user_of(client, log_in(client, org, provider))
    assert str(stranger.id) != seen["id"]
    assert provider.claims["email"] == seen["email"]


# ---- by the address and the account's password ---------------------------------------


def test_a_member_with_an_api_key_links_the_provider_and_keeps_the_key(
    org: User, provider: IdentityProvider, app: Flask, member: User
) -> None:
    """Their password ends, as for all who log in by the provider; later logins find them."""
    key = member.api_key()
    linked = user_of(member.client, link(member, provider))
    client = app.test_client()

    assert str(member.id) == linked["id"]
    assert 200 == key.get("/v1/me").status_code
    assert [401, 401] == [member.get("/v1/me").status_code, logs_in(app, member)]
    assert str(member.id) == user_of(client, log_in(client, org, provider))["id"]
    proof = {"by": "identity_provider", "proof": "password"}
    assert [proof] == entries(org, "identity.linked")


@pytest.mark.parametrize("with_password", WITH_PASSWORD, indirect=True)
def test_those_who_need_a_password_elsewhere_keep_it(
    org: User, provider: IdentityProvider, app: Flask, with_password: User
) -> None:
    """An owner for a provider that is out of order, an operator to be one, a member of another org
    since that has no part in this.
    """
    client = with_password.client
    assert str(with_password.id) == user_of(client, link(with_password, provider))["id"]

    assert 200 == logs_in(app, with_password)
    again = app.test_client()
    assert str(with_password.id) == user_of(again, log_in(again, org, provider))["id"]


def test_linking_requires_the_password_of_a_person(member: User) -> None:
    """Neither a stolen access token nor an API key is enough, nor a page of a foreign origin."""
    refused = member.post(LINK, {"password": "wrong horse"})
    assert {"password": ["is not your password"]} == details_of(refused)
    assert {"password"} == set(details_of(member.post(LINK, {})))
    body = {"password": PASSWORD}
    assert (403, "auth.forbidden") == error_of(member.api_key().post(LINK, body))
    foreign = member.post(LINK, body, headers={"Origin": "https://evil.example"})
    assert (403, "auth.forbidden") == error_of(foreign)
    for _ in range(9):
        member.post(LINK, {"password": "wrong horse"})
    assert (429, "auth.too_many_attempts") == error_of(member.post(LINK, body))


def test_a_link_leads_back_to_the_product_alone(member: User) -> None:
    """Otherwise it would be an open redirect."""
    body = {"password": PASSWORD, "return_to": "https://evil.example/"}
    assert {"return_to"} == set(details_of(member.post(LINK, body)))


def test_an_org_without_a_provider_has_none_to_link(register: Register) -> None:
    """The response says so."""
    refused = register().post(LINK, {"password": PASSWORD})
    assert (404, "identity_providers.not_found") == error_of(refused)


def test_a_person_with_another_address_is_not_linked(
    org: User, provider: IdentityProvider, app: Flask, member: User
) -> None:
    """An account stays that of one address: neither a new user is made, nor another one found."""
    members = f"/v1/orgs/{org.org_id}/members"
    before = len(org.get(members).json or [])
    for email in (f"bob@{provider.domain}", f"{org.login}@example.com"):
        provider.claims = {"email": email}
        assert REFUSED == error_of(link(member, provider))
    provider.claims = {"email": f"{member.login}@example.com", "email_verified": False}
    assert (403, "auth.login_refused") == error_of(link(member, provider))

    assert before == len(org.get(members).json or [])
    assert 200 == logs_in(app, member)
    reasons = [{"reason": "address_not_verified"}, *[{"reason": "address_of_another_account"}] * 2]
    eventually(lambda: reasons == entries(org, "auth.login_failed"))


def test_a_person_of_another_account_is_not_linked(
    org: User, provider: IdentityProvider, app: Flask, member: User
) -> None:
    """The provider's account that the browser was logged in to may be that of a colleague."""
    address, provider.claims = provider.claims["email"], {}
    colleague = user_of(client := app.test_client(), log_in(client, org, provider))
    provider.claims = {"email": address}

    assert REFUSED == error_of(link(member, provider))
    assert 200 == logs_in(app, member)
    again = app.test_client()
    assert colleague["id"] == user_of(again, log_in(again, org, provider))["id"]


def test_a_link_belongs_to_the_browser_and_the_login_that_began_it(
    provider: IdentityProvider, app: Flask, member: User, connections: Connections
) -> None:
    """A person who follows the link of somebody else gives them nothing, and a login that has
    ended links nothing.
    """
    begun = member.post(LINK, {"password": PASSWORD}).json or {}
    query = provider.authorize(begun["authorization_url"])
    invalid = (400, "auth.login_state_invalid")

    assert invalid == error_of(app.test_client().get(f"{CALLBACK}?{query}"))
    with connections.transaction() as tx:
        of_user = refresh_tokens.c.user_id == member.id
        tx.sql.execute(update(refresh_tokens).where(of_user).values(revoked_at=func.now()))
    assert invalid == error_of(member.client.get(f"{CALLBACK}?{query}"))
    assert 200 == logs_in(app, member)


def test_somebody_who_was_removed_meanwhile_links_nothing(
    org: User, provider: IdentityProvider, register: Register
) -> None:
    """The login in the org has ended with the membership, that in another org continues."""
    user = register()
    member = join(replace(user, client=user.client), org)
    provider.claims = {"email": f"{user.login}@example.com"}
    begun = member.post(LINK, {"password": PASSWORD}).json or {}
    query = provider.authorize(begun["authorization_url"])
    assert 204 == org.delete(f"/v1/orgs/{org.org_id}/members/{user.id}").status_code

    answer = member.client.get(f"{CALLBACK}?{query}")
    assert (400, "auth.login_state_invalid") == error_of(answer)
    assert 200 == user.get("/v1/me").status_code
