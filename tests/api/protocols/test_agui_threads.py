"""Threads as AG-UI shows them to a page that connects."""

import json
from typing import Any

from arkloop.shared.ids import new_id
from tests.clients import User

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


def snapshot(alice: User, thread: str) -> list[dict[str, Any]]:
    body = {"threadId": thread, "runId": str(new_id()), "messages": []}
    lines = alice.post("/v1/agui/connect", json=body).text.splitlines()
    events = [json.loads(line.removeprefix("data: ")) for line in lines if "{" in line]
    [shown] = [event for event in events if event["type"] == "MESSAGES_SNAPSHOT"]
    messages: list[dict[str, Any]] = shown["messages"]
    return messages


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
