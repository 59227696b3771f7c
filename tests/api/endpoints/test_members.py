"""`/v1/orgs/{org_id}/members`."""

from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import func, select

from arkloop.api.auth.bearer import Authenticator
from arkloop.shared.accounts import accounts
from arkloop.shared.ids import new_id
from arkloop.shared.storage.connections import Connections
from arkloop.shared.storage.tables.accounts import api_keys, memberships
from tests.clients import PASSWORD, PASSWORD_HASH, Register, User, details_of, error_of
from tests.end_users import end_user
from tests.waiting import eventually, in_parallel


def path(user: User, member: User | None = None) -> str:
    """Return the path of the members of the user's org, or of one of them."""
    return f"/v1/orgs/{user.org_id}/members" + (f"/{member.id}" if member else "")


def roles(user: User) -> dict[str, str]:
    """Return the role of each login in the user's org."""
    response = user.get(path(user))
    assert 200 == response.status_code, response.text
    return {member["login"]: member["role"] for member in response.json}


@pytest.fixture
def team(register: Register, alice: User) -> dict[str, User]:
    """A user of each role, all in one org; alice is an owner, too."""
    others = {role: register(org_of=alice, role=role) for role in ("owner", "admin", "member")}
    return {"alice": alice, **others}


def test_members_are_listed_page_by_page(team: dict[str, User]) -> None:
    """Everybody in the org gets the newest first, with all fields."""
    member, alice = team["member"], team["alice"]
    first = member.get(f"{path(member)}?limit=3")
    rest = member.get(f"{path(member)}?limit=3&before={first.headers['X-Next-Cursor']}")

    expected = ["member", "admin", "owner", "alice"]
    assert [team[name].login for name in expected] == [m["login"] for m in first.json + rest.json]
    shown = rest.json[0]
    assert {
        "user_id": str(alice.id),
        "login": alice.login,
        "email": f"{alice.login}@example.com",
        "role": "owner",
        "joined_at": shown["joined_at"],
    } == shown


def test_a_key_lists_members_only_with_admin(alice: User) -> None:
    """A key of an owner for data alone learns no addresses of colleagues."""
    assert 200 == alice.api_key("admin").get(path(alice)).status_code
    key = alice.api_key("data.threads.read")
    assert (403, "auth.forbidden") == error_of(key.get(path(alice)))


@pytest.mark.parametrize("managed", ["invitations", "identity-provider"])
def test_a_key_with_admin_cannot_read_who_may_join(alice: User, managed: str) -> None:
    """The refusal is true of a request that would change nothing."""
    refused = alice.api_key("admin").get(f"/v1/orgs/{alice.org_id}/{managed}")

    assert (403, "auth.forbidden") == error_of(refused)
    why = "An API key cannot manage who is in the organization."
    assert why == (refused.json or {})["message"]


@pytest.mark.parametrize(
    ("who", "whose", "role", "status"),
    [
        ("owner", "member", "owner", 200),
        ("owner", "alice", "member", 200),
        ("owner", "owner", "admin", 200),
        ("admin", "member", "admin", 200),
        ("admin", "admin", "member", 200),
        ("admin", "member", "owner", 403),
        ("admin", "owner", "member", 403),
        ("member", "member", "admin", 403),
        ("member", "admin", "member", 403),
    ],
)
def test_each_role_changes_what_it_may(
    team: dict[str, User], who: str, whose: str, role: str, status: int
) -> None:
    """Owners change everybody; admins neither owners, nor make any; members nobody."""
    before = roles(team["alice"])
    response = team[who].patch(path(team[who], team[whose]), {"role": role})

    assert status == response.status_code, response.text
    changed = {team[whose].login: role} if status == 200 else {}
    assert {**before, **changed} == roles(team["alice"])


@pytest.mark.parametrize(
    ("who", "whose", "status"),
    [
        ("owner", "alice", 204),
        ("owner", "owner", 204),
        ("admin", "member", 204),
        ("admin", "admin", 204),
        ("admin", "owner", 403),
        ("member", "admin", 403),
        ("member", "member", 204),
    ],
)
def test_each_role_removes_whom_it_may(
    team: dict[str, User], who: str, whose: str, status: int
) -> None:
    """Owners remove everybody, admins no owners, and everybody themselves."""
    assert status == team[who].delete(path(team[who], team[whose])).status_code

    stays = team[whose].login in roles(team["alice" if whose != "alice" else "owner"])
    assert (status == 403) == stays


def test_a_changed_role_counts_at_once(team: dict[str, User]) -> None:
    """The member's tokens and keys have the new role."""
    key = team["member"].api_key()
    team["alice"].patch(path(team["alice"], team["member"]), {"role": "admin"})
    assert "admin" in team["member"].get("/v1/me").json["permissions"]

    team["alice"].patch(path(team["alice"], team["admin"]), {"role": "member"})
    refused = team["admin"].patch(path(team["admin"], team["member"]), {"role": "member"})
    assert (403, "auth.forbidden") == error_of(refused)
    assert "admin" not in key.get("/v1/me").json["permissions"]


