"""Responses have exactly the fields that the description of the API promises."""

from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest

from arkloop.api.endpoints import run_types
from arkloop.shared.runs.states import RunState
from tests.clients import User


@pytest.fixture
def run_id(alice: User, make_run: Callable[..., UUID]) -> UUID:
    """A run that is done."""
    return make_run(alice, alice.thread(), RunState.COMPLETED)


def check(shown: Any, as_type: Any) -> None:
    """Check that the required fields are there, and none that the type lacks."""
    assert as_type.__required_keys__ <= shown.keys() <= as_type.__annotations__.keys()


def test_a_run_has_the_fields_of_its_types(alice: User, run_id: UUID) -> None:
    """Alone, in the list of the org, and in that of its thread."""
    run = alice.get(f"/v1/runs/{run_id}").json or {}
    [in_list] = alice.get("/v1/runs").json or []
    [in_thread] = alice.get(f"/v1/threads/{run['thread_id']}/runs").json or []

    check(run, run_types.Run)
    check(in_list, run_types.ListedRun)
    check(in_thread, run_types.ThreadRun)


def test_a_new_run_has_the_fields_of_its_type(alice: User) -> None:
    """It has them alone, behind an active one, and given to the active one."""
    first = alice.post("/v1/runs", {"message": "Hello"}).json or {}
    path = f"/v1/threads/{first['thread_id']}/runs"
    waiting = alice.post(path, {"message": "And?", "on_busy": "enqueue"}).json or {}
    steering = alice.post(path, {"message": "Stop", "on_busy": "steer"}).json or {}

    wait = {"Prefer": "wait=1"}
    more = {"message": "Stop now", "on_busy": "steer"}
    awaited = alice.post(path, more, headers=wait).json or {}

    for shown in (first, waiting, steering):
        check(shown, run_types.CreatedRun)
    check(awaited, run_types.AwaitedRun)
    check(awaited["steer"], run_types.SteeringMessage)
    assert {"position": 1} == waiting["queue"]
    check(steering["steer"], run_types.SteeringMessage)


def test_threads_and_messages_have_the_fields_of_their_types(alice: User) -> None:
    """They have them when they are made, and in lists."""
    thread = alice.get(f"/v1/threads/{alice.thread()}").json or {}
    alice.say(thread["id"])
    [message] = alice.get(f"/v1/threads/{thread['id']}/messages").json or []

    check(thread, run_types.Thread)
    check(message, run_types.Message)
