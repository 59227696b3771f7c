"""Threads as AG-UI shows them to a page that connects."""

import json
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from arkloop.shared.events.types import RunError
from arkloop.shared.ids import new_id
from arkloop.shared.runs.states import RunState
from arkloop.shared.times import EPOCH, now, rfc3339
from tests.clients import User
from tests.stored_runs import StoredRuns

URL = {"type": "url", "value": "https://example.com/a.png"}
DATA = {"type": "data", "value": "aGVsbG8=", "mimeType": "text/plain"}
TEXT = {"type": "text", "text": "Compare them."}
IMAGE = {"type": "image", "source": URL}
NAMED = {"filename": "a.txt"}
SAID = {
    "id": "m1",
    "role": "user",
    "content": [IMAGE, {"type": "document", "source": DATA, "metadata": NAMED}, TEXT],
}


def connected(alice: User, thread: str) -> list[dict[str, Any]]:
    """Return the events that a page gets which connects to the thread."""
    body = {"threadId": thread, "runId": str(new_id()), "messages": [], "protocolVersion": "1.0"}
    lines = alice.post("/v1/agui/connect", json=body).text.splitlines()
    return [json.loads(line.removeprefix("data: ")) for line in lines if "{" in line]


def snapshot(alice: User, thread: str) -> list[dict[str, Any]]:
    [shown] = [event for event in connected(alice, thread) if event["type"] == "MESSAGES_SNAPSHOT"]
    messages: list[dict[str, Any]] = shown["messages"]
    return messages


FAILED = RunError("worker.crashed", "The worker was lost.", retryable=True)


@pytest.mark.parametrize(
    ("ending", "shown"),
    [
        (
            {"error": FAILED, "state": RunState.FAILED},
            {"type": "RUN_ERROR", "message": FAILED.message, "code": FAILED.code},
        ),
        ({"state": RunState.CANCELLED}, {"type": "RUN_FINISHED", "outcome": {"type": "cancelled"}}),
        ({}, {"type": "RUN_FINISHED", "outcome": {"type": "success"}}),
    ],
)
def test_the_end_of_the_last_run_is_shown(
    alice: User, stored: StoredRuns, ending: dict[str, Any], shown: dict[str, Any]
) -> None:
    """A page whose stream was cut before it learns by a connect that its run has failed."""
    thread_id = UUID(alice.thread(external_id=(name := str(new_id()))))
    # Neither a run before it counts, nor one that waits for its time.
    endings: list[dict[str, Any]] = [{"error": FAILED, "state": RunState.FAILED}, ending]
    for how in endings:
        claim = stored.claim(run_id := stored.create(thread_id))
        assert claim is not None
        stored.finish(claim, **how)
    later = {"message": "Hello", "not_before": rfc3339(now() + timedelta(hours=1))}
    assert 201 == alice.post(f"/v1/threads/{thread_id}/runs", json=later).status_code

    ended = connected(alice, name)[-1]

    assert shown.items() <= ended.items(), ended
    if ended["type"] == "RUN_ERROR":  # by which a page knows it again
        run: Any = alice.get(f"/v1/runs/{run_id}").json
        failed_at = datetime.fromisoformat(run["failed_at"])
        assert failed_at == EPOCH + timedelta(milliseconds=ended["timestamp"])


def test_files_of_a_message_are_shown_as_parts(alice: User) -> None:
    """A page can show them, and sends them with its next message, as it got them."""
    thread = str(new_id())
    body = {"threadId": thread, "runId": str(new_id()), "messages": [SAID]}
    run_id = cancelled(alice, body)

    [shown] = snapshot(alice, thread)

    image, document, text = shown.pop("content")
    assert {"id": "m1", "role": "user"} == shown
    assert (IMAGE, TEXT) == (image, text)
    source = document.pop("source")
    assert {"type": "document", "metadata": NAMED} == document
    assert ("file", "text/plain") == (source["type"], source["mimeType"])
    assert b"hello" == alice.get(f"/v1/files/{source['value']}/content").data

    [again] = snapshot(alice, thread)
    more = {**again, "id": "m2"}
    body = {"threadId": thread, "runId": str(new_id()), "messages": [again, more]}
    assert run_id != cancelled(alice, body)
    assert again["content"] == snapshot(alice, thread)[-1]["content"]


def cancelled(alice: User, body: dict[str, Any]) -> str:
    """Send a message by AG-UI, and cancel its run; returns the run's id."""
    sent = alice.post("/v1/agui", json=body, buffered=False)
    assert 200 == sent.status_code, sent.text
    sent.close()
    [thread] = alice.get(f"/v1/threads?external_id={body['threadId']}").json or []
    run_id = str(thread["active_run_id"])
    assert alice.post(f"/v1/runs/{run_id}:cancel").status_code < 300
    return run_id
