"""Requests for responses that take longer than clients and proxies wait for headers."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import UUID

import pytest
from flask import Flask
from sqlalchemy import text
from werkzeug.test import TestResponse

from arkloop.api.protocols import responses
from arkloop.shared.claim import Claim
from arkloop.shared.storage.connections import Connections
from tests.clients import User
from tests.stored_runs import StoredRuns
from tests.waiting import eventually

ASK = {"model": "scripted", "input": "Hello"}
KEY = {"Idempotency-Key": "k"}


@pytest.fixture(autouse=True)
def silent_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client gets the headers after this time, and white space each time that it is over."""
    monkeypatch.setattr(responses, "SILENT_SECONDS", 0.02)


class Waiting:
    """A request that waits for a new response, whose run is in progress."""

    def __init__(
        self, app: Flask, owner: User, stored: StoredRuns, headers: dict[str, str]
    ) -> None:
        self._owner, self._headers = owner, headers
        self._got: list[TestResponse] = []
        self._thread = threading.Thread(target=self._request, daemon=True)
        self._thread.start()
        eventually(lambda: self.runs() != [])
        self.claim: Claim = stored.held(*self.runs())
        watched: dict[int, Any] = {}  # anew after each time that was silent
        followed = app.extensions["arkloop.hub"]._followed

        def has_been_silent() -> bool:
            found = followed.get(self.claim.run_id)
            watched[id(found)] = found
            return len(watched) > 2  # with None

        watched[id(None)] = None
        eventually(has_been_silent)

    def _request(self) -> None:
        self._got.append(self._owner.post("/v1/responses", ASK, headers=self._headers))

    def runs(self) -> list[UUID]:
        return [UUID(run["run_id"]) for run in self._owner.get("/v1/runs").json or []]

    def responded(self) -> tuple[bytes, Any]:
        """Return the white space in front of the response, and the response."""
        self._thread.join(20)
        [response] = self._got
        assert (200, "application/json") == (response.status_code, response.content_type)
        return response.data[: -len(response.data.lstrip())], response.json


def test_a_new_response_begins_before_its_run_has_ended(
    app: Flask, alice: User, stored: StoredRuns
) -> None:
    """A client that gets no headers in time sends the request again, which is another run."""
    waiting = Waiting(app, alice, stored, {})
    assert stored.finish(waiting.claim)

    space, shown = waiting.responded()
    assert b"" != space == b" " * len(space)
    assert "completed" == shown["status"]
    assert alice.get(f"/v1/responses/{shown['id']}").json == shown


def test_a_new_response_that_cannot_be_read_to_its_end_is_in_progress(
    app: Flask, alice: User, stored: StoredRuns, connections: Connections
) -> None:
    """The database fails after the headers: the client has the id, and can retrieve the rest."""
    waiting = Waiting(app, alice, stored, {})
    with unreadable_events(connections):
        space, shown = waiting.responded()

    assert (True, shown["status"] in ("queued", "in_progress")) == (b"" != space, True)
    assert stored.finish(waiting.claim)
    assert "completed" == (alice.get(f"/v1/responses/{shown['id']}").json or {})["status"]


@contextmanager
def unreadable_events(connections: Connections) -> Iterator[None]:
    with connections.transaction() as other:
        other.sql.execute(text("LOCK TABLE run_events IN ACCESS EXCLUSIVE MODE"))
        yield


def test_a_response_that_counts_once_has_its_status_at_the_end(
    app: Flask, alice: User, stored: StoredRuns
) -> None:
    """Sent again it is the same, and a server that stops says by a 503 that it should be."""
    waiting = Waiting(app, alice, stored, KEY)
    assert stored.finish(waiting.claim)

    space, shown = waiting.responded()
    assert (b"", "completed") == (space, shown["status"])
