"""`/v1/client-tokens`, and what an end user makes with one."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import jwt
import pytest
from flask import Flask
from sqlalchemy import update

from arkloop.api.auth import client_tokens
from arkloop.shared.config import Settings
from arkloop.shared.ids import new_id
from arkloop.shared.storage.connections import Connections
from arkloop.shared.storage.tables.threads import threads
from tests.clients import Register, User, details_of, error_of
from tests.end_users import ANN, BOB, end_user

SCOPES = ["data.threads.read"]


def test_a_token_says_what_it_is_for(alice: User) -> None:
    """The response shows end user, scopes, thread, persona and end; the token lives 15 minutes."""
    thread_id = alice.thread(end_user_id=ANN)
    body = {"end_user_id": ANN, "scopes": SCOPES, "thread": thread_id}

    made = alice.post("/v1/client-tokens", body)

    assert 201 == made.status_code
    shown = dict(made.json or {})
    assert shown.pop("token").startswith("alc_")
    ends = datetime.fromisoformat(shown.pop("expires_at"))
    assert abs(ends - datetime.now(UTC) - timedelta(minutes=15)) < timedelta(minutes=1)
    assert {**body, "persona_id": "assistant@1"} == shown


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"end_user_id": None}, "end_user_id"),
        ({"end_user_id": ""}, "end_user_id"),
        ({"scopes": []}, "scopes"),
        ({"scopes": ["admin"]}, "scopes"),
        ({"scopes": ["tools.work"]}, "scopes"),
        ({"thread": "x"}, "thread"),
        ({"thread": str(new_id())}, "thread"),
        ({"persona_id": "Not an id"}, "persona_id"),
        ({"lifetime_seconds": 59}, "lifetime_seconds"),
        ({"lifetime_seconds": 3601}, "lifetime_seconds"),
        ({"lifetime_seconds": "900"}, "lifetime_seconds"),
        ({"org_id": str(new_id())}, "org_id"),
    ],
)
def test_what_a_token_cannot_be_is_refused(
    alice: User, changes: dict[str, Any], field: str
) -> None:
    """422 names the field."""
    response = alice.post("/v1/client-tokens", {"end_user_id": ANN, "scopes": SCOPES, **changes})

    assert field in next(iter(details_of(response)))


def test_a_token_is_for_a_persona_that_exists(alice: User) -> None:
    """422 for one that the org does not have."""
    body = {"end_user_id": ANN, "scopes": SCOPES, "persona_id": "unknown@1"}

    assert (422, "personas.not_found") == error_of(alice.post("/v1/client-tokens", body))


def test_a_thread_must_be_of_the_end_user(alice: User) -> None:
    """422 for a thread of another end user, of none, or a private one."""
    others = [
        alice.thread(end_user_id=BOB),
        alice.thread(),
        alice.thread(end_user_id=ANN, is_private=True),
    ]
    for thread_id in others:
        body = {"end_user_id": ANN, "scopes": SCOPES, "thread": thread_id}
        assert ["thread"] == list(details_of(alice.post("/v1/client-tokens", body)))


def test_an_issuer_gives_no_scope_that_it_lacks(alice: User) -> None:
    """403 for a key whose scopes are narrower."""
    key = alice.api_key("data.threads.read")
    body = {"end_user_id": ANN, "scopes": ["data.threads.read", "data.threads.write"]}

    assert (403, "auth.forbidden") == error_of(key.post("/v1/client-tokens", body))
    assert 201 == key.post("/v1/client-tokens", {**body, "scopes": SCOPES}).status_code


def test_a_token_ends_with_the_key_that_issued_it(alice: User) -> None:
    """A revoked key's tokens are refused, and other keys' tokens are not."""
    key, other = alice.api_key("admin", *SCOPES), alice.api_key(*SCOPES)
    ann, bob = end_user(key, scopes=SCOPES), end_user(other, BOB, scopes=SCOPES)
    assert 200 == ann.get("/v1/threads").status_code

    [key_id] = [
        row["id"] for row in alice.get("/v1/api-keys").json or [] if "admin" in row["scopes"]
    ]
    assert 204 == alice.delete(f"/v1/api-keys/{key_id}").status_code

    assert (401, "auth.unauthorized") == error_of(ann.get("/v1/threads"))
    assert 200 == bob.get("/v1/threads").status_code


def test_a_token_ends_with_the_login_that_issued_it(app: Flask, alice: User) -> None:
    """After a logout, the tokens of the login are refused."""
    ann = end_user(alice)
    assert 200 == ann.get("/v1/threads").status_code

    assert 200 == alice.post("/v1/auth/logout").status_code

    assert (401, "auth.unauthorized") == error_of(ann.get("/v1/threads"))


def test_only_tokens_of_this_service_are_taken(alice: User, settings: Settings) -> None:
    """401 for one that is expired, changed, of another secret, header or audience, or without its
    prefix.
    """
    ann = end_user(alice)
    token = ann.token.removeprefix(client_tokens.PREFIX)
    claims = jwt.decode(token, settings.jwt_secret, ["HS256"], audience="arkloop-client")

    def signed(secret: str = settings.jwt_secret, typ: str = "ct+jwt", **changes: Any) -> str:
        made = jwt.encode({**claims, **changes}, secret, "HS256", headers={"typ": typ})
        return client_tokens.PREFIX + made

    assert 200 == alice.with_token(signed()).get("/v1/threads").status_code
    too_long = int(datetime.now(UTC).timestamp()) + 2 * client_tokens.MAX_LIFETIME
    for wrong in (
        token,
        ann.token[:-2],
        client_tokens.PREFIX,
        client_tokens.PREFIX + alice.token,
        client_tokens.PREFIX + jwt.encode(claims, "", "none"),
        signed(secret="x" * 32),
        signed(typ="at+jwt"),
        signed(aud="arkloop-api"),
        signed(aud=["arkloop-client"]),
        signed(exp=1),
        signed(exp=too_long),
        signed(exp=str(claims["exp"])),
        signed(sid=None),
        signed(end_user=None),
        signed(end_user=""),
        signed(scopes=None),
        signed(persona=None),
        signed(org="x"),
    ):
        response = alice.with_token(wrong).get("/v1/threads")
        assert (401, "auth.unauthorized") == error_of(response), wrong
        assert ("The token has expired." in response.text) == (wrong == signed(exp=1)), wrong


def test_what_an_end_user_makes_is_theirs(alice: User) -> None:
    """Threads and runs get the token's end user, which the body may repeat."""
    ann = end_user(alice)
    thread = ann.post("/v1/threads", {"title": "Mine", "end_user_id": ANN}).json or {}
    made = ann.post("/v1/runs", {"message": "Hi", "thread": {"title": "New"}}).json or {}
    in_thread = ann.post(f"/v1/threads/{thread['id']}/runs", {"message": "Hi"}).json or {}

    assert ANN == thread["end_user_id"]
    for run_id in (made["run_id"], in_thread["run_id"]):
        assert ANN == (alice.get(f"/v1/runs/{run_id}").json or {})["end_user_id"]
    assert ANN == (alice.get(f"/v1/threads/{made['thread_id']}").json or {})["end_user_id"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/threads", {"end_user_id": BOB}),
        ("/v1/threads", {"is_private": True}),
        ("/v1/threads", {"metadata": {"plan": "pro"}}),
        ("/v1/threads", {"on_busy": "enqueue"}),
        ("/v1/threads", {"external_id": "x", "on_busy": "steer"}),
        ("/v1/threads", {"external_id": "x", "end_user_id": BOB}),
        ("/v1/runs", {"message": "Hi", "end_user_id": BOB}),
        ("/v1/runs", {"message": "Hi", "thread": {"end_user_id": BOB}}),
        ("/v1/runs", {"message": "Hi", "thread": {"end_user_id": BOB, "external_id": "x"}}),
        ("/v1/runs", {"message": "Hi", "thread": {"is_private": True}}),
        ("/v1/runs", {"message": "Hi", "thread": {"metadata": {"plan": "pro"}}}),
        ("/v1/runs", {"message": "Hi", "thread": {"on_busy": "steer"}}),
        ("/v1/runs", {"message": "Hi", "thread": {"external_id": "x", "on_busy": "steer"}}),
        ("/v1/runs", {"message": "Hi", "metadata": {"plan": "pro"}}),
        ("/v1/runs", {"message": "Hi", "route_id": "scripted"}),
        ("/v1/runs", {"message": "Hi", "persona_id": "plain@1"}),
        ("/v1/runs", {"message": "Hi", "instructions": "Obey me."}),
        ("/v1/runs", {"message": "Hi", "variables": {"name": "x"}}),
        ("/v1/runs", {"message": "Hi", "model_settings": {"temperature": 1}}),
        ("/v1/runs", {"message": "Hi", "output_schema": {"type": "object"}}),
        ("/v1/runs", {"message": "Hi", "limits": {"max_steps": 1}}),
    ],
)
def test_an_end_user_sets_nothing_of_the_org(alice: User, path: str, body: dict[str, Any]) -> None:
    """403 for another end user, privacy, metadata, and all that shapes a run; nothing is made."""
    ann = end_user(alice)

    for headers in ({}, {"Idempotency-Key": "1"}):
        assert (403, "auth.forbidden") == error_of(ann.post(path, body, headers=headers))

    assert [] == alice.get("/v1/threads").json
    assert [] == alice.get("/v1/runs").json


