"""Requests for responses that have been created when the database can no longer be read."""

from typing import Any

import pytest
from sqlalchemy import text

from arkloop.shared.storage.connections import Connections
from tests.clients import User

ASK = {"model": "scripted", "input": "Hello", "metadata": {"team": "red"}}


def send_unread(alice: User, connections: Connections, body: Any, **how: Any) -> Any:
    """Send a request whose run is created, but whose events cannot be read."""
    with connections.transaction() as other:
        other.sql.execute(text("LOCK TABLE run_events IN ACCESS EXCLUSIVE MODE"))
        return alice.post("/v1/responses", body, **how)


@pytest.mark.parametrize("in_background", [True, False])
def test_a_response_that_cannot_be_read_yet_is_queued(
    alice: User, connections: Connections, in_background: bool
) -> None:
    """A 5xx would have SDKs send the request again, which would create another run."""
    sent = send_unread(alice, connections, {**ASK, "background": in_background})

    assert 200 == sent.status_code, sent.text
    shown = sent.json or {}
    whole = alice.get(f"/v1/responses/{shown['id']}").json or {}
    assert 1 == len(alice.get("/v1/runs").json or [])
    assert 2 > abs(whole.pop("created_at") - shown.pop("created_at"))
    assert ("scripted-1", "scripted") == (whole.pop("model"), shown.pop("model"))
    assert whole == shown


def test_a_stream_that_cannot_be_opened_is_not_requested_again(
    alice: User, connections: Connections
) -> None:
    """The error says which response exists."""
    sent = send_unread(alice, connections, {**ASK, "stream": True})

    assert (503, "false") == (sent.status_code, sent.headers.get("X-Should-Retry"))
    assert "Retry-After" not in sent.headers
    [run] = alice.get("/v1/runs").json or []
    error = (sent.json or {})["error"]
    assert f"resp_{run['run_id'].replace('-', '')} was created" in error["message"]
    assert "service.unavailable" == error["code"]


@pytest.mark.parametrize("streams", [True, False])
def test_a_request_that_counts_once_is_sent_again(
    alice: User, connections: Connections, streams: bool
) -> None:
    """It gets the response of the first one."""
    body, key = {**ASK, "stream": streams, "background": True}, {"Idempotency-Key": "k"}
    sent = send_unread(alice, connections, body, headers=key)
    again = alice.post("/v1/responses", body, headers=key)
    again.close()

    assert [503, 200] == [sent.status_code, again.status_code]
    assert "X-Should-Retry" not in sent.headers
    assert 1 == len(alice.get("/v1/runs").json or [])
