"""Client tools: a run waits for their results, without a worker, and resumes when all are there."""

from typing import Any

import httpx
import pytest

from tests.caller import Caller, data_of, error_of, types

LOCATE = {
    "name": "get_location",
    "description": "Return where the user is.",
    "parameters": {"type": "object", "properties": {"exact": {"type": "boolean"}}},
    "client": True,
}
OPEN = {**LOCATE, "name": "open_page", "description": "Open a page for the user."}


def call(name: str = "get_location", **arguments: Any) -> dict[str, Any]:
    return {"tool": name, "args": arguments}


CALCULATE = {"tool": "calculator", "args": {"expression": "6*7"}}


@pytest.fixture(scope="module")
def mapper(user: Caller) -> str:
    """A persona with two client tools and the calculator."""
    fields = {"tools": ["calculator"], "client_tools": [LOCATE, OPEN], "overrides": ["tools"]}
    return str(user.made("/v1/personas", {"key": "mapper", **fields})["id"])


def send(user: Caller, run_id: str, *results: Any, **query: str) -> httpx.Response:
    return user.http.post(f"/v1/runs/{run_id}/tool-results", json=list(results), params=query)


def result(number: int, output: Any = "here", **more: Any) -> dict[str, Any]:
    return {"tool_call_id": f"call_1_{number}", "output": output, **more}


def waiting(user: Caller, run_id: str) -> dict[str, Any]:
    return dict(user.until(run_id, "status", "waiting_for_input")["pending_input"])


def test_a_mixed_turn_waits_for_the_client_alone(user: Caller, mapper: str) -> None:
    """The server's tools run first; results come in any order, and their events in call order."""
    calls = [CALCULATE, call(exact=True), CALCULATE, call("open_page")]
    run_id = user.run({"tools": calls}, {"say": "ok"}, persona_id=mapper)
    pending = waiting(user, run_id)
    asked = data_of(user.events_so_far(run_id), "run.waiting_for_input")[0]

    located = {"tool_call_id": "call_1_2", "name": "get_location", "arguments": {"exact": True}}
    opened = {"tool_call_id": "call_1_4", "name": "open_page", "arguments": {}}
    assert "tool_results" == asked["kind"]
    assert [located, opened] == asked["calls"] == pending["calls"]
    assert 200 == send(user, run_id, result(4, {"ok": [1, None]})).status_code
    assert [located] == waiting(user, run_id)["calls"]
    assert 200 == send(user, run_id, result(2, "Rome", is_error=True)).status_code

    events = user.events(run_id)
    results = data_of(events, "tool.result")
    assert [f"call_1_{i}" for i in range(1, 5)] == [r["tool_call_id"] for r in results]
    assert ["42", "Rome", "42", '{"ok":[1,null]}'] == [r["output"] for r in results]
    assert [False, True, False, False] == [r["is_error"] for r in results]
    around = ["tool.result", "run.waiting_for_input", "run.resumed", "tool.result"]
    assert around == types(events)[7:11]
    assert "run.completed" == events[-1]["type"]


def test_a_result_that_is_sent_again_changes_nothing(user: Caller, mapper: str) -> None:
    """The same output gets 200 whatever the run does by then; another output gets 409."""
    run_id = user.run({"tools": [call(), call("open_page")]}, persona_id=mapper)
    waiting(user, run_id)

    assert 200 == send(user, run_id, result(1)).status_code
    assert 200 == send(user, run_id, result(1)).status_code
    conflict = (409, "tool_results.conflict")
    refused = send(user, run_id, result(2), result(1, "there"))
    assert conflict == error_of(refused)
    assert ["call_1_1"] == refused.json()["details"]["tool_call_ids"]
    assert conflict == error_of(send(user, run_id, result(1, is_error=True)))
    assert 200 == send(user, run_id, result(1), result(2)).status_code
    user.ended(run_id)
    assert 200 == send(user, run_id, result(2), result(1)).status_code
    assert conflict == error_of(send(user, run_id, result(1, "there")))


def test_a_run_declares_tools_of_its_own(user: Caller, mapper: str) -> None:
    """The override `tools` adds client tools for one run, which shows them as they were given."""
    tool = {**LOCATE, "name": "pick_color"}
    run_id = user.run(call("pick_color"), {"say": "ok"}, persona_id=mapper, tools=[tool])
    waiting(user, run_id)

    assert {"tools": [tool]} == user.get_run(run_id)["overrides"]
    assert 200 == send(user, run_id, result(1, "blue")).status_code
    assert ["blue"] == [r["output"] for r in data_of(user.events(run_id), "tool.result")]
