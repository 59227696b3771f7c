"""`/v1/auth`: accounts, logins, and the cookie that keeps them going."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import select
from werkzeug.test import TestResponse

from arkloop.api.app import create_app
from arkloop.shared.security import passwords
from arkloop.shared.storage.connections import Connections
from arkloop.shared.storage.tables.accounts import users
from tests.api.endpoints.sessions_of_users import me
from tests.clients import PASSWORD, User, details_of, error_of
from tests.waiting import in_parallel


def account(**changes: Any) -> dict[str, Any]:
    """Build a body for `/v1/auth/register`."""
    name = f"user-{time.perf_counter_ns()}"
    return {"login": name, "email": f"{name}@example.com", "password": PASSWORD, **changes}


def test_register_makes_the_owner_of_an_org(client: FlaskClient) -> None:
    """201 with a token that works at once."""
    body = account()
    response = client.post("/v1/auth/register", json=body)
    assert response.json is not None

    assert 201 == response.status_code
    assert {"user_id", "access_token", "token_type"} == set(response.json)
    assert "bearer" == response.json["token_type"]
    headers = {"Authorization": f"Bearer {response.json['access_token']}"}
    user = client.get("/v1/me", headers=headers).json
    assert user is not None
    assert (response.json["user_id"], "owner") == (user["id"], user["role"])
    assert (body["login"], body["login"]) == (user["username"], user["org_name"])


def credits_and_run_of_newcomer(
    connections: Connections, credits: int
) -> tuple[dict[str, Any], TestResponse]:
    """Return the credits of a newly registered user's org, and the response to a run on the
    scripted route.
    """
    settings = replace(connections.settings, new_org_credits=credits)
    app = create_app(connections=replace(connections, settings=settings))
    http = app.test_client()
    try:
        token = http.post("/v1/auth/register", json=account()).json["access_token"]
        headers = {"Authorization": f"Bearer {token}"}
        thread = http.post("/v1/threads", json={}, headers=headers).json["id"]
        body = {"route_id": "scripted"}
        run = http.post(f"/v1/threads/{thread}/runs", json=body, headers=headers)
        return http.get("/v1/me/credits", headers=headers).json, run
    finally:
        app.extensions["arkloop.hub"].close()


def test_who_registers_has_no_route_of_the_server(connections: Connections) -> None:
    """An open registration gives nothing away: the new org pays in advance, and has no credits."""
    has, run = credits_and_run_of_newcomer(connections, 0)

    assert (True, 0, []) == (has["is_prepaid"], has["balance"], has["entries"])
    assert (429, "budget.exhausted") == error_of(run)
    assert "credits" == run.json["details"]["scope"]


def test_who_registers_gets_the_stated_allowance(connections: Connections) -> None:
    """It stands in the ledger, and pays for runs."""
    has, run = credits_and_run_of_newcomer(connections, 5)

    assert 5 == has["balance"]
    [grant] = has["entries"]
    assert ("grant", 5, "customer") == (grant["kind"], grant["credits"], grant["credit_account"])
    assert 201 == run.status_code


def test_two_who_register_are_strangers(client: FlaskClient) -> None:
    """Each has an org of their own."""
    orgs = set()
    for _ in range(2):
        token = client.post("/v1/auth/register", json=account()).json["access_token"]
        user = client.get("/v1/me", headers={"Authorization": f"Bearer {token}"}).json
        orgs.add(user["org_id"])

    assert 2 == len(orgs)


def test_a_login_or_email_is_taken_in_whatever_case(client: FlaskClient) -> None:
    """409 for both, and no half an account is left."""
    taken = account(login=f"Ünal-{time.perf_counter_ns()}")
    assert 201 == client.post("/v1/auth/register", json=taken).status_code

    for body in (
        account(login=taken["login"]),
        account(login=taken["login"].upper()),
        account(email=taken["email"]),
        account(email=taken["email"].upper()),
    ):
        assert (409, "accounts.taken") == error_of(client.post("/v1/auth/register", json=body))


def test_of_many_who_register_one_login_at_once_one_gets_it(client: FlaskClient) -> None:
    """The others see 409, none a 500."""
    body = account()
    app = client.application

    answers = in_parallel(5, lambda _: app.test_client().post("/v1/auth/register", json=body))

    assert [201, 409, 409, 409, 409] == sorted(answer.status_code for answer in answers)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("login", ""),
        ("login", "a" * 201),
        ("login", "a@b"),
        ("login", " a"),
        ("login", "a "),
        ("login", "a\nb"),
        ("login", 1),
        ("login", None),
        ("email", ""),
        ("email", "a"),
        ("email", "a@"),
        ("email", "@b"),
        ("email", "a b@c"),
        ("email", "a@b@c"),
        ("email", "a\x1b[2J@b"),
        ("email", "a\x9b@b"),
        ("email", "a\u202e@b"),
        ("email", "a@" + "b" * 199),
        ("password", "1234567"),
        ("password", "p" * 1025),
        ("password", None),
        ("role", "owner"),
        ("org_id", "01a20e5a-2b91-76ef-b381-d919c4ad9778"),
    ],
)
def test_a_bad_account_is_refused(client: FlaskClient, field: str, value: object) -> None:
    """An account with a bad field gets 422 with the field's name."""
    response = client.post("/v1/auth/register", json=account(**{field: value}))

    assert [field] == list(details_of(response))


