"""`/v1/runs/{id}/stream-ticket` and what a ticket opens, within one process."""

import re
import socket
from collections.abc import Callable
from uuid import UUID

import pytest
from sqlalchemy import delete, func, select
from werkzeug.test import TestResponse

from arkloop.shared.events.types import MessageDelta
from arkloop.shared.storage.connections import Connections
from arkloop.shared.storage.tables.events import run_events
from arkloop.shared.storage.tables.storage import idempotency_keys
from tests.clients import User, details_of, error_of
from tests.stored_runs import StoredRuns
from tests.webkit_reader import webkit_messages

MakeRun = Callable[..., UUID]


@pytest.fixture
def run_id(alice: User, make_run: MakeRun) -> UUID:
    return make_run(alice, alice.thread())


def ask(user: User, run_id: UUID, key: str) -> TestResponse:
    return user.post(f"/v1/runs/{run_id}/stream-ticket", headers={"Idempotency-Key": key})


def opened(user: User, run_id: UUID, ticket: str) -> int:
    """Return the status that a browser gets that has nothing but the ticket."""
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


def test_a_browser_that_has_no_id_yet_gets_the_first_event_whole(
    alice: User, connections: Connections
) -> None:
    """WebKit reads on where the connection broke, also within the first frame of the stream."""
    stored = StoredRuns.of(connections, alice)
    claim = stored.claimed()
    stored.finish(claim)
    path = f"/v1/runs/{claim.run_id}/events"
    query = {"ticket": (ask(alice, claim.run_id, "k").json or {})["ticket"]}
    browser = {"Accept": "text/event-stream", "Cache-Control": "no-cache"}

    def read(headers: dict[str, str], **more: str) -> str:
        answer = alice.client.get(path, query_string={**query, **more}, headers=headers)
        return answer.get_data(as_text=True)

    stream = read(browser)
    first = stream.index("\n\n", stream.index("data:"))
    whole = webkit_messages("", stream, "")
    assert ["1", "2"] == [id_ for id_, _ in whole]
    for cut in range(first):
        assert whole == webkit_messages(stream[:cut], stream, ""), stream[:cut]
    # At the end of a run, too: with the id it sends, the browser is refused by 204 and stops.
    assert ": ok\nid: 2\nevent: resumed\n\n" == read(browser, after_seq="2")
    token = {"Authorization": f"Bearer {alice.token}"}
    for others in ({}, {"Accept": "text/event-stream"}, {**browser, **token}):
        assert "resumed" not in read(others)


def test_a_stream_does_not_pass_over_a_hole(
    alice: User, connections: Connections, caplog: pytest.LogCaptureFixture
) -> None:
    """After lost commits the stream breaks off, and the next request from there gets 410."""
    stored = StoredRuns.of(connections, alice)
    claim = stored.claimed()
    stored.write(claim, *(MessageDelta(str(seq)) for seq in range(2, 8)))
    stored.finish(claim)
    connections.redis.delete(connections.keys.events(claim.run_id))
    with connections.transaction() as tx:
        holed = (run_events.c.run_id == claim.run_id) & run_events.c.seq.in_((4, 5))
        tx.sql.execute(delete(run_events).where(holed))

    server, client = socket.socketpair()
    client.setblocking(False)

    def read(after_seq: int) -> TestResponse:
        path = f"/v1/runs/{claim.run_id}/events?after_seq={after_seq}"
        answer = alice.get(path, environ_overrides={"gunicorn.socket": server})
        answer.get_data()  # to the end of the stream
        return answer

    with server, client:
        after = read(5)
        with pytest.raises(BlockingIOError):  # it is still open
            client.recv(1)
        first, again = read(0), read(3)
        assert b"" == client.recv(1)

    assert (200, 410, 200) == (first.status_code, again.status_code, after.status_code)
    assert ["1", "2", "3"] == re.findall("^id: (.+)$", first.text, re.MULTILINE)
    assert (410, "runs.events_lost") == error_of(again)
    assert ["6", "7", "8"] == re.findall("^id: (.+)$", after.text, re.MULTILINE)
    assert f"run {claim.run_id}: event 4 is missing" in caplog.text
