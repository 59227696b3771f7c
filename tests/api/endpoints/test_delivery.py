"""Responses to requests that create a run, where no run has to be executed for them."""

import pytest

from arkloop.api.endpoints.run_types import QueuePlace
from tests.clients import User, error_of

KEY = {"Idempotency-Key": "once"}


@pytest.mark.parametrize("path", ["/v1/runs", "/v1/threads/{thread_id}/runs"])
def test_a_repeated_create_whose_run_was_deleted_is_404(alice: User, path: str) -> None:
    """Neither a stream nor a wait follows a run that is gone; the ids are replayed as they were."""
    thread_id, body = alice.thread(), {"message": "Hi"}
    path = path.format(thread_id=thread_id)
    first = alice.post(path, json=body, headers=KEY)
    made = first.json or {}
    thread_id = made.get("thread_id", thread_id)
    alice.post(f"/v1/runs/{made['run_id']}:cancel")
    assert 204 == alice.delete(f"/v1/threads/{thread_id}").status_code

    plain, streamed, waited = (
        alice.post(path, json=body, headers={**KEY, **headers})
        for headers in ({}, {"Accept": "text/event-stream"}, {"Prefer": "wait=1"})
    )

    assert (201, made) == (plain.status_code, plain.json)
    assert [(404, "runs.not_found")] * 2 == [error_of(streamed), error_of(waited)]


def test_each_response_shows_the_place_of_a_run_that_waits_for_a_worker(alice: User) -> None:
    """A wait that is over, the run itself, and a change of it."""
    alice.post("/v1/runs", {"message": "Hello"})
    waited = alice.post("/v1/runs", {"message": "Hi"}, headers={"Prefer": "wait=1"}).json or {}
    path = f"/v1/runs/{waited['run_id']}"

    shown, changed = alice.get(path).json or {}, alice.patch(path, {"metadata": {}}).json or {}

    assert [shown["queue"]] * 2 == [waited["queue"], changed["queue"]]
    assert 2 == shown["queue"]["position"]
    assert shown["queue"].keys() <= QueuePlace.__annotations__.keys()