@pytest.mark.parametrize(
    "changes", [{"login": "ü" * 150}, {"password": "x" * 1024}, {"password": "пароль☂☂"}]
)
def test_lengths_count_characters(client: FlaskClient, changes: dict[str, str]) -> None:
    """Lengths are counted in characters, whatever they are in bytes."""
    body = account(**changes)
    assert 201 == client.post("/v1/auth/register", json=body).status_code

    login = {"login": body["login"], "password": body["password"]}
    assert 200 == client.post("/v1/auth/login", json=login).status_code


def test_registration_can_be_closed(connections: Connections) -> None:
    """A closed registration responds 403, whatever the body."""
    settings = replace(connections.settings, registration_open=False)
    client = create_app(connections=replace(connections, settings=settings)).test_client()

    for body in (account(), {}):
        response = client.post("/v1/auth/register", json=body)
        assert (403, "auth.forbidden") == error_of(response)


def test_only_a_hash_of_the_password_is_stored(alice: User, connections: Connections) -> None:
    """Passwords are stored as salted argon2id hashes only."""
    with connections.reading() as sql:
        stored = sql.scalar(select(users.c.password_hash).where(users.c.id == alice.id))

    assert str(stored).startswith("$argon2id$")
    assert PASSWORD not in str(stored)


@pytest.mark.parametrize("spell", [str, str.upper, lambda name: f"{name}@example.com"])
def test_login_by_name_or_email_in_whatever_case(
    alice: User, client: FlaskClient, spell: Callable[[str], str]
) -> None:
    """The login and the email identify the same user, in upper and lower case."""
    body = {"login": spell(alice.login), "password": PASSWORD}

    response = client.post("/v1/auth/login", json=body)

    assert response.json is not None
    assert (200, {"access_token", "token_type"}) == (response.status_code, set(response.json))
    assert 200 == me(client, response)


def test_a_wrong_password_and_an_unknown_user_look_the_same(
    alice: User, client: FlaskClient
) -> None:
    """The same status, code and text: nobody learns who has an account."""
    answers = [
        client.post("/v1/auth/login", json={"login": login, "password": "wrong password"})
        for login in (alice.login, "nobody", "nobody@example.com")
    ]

    assert {(401, "auth.unauthorized")} == {error_of(answer) for answer in answers}
    assert 1 == len({answer.json["message"] for answer in answers})


def test_an_unknown_user_takes_as_long_as_a_wrong_password(
    alice: User, client: FlaskClient
) -> None:
    """A login of an unknown user computes a hash as well, so that its time reveals nothing."""

    def seconds(login: str) -> float:
        # Of all threads of this process, for the hash has its own; not of the machine's others.
        began = time.process_time()
        client.post("/v1/auth/login", json={"login": login, "password": "wrong password"})
        return time.process_time() - began

    # By turns, so that what else happens here happens to both.
    times = [(seconds("nobody"), seconds(alice.login)) for _ in range(5)]

    unknown, known = map(min, zip(*times, strict=True))
    assert unknown > known / 2


