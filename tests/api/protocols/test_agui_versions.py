"""Streams of AG-UI for clients of 0.0.x, whose requests have no `protocolVersion`."""

from typing import Any

import pytest

from arkloop.shared.ids import new_id
from tests.api.protocols.recorded_runs import NAMES
from tests.api.protocols.test_agui_projection import data_of, parts_of
from tests.api.protocols.test_agui_runs import SAID, asking, events_of, result, turn
from tests.api.protocols.test_agui_threads import cancelled, snapshot
from tests.clients import User
from tests.stored_runs import StoredRuns

ONE: dict[str, Any] = {"protocolVersion": "1.0"}


def end_of(alice: User, *messages: Any, path: str = "", after: str = "", **body: Any) -> Any:
    """Return the outcome with which the response ends, "none" without one."""
    body = {"threadId": "chat-1", "runId": str(new_id()), "messages": list(messages), **body}
    headers = {"Last-Event-ID": after} if after else {}
    events = events_of(alice.post(f"/v1/agui{path}", json=body, headers=headers))
    assert "RUN_FINISHED" == events[-1]["type"]
    return events[-1].get("outcome", "none")


@pytest.mark.parametrize("name", NAMES)
def test_only_outcomes_of_1_0_are_left_out(name: str) -> None:
    """All other events are the same, with the same cursors."""
    new = [event for _, frames in parts_of(name) for event in data_of(frames)]
    old = [event for _, frames in parts_of(name, is_0_0=True) for event in data_of(frames)]

    for event in new:
        outcome = event.get("outcome", {})
        if "pendingToolCallIds" in outcome or outcome.get("type") == "cancelled":
            del event["outcome"]
    assert new == old


def test_a_client_of_0_0_reads_the_calls_of_its_tools(alice: User, stored: StoredRuns) -> None:
    """Its schema refuses `pendingToolCallIds`, in whichever response."""
    run_id = asking(alice, stored, "c", "d")
    said = [SAID, turn(run_id, "c", "d")]
    pending = {"type": "success", "pendingToolCallIds": [f"{run_id.hex}.{id_}" for id_ in "cd"]}
    rest = {"path": "/connect", "after": f"{run_id}.0.1"}

    for how in ({}, {"path": "/connect"}, rest):
        assert ["none", pending] == [end_of(alice, SAID, **how, **more) for more in ({}, ONE)], how
    assert "none" == end_of(alice, *said, result(run_id, "c"))


def test_a_client_of_0_0_reads_that_a_run_was_cancelled(alice: User, stored: StoredRuns) -> None:
    """It takes the end for a success, as its schema knows no other one."""
    run_id = asking(alice, stored, "c")
    assert alice.post(f"/v1/runs/{run_id}:cancel").status_code < 300

    shown = [end_of(alice, path="/connect", **more) for more in ({}, ONE)]
    assert ["none", {"type": "cancelled"}] == shown


def test_a_client_of_0_0_gets_files_by_url(alice: User) -> None:
    """It knows no other reference to one, and sends the message as it got it."""
    thread = str(new_id())
    source = {"type": "data", "value": "aGVsbG8=", "mimeType": "text/plain"}
    part = {"type": "document", "source": source, "metadata": {"filename": "a.txt"}}
    said = {"id": "m1", "role": "user", "content": [part]}

    for _ in range(2):
        body = {"threadId": thread, "runId": str(new_id()), "messages": [said]}
        cancelled(alice, body)
        shown = snapshot(alice, thread)[-1]
        events = events_of(alice.post("/v1/agui/connect", json={**body, "messages": []}))
        old = next(e for e in events if e["type"] == "MESSAGES_SNAPSHOT")["messages"][-1]
        [file] = [part["source"]["value"] for part in shown["content"]]
        url = {"type": "url", "value": f"/v1/files/{file}/content", "mimeType": "text/plain"}
        assert {**shown, "content": [{**part, "source": url}]} == old
        assert b"hello" == alice.get(url["value"]).data
        said = {**old, "id": "m2"}