@pytest.mark.parametrize("given", [None, BOB])
def test_an_end_user_gives_no_thread_away(alice: User, given: str | None) -> None:
    """403 where a change would leave a thread without its end user, or with another one."""
    ann, thread_id = end_user(alice), alice.thread(end_user_id=ANN)
    path = f"/v1/threads/{thread_id}"

    refused = ann.patch(path, {"title": "Mine", "end_user_id": given})
    kept = ann.patch(path, {"title": "Hers", "end_user_id": ANN}).json or {}

    assert (403, "auth.forbidden") == error_of(refused)
    assert ("Hers", ANN) == (kept["title"], kept["end_user_id"])


@pytest.mark.parametrize("given", [None, "steer"])
def test_an_end_user_decides_about_no_request_of_the_org(alice: User, given: str | None) -> None:
    """403 for the `on_busy` of a thread, which counts for all; that of a request is theirs."""
    ann, thread_id = end_user(alice), alice.thread(end_user_id=ANN, on_busy="enqueue")
    path = f"/v1/threads/{thread_id}"

    refused = ann.patch(path, {"title": "Mine", "on_busy": given})

    assert (403, "auth.forbidden") == error_of(refused)
    assert "enqueue" == (alice.get(path).json or {})["on_busy"]
    for on_busy in ("reject", "merge", "interrupt"):
        body = {"message": "Hi", "on_busy": on_busy}
        assert 201 == ann.post(f"{path}/runs", body).status_code, on_busy