def test_a_removed_members_access_ends(
    team: dict[str, User], make_run: Callable[..., Any], connections: Connections
) -> None:
    """Tokens, cookie, keys and client tokens end; runs of the keys are cancelled, threads stay."""
    member, alice = team["member"], team["alice"]
    key = member.api_key()
    with connections.reading() as sql:
        key_id = sql.scalar(select(api_keys.c.id).where(api_keys.c.user_id == member.id))
    thread_id = key.thread(end_user_id="ann")
    run_id = make_run(member, thread_id, api_key_id=key_id)
    other_run_id = make_run(member, member.thread())
    customers = [end_user(issuer) for issuer in (key, member)]
    assert [200, 200] == [one.get("/v1/threads").status_code for one in customers]

    assert 204 == alice.delete(path(alice, member)).status_code

    ended = [who.get("/v1/threads").status_code for who in (member, key, *customers)]
    assert [401] * 4 == ended
    assert 401 == member.client.post("/v1/auth/refresh").status_code
    login = {"login": member.login, "password": PASSWORD}
    assert (403, "auth.forbidden") == error_of(member.client.post("/v1/auth/login", json=login))
    assert 200 == alice.get(f"/v1/threads/{thread_id}").status_code
    phases = [alice.get(f"/v1/runs/{one}").json["phase"] for one in (run_id, other_run_id)]
    assert ["cancelling", "executing"] == phases


def test_open_streams_of_a_removed_member_end_elsewhere(
    team: dict[str, User], connections: Connections
) -> None:
    """They end within 5 s, in a process that has just seen each token alive."""
    member, alice = team["member"], team["alice"]
    key = member.api_key()
    elsewhere = Authenticator(connections)
    tokens = [member.token, key.token, end_user(key).token, end_user(member).token]
    actors = [elsewhere.identify(token) for token in tokens]
    assert all(map(elsewhere.still_valid, actors))

    assert 204 == alice.delete(path(alice, member)).status_code

    eventually(lambda: not any(map(elsewhere.still_valid, actors)), seconds=5)


def test_who_was_removed_from_one_org_keeps_the_others(
    register: Register, alice: User, connections: Connections, app: Flask
) -> None:
    """Logins and keys of the other org go on; each login sees its own org alone."""
    bob = register()
    with connections.transaction() as tx:
        values = {"user_id": bob.id, "org_id": alice.org_id, "role": "member"}
        tx.sql.execute(memberships.insert().values(**values))
    body = {"login": bob.login, "password": PASSWORD, "org_id": str(alice.org_id)}
    client = app.test_client()
    token = client.post("/v1/auth/login", json=body).json["access_token"]
    guest = User(client, bob.login, bob.id, alice.org_id, token)
    key, private = bob.api_key(), bob.thread(is_private=True)
    assert 404 == guest.get(f"/v1/threads/{private}").status_code
    assert str(alice.org_id) == guest.get("/v1/me").json["org_id"]
    assert 200 == client.post("/v1/auth/refresh").status_code

    assert 204 == alice.delete(path(alice, guest)).status_code

    assert 401 == guest.get("/v1/me").status_code
    assert [200, 200] == [who.get("/v1/me").status_code for who in (bob, key)]
    assert 200 == bob.client.post("/v1/auth/refresh").status_code
    assert (403, "auth.forbidden") == error_of(client.post("/v1/auth/login", json=body))


def test_an_org_keeps_its_last_owner(alice: User, register: Register) -> None:
    """Neither leaves nor changes their role; with a second owner both work."""
    register(org_of=alice, role="admin")
    demote = {"role": "admin"}

    assert (409, "members.last_owner") == error_of(alice.delete(path(alice, alice)))
    assert (409, "members.last_owner") == error_of(alice.patch(path(alice, alice), demote))
    assert 200 == alice.patch(path(alice, alice), {"role": "owner"}).status_code
    register(org_of=alice)
    assert 200 == alice.patch(path(alice, alice), demote).status_code


@pytest.mark.parametrize("leave", [True, False])
def test_of_owners_who_go_at_once_one_stays(
    alice: User, register: Register, connections: Connections, leave: bool
) -> None:
    """However the requests meet, the last of them gets 409."""
    owners = [alice, *(register(org_of=alice) for _ in range(3))]

    def go(number: int) -> int:
        owner = owners[number]
        if leave:
            return owner.delete(path(owner, owner)).status_code
        return owner.patch(path(owner, owner), {"role": "member"}).status_code

    statuses = in_parallel(4, go)

    assert [204 if leave else 200] * 3 + [409] == sorted(statuses)
    with connections.reading() as sql:
        count = select(func.count()).where(
            memberships.c.org_id == alice.org_id, memberships.c.role == "owner"
        )
        assert 1 == sql.scalar(count)


