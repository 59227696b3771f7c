"""`Idempotency-Key`: sent again, made once."""

import threading
from typing import Any

import pytest
from flask import Flask, Response, jsonify
from sqlalchemy import func, select, text
from werkzeug.test import TestResponse

from arkloop.api.app import create_app
from arkloop.api.auth.bearer import requires
from arkloop.api.http import idempotency as api_idempotency
from arkloop.api.http.current import actor
from arkloop.api.http.idempotency import created, idempotent
from arkloop.shared.errors import NotActive
from arkloop.shared.storage.connections import Connections, Transaction
from arkloop.shared.storage.tables.storage import idempotency_keys
from arkloop.shared.threads import threads
from tests.clients import Register, User, details_of, error_of
from tests.waiting import in_parallel


@pytest.fixture(scope="module")
def gate() -> threading.Event:
    """Set it to let `/v1/slow` go on, and `/v1/fails` succeed."""
    return threading.Event()


@pytest.fixture(scope="module")
def entered() -> threading.Event:
    """Is set when `/v1/slow` has begun."""
    return threading.Event()


@pytest.fixture(scope="module")
def app(connections: Connections, gate: threading.Event, entered: threading.Event) -> Flask:
    """The app with endpoints that take long, or fail after they have written."""
    app = create_app(connections=connections)

    @app.post("/v1/slow")
    @requires()
    @idempotent
    def slow(tx: Transaction) -> Response:
        thread = threads.create(tx, actor())
        entered.set()
        gate.wait(30)
        return created({"id": str(thread.id)}, location="/")

    @app.post("/v1/fails")
    @requires()
    @idempotent
    def fail(tx: Transaction) -> Response:
        threads.create(tx, actor())
        if not gate.is_set():
            raise NotActive()
        return jsonify(ok=True)

    return app


def post(user: User, key: str, body: Any = None, path: str = "/v1/threads") -> TestResponse:
    return user.post(path, json=body, headers={"Idempotency-Key": key})


def count(user: User) -> int:
    return len(user.get("/v1/threads?limit=200").json or [])


def test_sent_again_it_is_answered_as_before(alice: User) -> None:
    """The same status, body and Location, and a word that it is a replay; one thread."""
    first = post(alice, "k", {"title": "a"})
    again = post(alice, "k", {"title": "a"})

    assert (201, first.data) == (again.status_code, again.data)
    assert first.headers["Location"] == again.headers["Location"]
    assert "application/json" == again.headers["Content-Type"]
    assert [None, "true"] == [r.headers.get("Idempotency-Replayed") for r in (first, again)]
    assert 1 == count(alice)


def test_without_a_key_each_one_counts(alice: User) -> None:
    """Two posts without a key create two threads."""
    alice.post("/v1/threads")
    alice.post("/v1/threads")

    assert 2 == count(alice)


def test_the_answer_stays_what_it_was(alice: User) -> None:
    """The thread has gone on since; the first answer is given all the same."""
    first = post(alice, "k", {"title": "a"})
    alice.patch(first.headers["Location"], {"title": "b"})
    assert first.json == post(alice, "k", {"title": "a"}).json

    alice.delete(first.headers["Location"])
    assert first.json == post(alice, "k", {"title": "a"}).json


def test_another_body_under_the_same_key_is_a_conflict(alice: User) -> None:
    """409, and nothing is made."""
    post(alice, "k", {"title": "a"})

    assert (409, "idempotency.conflict") == error_of(post(alice, "k", {"title": "b"}))
    assert (409, "idempotency.conflict") == error_of(post(alice, "k"))
    assert 1 == count(alice)


def test_the_body_is_compared_by_what_it_says(alice: User) -> None:
    """Spaces, the order of the fields and escapes make no difference."""
    bodies = ['{"title": "é", "is_private": false}', '{"is_private":false,"title":"\\u00e9"}']
    answers = [
        alice.post(
            "/v1/threads",
            data=body,
            headers={"Idempotency-Key": "k", "Content-Type": "application/json"},
        )
        for body in bodies
    ]

    assert answers[0].json == answers[1].json


@pytest.mark.parametrize("key", ["", "ä", "a\tb", "\x7f", "k" * 256])
def test_a_key_is_1_to_255_printable_characters(alice: User, key: str) -> None:
    """Anything else is a 422."""
    response = post(alice, key.encode().decode("latin-1"))

    assert ["Idempotency-Key"] == list(details_of(response))


@pytest.mark.parametrize("key", ["k", "k" * 255, 'a "b" {c}; ~', "01a20e5a-2b91"])
def test_any_printable_key_works(alice: User, key: str) -> None:
    """A key may contain spaces and punctuation."""
    assert post(alice, key).json == post(alice, key).json


