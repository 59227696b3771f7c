"""`/v1/responses` for clients that lose the right to read a response while they wait for it."""

import threading
from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest
from flask import Flask
from werkzeug.test import TestResponse

from arkloop.api.protocols.responses_ids import ResponseId
from arkloop.shared.claim import Claim
from arkloop.shared.events.types import MessageDelta
from arkloop.shared.ids import new_id
from arkloop.shared.runs.states import RunState
from tests.clients import Register, User
from tests.end_users import ANN
from tests.lost_threads import LOSSES, reader_of
from tests.stored_runs import StoredRuns
from tests.waiting import eventually

SECRET = "A secret."


class Waiting(threading.Thread):
    """A request that waits for a response; it has the response at its end."""

    def __init__(self, reader: User, path: str, body: dict[str, Any] | None = None) -> None:
        super().__init__(daemon=True)
        self._reader, self._path, self._body = reader, path, body
        self._got: list[TestResponse] = []
        self.start()

    def run(self) -> None:
        self._got.append(self._reader.post(self._path, self._body))

    def responded(self) -> Any:
        """Return the response, which has nothing of what the client must not read."""
        self.join(20)
        assert not self.is_alive()
        [response] = self._got
        assert 200 == response.status_code, response.text
        assert SECRET not in response.text
        return response.json


#: `waited_for(reader)` → a request in Ann's thread that waits, the thread, and the run's claim.
Asking = Callable[[User], tuple[Waiting, str, Claim]]


@pytest.fixture
def waited_for(app: Flask, alice: User, stored: StoredRuns) -> Asking:
    """Call it to let a reader continue a conversation."""
    hub = app.extensions["arkloop.hub"]

    def ask(reader: User) -> tuple[Waiting, str, Claim]:
        thread = alice.thread(end_user_id=ANN)
        first = stored.create(UUID(thread))
        assert stored.finish(stored.held(first))
        followed = {"previous_response_id": str(ResponseId(first, 0))}
        request = Waiting(reader, "/v1/responses", {"model": "assistant", "input": "Hi"} | followed)
        eventually(lambda: newest(alice, thread) != first)
        run_id = newest(alice, thread)
        eventually(lambda: run_id in hub._followed)
        return request, thread, stored.held(run_id)

    return ask


def newest(owner: User, thread: str) -> UUID:
    """Return the id of the thread's newest run."""
    return UUID((owner.get(f"/v1/threads/{thread}/runs").json or [])[0]["run_id"])


def end(stored: StoredRuns, claim: Claim, state: RunState = RunState.COMPLETED) -> None:
    """End the run with a text that its former reader must not see."""
    stored.write(claim, MessageDelta(SECRET))
    assert stored.finish(claim, state, message=(new_id(), SECRET))


@pytest.mark.parametrize("loss", ["private", "another end user"])
def test_a_client_that_loses_the_thread_waits_no_longer(
    alice: User,
    register: Register,
    stored: StoredRuns,
    waited_for: Asking,
    loss: str,
) -> None:
    """It gets the response as it was before, while the run continues."""
    request, thread, claim = waited_for(reader_of(alice, register, loss, role="admin"))

    LOSSES[loss](alice, f"/v1/threads/{thread}")
    stored.write(claim, MessageDelta(SECRET))

    assert "queued" == request.responded()["status"]
    assert "executing" == stored.state(claim.run_id)


@pytest.mark.parametrize("loss", ["private", "another end user"])
def test_a_response_that_ends_after_the_loss_is_not_shown(
    alice: User,
    register: Register,
    stored: StoredRuns,
    waited_for: Asking,
    loss: str,
) -> None:
    """The run ends before the server has noticed that its client has lost the thread."""
    request, thread, claim = waited_for(reader_of(alice, register, loss, role="admin"))

    LOSSES[loss](alice, f"/v1/threads/{thread}")
    end(stored, claim)

    assert "queued" == request.responded()["status"]


def test_a_response_that_ends_after_the_credential_is_not_shown(
    alice: User,
    register: Register,
    stored: StoredRuns,
    waited_for: Asking,
) -> None:
    """A member who was removed reads nothing of what comes later."""
    reader = register(org_of=alice, role="admin")
    request, _, claim = waited_for(reader)

    path = f"/v1/orgs/{alice.org_id}/members/{reader.id}"
    assert 204 == alice.delete(path).status_code
    end(stored, claim)

    assert "queued" == request.responded()["status"]


@pytest.mark.parametrize("loss", ["private", "another end user"])
def test_a_cancel_shows_nothing_of_a_thread_that_was_lost(
    app: Flask, alice: User, register: Register, stored: StoredRuns, loss: str
) -> None:
    """A client that has lost it meanwhile gets the response as it was when the cancel came."""
    thread = alice.thread(end_user_id=ANN)
    claim = stored.held(stored.create(UUID(thread)))
    reader = reader_of(alice, register, loss, role="admin")
    request = Waiting(reader, f"/v1/responses/{ResponseId(claim.run_id, 0)}/cancel")
    eventually(lambda: claim.run_id in app.extensions["arkloop.hub"]._followed)

    LOSSES[loss](alice, f"/v1/threads/{thread}")
    end(stored, claim, RunState.CANCELLED)

    assert "in_progress" == request.responded()["status"]
