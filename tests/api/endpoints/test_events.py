"""`/v1/runs/{id}/stream-ticket` and what a ticket opens, within one process."""

from collections.abc import Callable
from uuid import UUID

import pytest
from sqlalchemy import func, select
from werkzeug.test import TestResponse

from shared.connections import Connections
from shared.tables import idempotency_keys
from tests.clients import User, details_of, error_of

MakeRun = Callable[..., UUID]


@pytest.fixture
def run_id(alice: User, make_run: MakeRun) -> UUID:
    return make_run(alice, alice.thread())


def ask(user: User, run_id: UUID, key: str) -> TestResponse:
    return user.post(f"/v1/runs/{run_id}/stream-ticket", headers={"Idempotency-Key": key})


def opened(user: User, run_id: UUID, ticket: str) -> int:
    """The status that a browser gets that has nothing but the ticket."""
    path = f"/v1/runs/{run_id}/events"
    return user.client.head(path, query_string={"ticket": ticket}).status_code


def test_a_ticket_is_not_stored_and_each_request_gets_a_new_one(
    alice: User, run_id: UUID, connections: Connections
) -> None:
    """An `Idempotency-Key` is accepted, and makes no copy of the secret in the database."""
    answers = [ask(alice, run_id, "k") for _ in range(2)]
    with connections.reading() as sql:
        stored = sql.scalar(
            select(func.count()).where(idempotency_keys.c.path.endswith("/stream-ticket"))
        )

    assert [201, 201] == [answer.status_code for answer in answers]
    assert [200, 200] == [opened(alice, run_id, (a.json or {})["ticket"]) for a in answers]
    assert 0 == stored
    assert ["Idempotency-Key"] == list(details_of(ask(alice, run_id, "k" * 256)))


def test_a_repeated_request_gets_a_ticket_of_its_own_login(alice: User, run_id: UUID) -> None:
    """A client that logs in again and repeats its request does not get a ticket that has ended."""
    ask(alice, run_id, "k")
    alice.post("/v1/auth/logout")
    body = {"login": alice.login, "password": "correct horse battery"}
    token = (alice.client.post("/v1/auth/login", json=body).json or {})["access_token"]

    again = ask(alice.with_token(token), run_id, "k")

    assert 200 == opened(alice, run_id, (again.json or {})["ticket"])


def test_a_ticket_ends_with_its_login(alice: User, run_id: UUID) -> None:
    """After a logout it is worth as little as the access token it was made with."""
    ticket = (ask(alice, run_id, "k").json or {})["ticket"]
    assert 200 == opened(alice, run_id, ticket)

    alice.post("/v1/auth/logout")

    assert 401 == opened(alice, run_id, ticket)
    assert (401, "auth.unauthorized") == error_of(alice.get("/v1/me"))