def test_runs_have_the_tokens_persona(alice: User) -> None:
    """A run has the persona that the token was issued for, which the request may repeat."""
    ann = end_user(alice, persona_id="plain")
    for body in ({"message": "Hi"}, {"message": "Hi", "persona_id": "plain@1"}):
        made = ann.post("/v1/runs", body).json or {}
        assert "plain@1" == (ann.get(f"/v1/runs/{made['run_id']}").json or {})["persona_id"]


def test_a_retry_in_a_thread_without_a_run_leaves_no_variable_out(alice: User) -> None:
    """No earlier run has values for them, and an end user may not give any."""
    prompt = {"system_prompt": "You see account {{account_id}} alone.", "overrides": ["variables"]}
    alice.post("/v1/personas", json={"key": "billing", **prompt})
    ann = end_user(alice, persona_id="billing")
    thread_id = ann.thread()
    ann.say(thread_id, "Hi")

    refused = ann.post(f"/v1/threads/{thread_id}:retry")

    assert (422, "validation.error") == error_of(refused)
    assert ["variables.account_id"] == list(details_of(refused))


def test_lists_have_the_end_users_own(
    alice: User, make_run: Callable[..., UUID], connections: Connections
) -> None:
    """Lists leave out other end users, private threads and sub-runs, whatever is filtered."""
    mine, others = alice.thread(end_user_id=ANN, external_id="a"), alice.thread(end_user_id=BOB)
    private = alice.thread(end_user_id=ANN, is_private=True)
    run = str(make_run(alice, mine, end_user_id=ANN))
    child = alice.thread()
    make_run(alice, child, end_user_id=ANN, parent_run_id=UUID(run))
    for thread_id in (others, private):
        make_run(alice, thread_id, end_user_id=ANN)
    ann, one = end_user(alice), end_user(alice, thread=mine)

    def listed(who: User, path: str) -> list[str]:
        return [row.get("run_id", row.get("id")) for row in who.get(path).json or []]

    for who in (ann, one):
        for query in ("", f"?end_user_id={ANN}", "?external_id=a"):
            assert [mine] == listed(who, f"/v1/threads{query}")
        for query in (f"?end_user_id={BOB}", "?external_id=b", "?metadata.a=b"):
            assert [] == listed(who, f"/v1/threads{query}")
        for query in ("", f"?thread_id={mine}", f"?end_user_id={ANN}", "?status=running"):
            assert [run] == listed(who, f"/v1/runs{query}")
        for query in (
            f"?thread_id={others}",
            f"?thread_id={private}",
            f"?thread_id={child}",
            f"?parent_run_id={run}",
            f"?end_user_id={BOB}",
            "?metadata.a=b",
        ):
            assert [] == listed(who, f"/v1/runs{query}"), query
    another = ann.thread()
    assert [another, mine] == listed(ann, "/v1/threads")
    assert [mine] == listed(one, "/v1/threads")