def test_the_refresh_token_is_for_the_auth_endpoints_alone(
    alice: User, connections: Connections
) -> None:
    """HttpOnly, SameSite=Strict, below /v1/auth, and Secure unless that is turned off."""
    settings = replace(connections.settings, secure_cookies=True)
    client = create_app(connections=replace(connections, settings=settings)).test_client()

    response = client.post("/v1/auth/login", json={"login": alice.login, "password": PASSWORD})

    _, *attributes = response.headers["Set-Cookie"].split("; ")
    names = {attribute.split("=")[0] for attribute in attributes}
    assert {"Secure", "HttpOnly", "SameSite", "Path", "Max-Age", "Expires"} == names
    assert {"SameSite=Strict", "Path=/v1/auth"} <= set(attributes)


@pytest.mark.parametrize("body", [{}, {"login": "a"}, {"login": 1, "password": PASSWORD}, []])
def test_a_login_needs_both_fields(client: FlaskClient, body: object) -> None:
    """422 before anything is looked up."""
    assert 422 == client.post("/v1/auth/login", json=body).status_code


def test_a_new_password_takes_the_place_of_the_old(alice: User, client: FlaskClient) -> None:
    """After a change of the password only the new one logs in."""
    change = {"current": PASSWORD, "new": "another password"}

    response = alice.post("/v1/auth/password", change)

    assert (200, {"ok": True}) == (response.status_code, response.json)
    statuses = [
        client.post("/v1/auth/login", json={"login": alice.login, "password": word}).status_code
        for word in (PASSWORD, "another password")
    ]
    assert [401, 200] == statuses


def test_a_new_password_ends_the_other_logins(alice: User, client: FlaskClient) -> None:
    """A thief is logged out, the user who changed it stays logged in."""
    thief = client.post("/v1/auth/login", json={"login": alice.login, "password": PASSWORD})
    assert 200 == me(client, thief)

    alice.post("/v1/auth/password", {"current": PASSWORD, "new": "another password"})

    assert 401 == me(client, thief)
    assert 401 == client.post("/v1/auth/refresh").status_code
    assert 200 == alice.get("/v1/me").status_code
    assert 200 == alice.client.post("/v1/auth/refresh").status_code


@pytest.mark.parametrize("path", ["login", "password"])
def test_a_new_password_ends_what_the_old_one_is_good_for(
    alice: User, app: Flask, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    """A request of a thief whose password was right when it was verified comes to nothing."""
    client, login = app.test_client(), {"login": alice.login, "password": PASSWORD}
    answer = client.post("/v1/auth/login", json=login).json or {}
    headers = {"Authorization": f"Bearer {answer['access_token']}"}
    body = login if path == "login" else {"current": PASSWORD, "new": "that of the thief"}
    verify, new = passwords.verify, {"current": PASSWORD, "new": "another password"}

    def verify_and_change(password: str, hash_: str | None) -> bool:
        monkeypatch.setattr(passwords, "verify", verify)
        is_right = verify(password, hash_)
        with ThreadPoolExecutor(1) as other:  # another request, in another context
            assert 200 == other.submit(alice.post, "/v1/auth/password", new).result().status_code
        return is_right

    monkeypatch.setattr(passwords, "verify", verify_and_change)
    assert 401 == client.post(f"/v1/auth/{path}", json=body, headers=headers).status_code
    login = {**login, "password": "another password"}
    assert 200 == client.post("/v1/auth/login", json=login).status_code


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"current": "wrong password", "new": "another password"}, "current"),
        ({"current": PASSWORD, "new": "1234567"}, "new"),
        ({"current": PASSWORD}, "new"),
        ({"new": "another password"}, "current"),
    ],
)
def test_a_bad_change_of_password_is_refused(alice: User, body: dict[str, str], field: str) -> None:
    """422 names the field; the old password stays."""
    assert [field] == list(details_of(alice.post("/v1/auth/password", body)))
    login = {"login": alice.login, "password": PASSWORD}
    assert 200 == alice.client.post("/v1/auth/login", json=login).status_code


def test_an_api_key_changes_no_password(alice: User) -> None:
    """An API key is not enough to take over the account."""
    body = {"current": PASSWORD, "new": "another password"}

    assert (403, "auth.forbidden") == error_of(alice.api_key().post("/v1/auth/password", body))
