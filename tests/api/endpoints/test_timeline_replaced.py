"""Runs that another one has replaced in `/v1/threads/{id}/timeline`, and those that it has not."""

from uuid import UUID

import pytest

from arkloop.shared.ids import new_id
from arkloop.shared.runs.states import RunState
from tests.api.endpoints.test_thread_events import there
from tests.api.endpoints.test_timeline import turn, whole
from tests.clients import User
from tests.stored_runs import StoredRuns


def send(user: User, thread: str, text: str, on_busy: str) -> UUID:
    body = {"message": text, "on_busy": on_busy, "route_id": "scripted"}
    response = user.post(f"/v1/threads/{thread}/runs", body)
    assert response.json is not None
    return UUID(response.json["run_id"])


@pytest.mark.parametrize("on_busy", ["interrupt", "rollback"])
def test_only_a_rollback_replaces_the_active_run(
    alice: User, stored: StoredRuns, on_busy: str
) -> None:
    """An interrupted run keeps its place, with what it has said and done, also in a transcript."""
    thread = alice.thread()
    claim = stored.held(send(alice, thread, "first", "enqueue"))
    stored.write(claim, *turn(1, "Let me see.", "It is paid."))
    second = send(alice, thread, "second", on_busy)
    while_executing = whole(alice, thread)
    part = (new_id(), "Half an")
    assert stored.finish(claim, RunState.CANCELLED, part, with_followers=True)
    entries = whole(alice, thread)
    transcript = alice.get(f"/v1/threads/{thread}/timeline?render=text").text
    [frame] = [frame.json() for frame in there(alice, thread) if frame.id == f"{second}:0"]

    replaced_by = str(second) if on_busy == "rollback" else None
    for shown in (while_executing, entries):
        found = {one["run_id"]: one["superseded_by"] for one in shown if one["type"] == "run"}
        assert {str(claim.run_id): replaced_by, str(second): None} == found
    assert ([str(claim.run_id)] if replaced_by else []) == frame["data"]["supersedes"]
    assert str(second) == (alice.get(f"/v1/runs/{claim.run_id}").json or {})["superseded_by"]
    for text in ("Let me see.", "It is paid.", "[cancelled]"):
        assert (on_busy == "interrupt") == (text in transcript)


def test_a_run_that_is_interrupted_twice_keeps_its_place(alice: User, stored: StoredRuns) -> None:
    """The first interrupt is gone with its run, and its message is answered by the second."""
    thread = alice.thread()
    claim = stored.held(send(alice, thread, "first", "enqueue"))
    stored.write(claim, *turn(1, "Let me see."))
    send(alice, thread, "second", "interrupt")
    third = send(alice, thread, "third", "interrupt")
    assert stored.finish(claim, RunState.CANCELLED, with_followers=True)

    runs = [entry for entry in whole(alice, thread) if entry["type"] == "run"]
    assert [str(claim.run_id), str(third)] == [run["run_id"] for run in runs]
    assert [None, None] == [run["superseded_by"] for run in runs]


def test_a_retry_replaces_an_interrupted_run(alice: User, stored: StoredRuns) -> None:
    """It replaces the run that interrupted, too, which has not replaced anything."""
    thread = alice.thread()
    claim = stored.held(send(alice, thread, "first", "enqueue"))
    body = {"on_busy": "interrupt", "route_id": "scripted"}
    second = (alice.post(f"/v1/threads/{thread}/runs", body).json or {})["run_id"]
    assert stored.finish(claim, RunState.CANCELLED, with_followers=True)
    assert stored.finish(stored.held(UUID(second)), RunState.CANCELLED)
    retry = (alice.post(f"/v1/threads/{thread}:retry", {}).json or {})["run_id"]

    runs = {e["run_id"]: e["superseded_by"] for e in whole(alice, thread) if e["type"] == "run"}
    assert {str(claim.run_id): retry, second: retry, retry: None} == runs