def test_an_end_user_sees_nothing_about_users(alice: User, make_run: Callable[..., UUID]) -> None:
    """Neither name and address of the run's creator nor what the org has overridden are shown."""
    thread_id = alice.thread(end_user_id=ANN)
    run_id = make_run(
        alice, thread_id, end_user_id=ANN, options={"instructions": "A secret of the org."}
    )
    ann = end_user(alice)

    for path in ("/v1/runs", f"/v1/runs/{run_id}"):
        text = ann.get(path).text
        assert alice.login not in text and "secret" not in text, path
    assert "secret" in alice.get(f"/v1/runs/{run_id}").text


def test_end_users_of_a_key_have_idempotency_keys_of_their_own(alice: User) -> None:
    """The same key of another end user, or of the issuer, is another key."""
    answers = [
        who.post("/v1/threads", {"title": "x"}, headers={"Idempotency-Key": "1"})
        for who in (alice, end_user(alice), end_user(alice, BOB), end_user(alice))
    ]

    ids = [(answer.json or {})["id"] for answer in answers]
    assert 3 == len(set(ids))
    assert (ids[1], "true") == (ids[3], answers[3].headers.get("Idempotency-Replayed"))


def test_an_end_user_loses_a_thread_that_is_given_away(
    alice: User, connections: Connections
) -> None:
    """When the org gives a thread another end user, a token for that thread opens nothing."""
    thread_id = alice.thread(end_user_id=ANN)
    ann = end_user(alice, thread=thread_id)
    assert 200 == ann.get(f"/v1/threads/{thread_id}").status_code

    with connections.transaction() as tx:
        given = update(threads).where(threads.c.id == UUID(thread_id))
        tx.sql.execute(given.values(end_user_id=BOB))

    assert (404, "threads.not_found") == error_of(ann.get(f"/v1/threads/{thread_id}"))
    assert [] == ann.get("/v1/threads").json


def test_a_token_writes_no_more_than_its_issuer(register: Register, alice: User) -> None:
    """Tokens of a member write the member's own threads of the end user; those of an admin all."""
    member = register(org_of=alice, role="member")
    of_alice, of_member = (who.thread(end_user_id=ANN) for who in (alice, member))
    by_member, by_admin = end_user(member), end_user(alice)

    for who, thread_id, status in (
        (by_member, of_alice, 403),
        (by_member, of_member, 201),
        (by_admin, of_alice, 201),
        (by_admin, of_member, 201),
    ):
        path = f"/v1/threads/{thread_id}/messages"
        assert status == who.post(path, {"content": "Hi"}).status_code
        assert 200 == who.get(path).status_code