def test_a_key_belongs_to_one_actor_and_one_path(alice: User, register: Register) -> None:
    """Another org, a colleague, an API key of one's own, another thread: all make their own."""
    colleague = register(org_of=alice, role="member")
    actors = [alice, colleague, register(), alice.api_key(), alice.api_key()]
    made = {post(user, "k").json["id"] for user in actors}
    assert len(actors) == len(made)

    paths = [f"/v1/threads/{alice.thread()}/messages" for _ in range(2)]
    said = {post(alice, "k", {"content": "a"}, path).json["id"] for path in paths}
    assert 2 == len(said)


def test_a_new_token_of_the_same_user_is_the_same_actor(alice: User) -> None:
    """A client may log in again between its tries."""
    first = post(alice, "k").json
    refreshed = alice.client.post("/v1/auth/refresh").json
    assert refreshed is not None

    assert first == post(alice.with_token(refreshed["access_token"]), "k").json


def test_20_at_once_make_one(alice: User, app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    """All get the same answer, one of them first-hand, however long the others wait for it."""
    monkeypatch.setattr(api_idempotency, "WAIT_SECONDS", 60)
    answers = in_parallel(
        20,
        lambda _: post(
            User(app.test_client(), alice.login, alice.id, alice.org_id, alice.token), "k"
        ),
    )

    assert {201} == {answer.status_code for answer in answers}
    assert 1 == len({answer.data for answer in answers})
    assert 19 == len([a for a in answers if "Idempotency-Replayed" in a.headers])
    assert 1 == count(alice)


def test_who_comes_while_the_first_is_busy_waits_for_it(
    alice: User,
    gate: threading.Event,
    entered: threading.Event,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Up to 5 s (less here): then 409; with the end of the first the answer is there."""
    gate.clear()
    first: list[TestResponse] = []
    busy = threading.Thread(target=lambda: first.append(post(alice, "k", path="/v1/slow")))
    busy.start()
    try:
        assert entered.wait(60)
        monkeypatch.setattr(api_idempotency, "WAIT_SECONDS", 0.2)
        refused = post(alice, "k", path="/v1/slow")
        assert (409, "idempotency.in_progress") == error_of(refused)
    finally:
        gate.set()
        busy.join()
    assert first[0].json == post(alice, "k", path="/v1/slow").json


def test_errors_are_not_kept(alice: User, gate: threading.Event) -> None:
    """What failed is undone, and may be tried again with the same key."""
    gate.clear()
    assert (409, "runs.not_active") == error_of(post(alice, "k", path="/v1/fails"))
    assert 0 == count(alice)

    gate.set()
    assert 200 == post(alice, "k", path="/v1/fails").status_code
    assert 1 == count(alice)


def test_a_refused_body_does_not_use_up_the_key(alice: User) -> None:
    """After a 422 the corrected request is a new one."""
    assert 422 == post(alice, "k", {"title": 1}).status_code
    assert 201 == post(alice, "k", {"title": "1"}).status_code


def test_an_answer_is_kept_for_24_hours(alice: User, connections: Connections) -> None:
    """After that the key is free, and its new answer takes the place of the old one."""
    first = post(alice, "k", {"title": "a"})
    _age(connections, alice, "23 hours 59 minutes")
    assert first.json == post(alice, "k", {"title": "a"}).json

    _age(connections, alice, "2 minutes")
    second = post(alice, "k", {"title": "b"})
    assert 201 == second.status_code
    assert second.json == post(alice, "k", {"title": "b"}).json
    assert 2 == count(alice)


def test_an_api_keys_secret_is_not_kept(alice: User, connections: Connections) -> None:
    """The replay has everything but the key, and so has the database."""
    first = post(alice, "k", {"name": "a"}, "/v1/api-keys").json
    again = post(alice, "k", {"name": "a"}, "/v1/api-keys").json
    assert first is not None

    secret = first.pop("key")
    assert first == again
    with connections.reading() as sql:
        stored = sql.scalar(
            select(func.string_agg(idempotency_keys.c.body, "")).where(
                idempotency_keys.c.actor_id == alice.id
            )
        )
    assert secret not in str(stored)


@pytest.mark.parametrize("path", ["register", "login", "refresh", "logout", "password"])
def test_accounts_take_no_key(alice: User, path: str) -> None:
    """Login and registration refuse the key, since their responses are secrets."""
    response = post(alice, "k", {}, f"/v1/auth/{path}")

    assert ["Idempotency-Key"] == list(details_of(response))


def test_other_methods_ignore_the_key(alice: User) -> None:
    """Methods that are idempotent anyway ignore the key."""
    thread = alice.thread()
    headers = {"Idempotency-Key": "k"}
    titles = [
        alice.patch(f"/v1/threads/{thread}", {"title": title}, headers=headers).json["title"]
        for title in "ab"
    ]

    assert ["a", "b"] == titles


def _age(connections: Connections, user: User, interval: str) -> None:
    with connections.transaction() as tx:
        tx.sql.execute(
            text(
                "UPDATE idempotency_keys SET created_at = created_at - CAST(:interval AS interval)"
                " WHERE actor_id = :id"
            ),
            {"interval": interval, "id": user.id},
        )
