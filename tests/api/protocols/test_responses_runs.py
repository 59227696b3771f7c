"""The runs behind responses, as these show them."""

from uuid import UUID

import pytest

from arkloop.shared import times
from arkloop.shared.events.types import RunWaitingForInput, ToolCallRequested
from arkloop.shared.ids import new_id
from tests.clients import User
from tests.stored_runs import StoredRuns

#: Calls of a tool of the client and of one of the org's HTTP tools.
CLIENT = {"tool_call_id": "c", "name": "t", "arguments": {}}
HTTP = {"tool_call_id": "h", "name": "u", "arguments": {}, "result_from": "http"}
TOOL = {"type": "function", "name": "t", "parameters": {"type": "object"}}
ASK = {"model": "scripted", "background": True, "input": "Hello"}


@pytest.mark.parametrize(
    ("waits", "suffix"),
    [
        ([[HTTP]], ""),
        ([[CLIENT], [HTTP]], "_1"),
        ([[HTTP], [CLIENT]], "_2"),
        ([[CLIENT, HTTP]], "_1"),
        ([[CLIENT], [CLIENT]], "_2"),
    ],
)
def test_no_response_begins_behind_a_wait_for_http_tools(
    stored: StoredRuns, alice: User, waits: list[list[dict[str, object]]], suffix: str
) -> None:
    """The next run names the last response of the run before it that there is."""
    first = (alice.post("/v1/responses", {**ASK, "tools": [TOOL]}).json or {})["id"]
    claim = stored.held(UUID(first.removeprefix("resp_")))
    expires_at = times.rfc3339(times.now())
    for calls in waits:
        for call in calls:
            stored.write(claim, ToolCallRequested(str(call["tool_call_id"]), str(call["name"]), {}))
        asked = {"request_id": str(new_id()), "kind": "tool_results", "prompt": "?"}
        stored.write(claim, RunWaitingForInput(**asked, calls=calls, expires_at=expires_at))
    stored.finish(claim)

    made = alice.post("/v1/responses", {**ASK, "previous_response_id": f"{first}{suffix}"})

    assert 200 == made.status_code, made.text
    assert f"{first}{suffix}" == (made.json or {})["previous_response_id"]