def test_two_owners_who_remove_each_other_at_once_are_not_both_gone(
    alice: User, register: Register
) -> None:
    """The second request comes from somebody who is no member any more."""
    bob = register(org_of=alice)
    pairs = [(alice, bob), (bob, alice)]

    def remove(number: int) -> int:
        who, whom = pairs[number]
        return who.delete(path(who, whom)).status_code

    statuses = in_parallel(2, remove)

    assert 204 == min(statuses)
    assert max(statuses) in (401, 403)


def test_an_api_key_changes_no_member(team: dict[str, User]) -> None:
    """A key with `admin` changes none either: its thief must not lock out its owner."""
    key = team["alice"].api_key()
    one = path(key, team["member"])

    assert (403, "auth.forbidden") == error_of(key.patch(one, {"role": "owner"}))
    assert (403, "auth.forbidden") == error_of(key.delete(one))


def test_another_org_and_its_members_are_not_found(alice: User, register: Register) -> None:
    """They are treated as if they did not exist, even if the ids are right."""
    bob, nobody = register(), new_id()
    for org in (bob.org_id, nobody):
        assert (404, "orgs.not_found") == error_of(alice.get(f"/v1/orgs/{org}/members"))
        one = f"/v1/orgs/{org}/members/{bob.id}"
        assert (404, "orgs.not_found") == error_of(alice.patch(one, {"role": "member"}))
        assert (404, "orgs.not_found") == error_of(alice.delete(one))
    for user_id in (bob.id, nobody):
        one = f"{path(alice)}/{user_id}"
        assert (404, "members.not_found") == error_of(alice.patch(one, {"role": "member"}))
        assert (404, "members.not_found") == error_of(alice.delete(one))


@pytest.mark.parametrize("role", ["root", "", None, 1, ["owner"]])
def test_a_role_is_one_of_three(alice: User, register: Register, role: Any) -> None:
    """422 names the field."""
    member = register(org_of=alice, role="member")

    assert ["role"] == list(details_of(alice.patch(path(alice, member), {"role": role})))


def test_a_private_thread_elsewhere_has_its_external_id(
    alice: User, register: Register, connections: Connections
) -> None:
    """409 where the same person uses it for a private thread of another org."""
    with connections.transaction() as tx:
        user_id = accounts.create_user(
            tx,
            org_id=alice.org_id,
            role="member",
            login=f"both-{new_id()}",
            email=f"{new_id()}@example.com",
            password_hash=PASSWORD_HASH,
        )
        values = {"user_id": user_id, "org_id": register().org_id, "role": "member"}
        tx.sql.execute(memberships.insert().values(**values))
        login = accounts.profile(tx.sql, user_id, alice.org_id).login
    statuses = []
    for org_id in (alice.org_id, values["org_id"]):
        client = alice.client.application.test_client()
        body = {"login": login, "password": PASSWORD, "org_id": str(org_id)}
        token = client.post("/v1/auth/login", json=body).json["access_token"]
        user = User(client, login, user_id, org_id, token)
        thread = {"external_id": "chat-1", "is_private": True}
        statuses.append(user.post("/v1/threads", thread).status_code)

    assert [201, 409] == statuses


def listed(user: User, listing: str) -> list[str]:
    """Return the ids of a list, read in pages of two."""
    ids, query = [], f"{listing}&limit=2"
    while True:
        response = user.get(query)
        ids += [one.get("run_id") or one["id"] for one in response.json]
        if (cursor := response.headers.get("X-Next-Cursor")) is None:
            return ids
        query = f"{listing}&limit=2&before={cursor}"


def test_lists_of_one_org_are_whole_for_somebody_who_is_in_another_too(
    alice: User, register: Register, connections: Connections
) -> None:
    """Newer private threads in the other org, and their runs, neither appear nor fill pages."""
    bob, body = register(), {"metadata": {"a": "b"}}
    with connections.transaction() as tx:
        values = {"user_id": bob.id, "org_id": alice.org_id, "role": "member"}
        tx.sql.execute(memberships.insert().values(**values))
    login = {"login": bob.login, "password": PASSWORD, "org_id": str(alice.org_id)}
    token = bob.client.post("/v1/auth/login", json=login).json["access_token"]
    here = User(bob.client, bob.login, bob.id, alice.org_id, token)

    def begin(user: User, *, is_private: bool) -> tuple[str, str]:
        thread_id = user.thread(is_private=is_private, **body)
        return thread_id, str(user.post(f"/v1/threads/{thread_id}/runs", body).json["run_id"])

    own = [begin(here, is_private=is_private) for is_private in (False, True, False)]
    for _ in range(4):
        begin(bob, is_private=True)

    threads, runs = ([*ids] for ids in zip(*reversed(own), strict=True))
    for query in ("?", "?metadata.a=b"):
        assert threads == listed(here, f"/v1/threads{query}")
        assert runs == listed(here, f"/v1/runs{query}")
