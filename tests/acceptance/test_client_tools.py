"""Client tools: a run waits for their results, without a worker, and resumes when all are there."""

import contextlib
import json
from datetime import timedelta
from typing import Any
from uuid import UUID

import httpx
import pytest
from sqlalchemy import func, update

from arkloop.shared.runs.commands import NO_RESULT
from arkloop.shared.runs.pending_calls import TOO_LATE
from arkloop.shared.storage.tables.runs import runs
from tests.caller import Caller, data_of, error_of, types
from tests.system import System

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
    assert [located, opened] == [{name: one[name] for name in located} for one in asked["calls"]]
    assert asked["calls"] == pending["calls"]
    assert 200 == send(user, run_id, result(4, {"ok": [1, None]})).status_code
    assert asked["calls"][:1] == waiting(user, run_id)["calls"]
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
    repeated = {"url": f"/v1/runs/{run_id}/tool-results", "json": [result(1)]}
    for _ in range(2):
        replayed = user.http.post(**repeated, headers={"Idempotency-Key": "k"})
    assert (200, "true") == (replayed.status_code, replayed.headers["Idempotency-Replayed"])
    assert conflict == error_of(send(user, run_id, result(1, "there")))


def test_a_run_declares_tools_of_its_own(user: Caller, mapper: str) -> None:
    """The override `tools` adds client tools for one run, which shows them as they were given."""
    tool = {**LOCATE, "name": "pick_color"}
    run_id = user.run(call("pick_color"), {"say": "ok"}, persona_id=mapper, tools=[tool])
    waiting(user, run_id)

    assert {"tools": [tool]} == user.get_run(run_id)["overrides"]
    assert 200 == send(user, run_id, result(1, "blue")).status_code
    assert ["blue"] == [r["output"] for r in data_of(user.events(run_id), "tool.result")]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"tool_call_id": "call_1_1", "output": "x"}, "body"),
        ([], "body"),
        ([{"tool_call_id": "call_1_1", "output": "x"}] * 65, "body"),
        (["x"], "0"),
        ([{"tool_call_id": "call_1_1"}], "0.output"),
        ([{"tool_call_id": "call_1_1", "output": None}], "0.output"),
        ([{"tool_call_id": "call_1_1", "output": "nul \x00"}], "0.output"),
        ([{"tool_call_id": "call_1_1", "output": "x", "is_error": "no"}], "0.is_error"),
        ([{"tool_call_id": "call_1_1", "output": "x", "error": True}], "0.error"),
        ([{"tool_call_id": "call_1_1", "output": "x"}] * 2, "1.tool_call_id"),
        ([{"tool_call_id": "x" * 257, "output": "x"}], "0.tool_call_id"),
        ([{"tool_call_id": "call_1_2", "output": "x"}], "0.tool_call_id"),
        ([{"tool_call_id": "call_9_9", "output": "x"}], "0.tool_call_id"),
    ],
)
def test_a_result_that_is_none_is_refused(user: Caller, mixed: str, body: Any, field: str) -> None:
    """422 names the field, also for calls that are unknown or not the client's."""
    answer = user.http.post(f"/v1/runs/{mixed}/tool-results", json=body)

    assert (422, "validation.error") == error_of(answer)
    assert [field] == list(answer.json()["details"])
    assert 1 == len(waiting(user, mixed)["calls"])


@pytest.fixture(scope="module")
def mixed(user: Caller, mapper: str) -> str:
    """A run that waits for the first call of a turn with two, of which the second is done."""
    run_id = user.run({"tools": [call(), CALCULATE]}, persona_id=mapper)
    waiting(user, run_id)
    return run_id


def test_results_that_nobody_waits_for_are_refused(user: Caller, mapper: str) -> None:
    """409 before the run waits, while it asks a person, and after its end; input is refused too."""
    busy = user.run({"hang": 100}, persona_id=mapper)
    user.seen(busy, "run.started")
    assert (409, "runs.not_waiting") == error_of(send(user, busy, result(1)))
    user.cancel(busy)
    user.ended(busy)
    assert (409, "runs.not_active") == error_of(send(user, busy, result(1)))

    run_id = user.run(call(), persona_id=mapper)
    request_id = waiting(user, run_id)["request_id"]
    assert (409, "runs.not_waiting") == error_of(user.answer(run_id, "x", request_id=request_id))
    user.cancel(run_id)
    assert "cancelled" == user.get_run(run_id)["status"]
    assert (409, "runs.not_active") == error_of(send(user, run_id, result(1)))


def test_a_long_output_is_kept_whole(user: Caller, mapper: str) -> None:
    """Its event has the beginning and the end, and says how long it was."""
    output = "begin" + "\u20ac" * 100_000 + "end"
    run_id = user.run(call(), {"say": "ok"}, persona_id=mapper)
    waiting(user, run_id)

    for _ in range(2):
        assert 200 == send(user, run_id, result(1, output)).status_code
    other = result(1, output.replace("end", "END"))
    assert (409, "tool_results.conflict") == error_of(send(user, run_id, other))

    [event] = data_of(user.events(run_id), "tool.result")
    assert len(output) == event["characters"]
    assert event["output"].startswith("begin\u20ac") and event["output"].endswith("\u20acend")
    assert len(event["output"].encode()) <= 65_536


def test_an_approved_call_has_the_arguments_that_a_person_gave(user: Caller) -> None:
    """The request for approval comes first; the client gets what was approved."""
    persona = {"key": "asks", "client_tools": [LOCATE], "require_approval": ["get_location"]}
    persona_id = user.made("/v1/personas", persona)["id"]
    run_id = user.run({"tools": [call(), call()]}, {"say": "ok"}, persona_id=persona_id)
    assert "tool_confirmation" == waiting(user, run_id)["kind"]
    edited = {"decision": "edit", "arguments": {"exact": False}}
    assert 200 == user.answer(run_id, json.dumps(edited)).status_code
    user.seen(run_id, "run.waiting_for_input", 2)
    assert 200 == user.answer(run_id, "no").status_code
    user.seen(run_id, "run.waiting_for_input", 3)

    [asked] = waiting(user, run_id)["calls"]
    assert ("call_1_1", {"exact": False}) == (asked["tool_call_id"], asked["arguments"])
    assert 200 == send(user, run_id, result(1)).status_code
    results = data_of(user.events(run_id), "tool.result")
    assert ["here", "The call was denied: no"] == [r["output"] for r in results]


@pytest.mark.parametrize("on_expiry", ["fail", "continue"])
def test_results_that_do_not_come_expire(system: System, user: Caller, on_expiry: str) -> None:
    """The run fails, or the model reads which call has no result; late results are refused."""
    fields = {"client_tools": [LOCATE, OPEN], "on_input_expired": on_expiry}
    persona = {"key": f"expires-{on_expiry}", **fields}
    persona_id = user.made("/v1/personas", persona)["id"]
    calls = {"tools": [call(), call("open_page")]}
    run_id = user.run(calls, {"say": "ok"}, persona_id=persona_id)
    waiting(user, run_id)
    assert 200 == send(user, run_id, result(1)).status_code
    with system.connections.transaction() as tx:
        past = func.now() - timedelta(seconds=1)
        of_run = update(runs).where(runs.c.id == UUID(run_id))
        tx.sql.execute(of_run.values(input_expires_at=past))

    run = user.ended(run_id)
    late = error_of(send(user, run_id, result(2)))

    results = data_of(user.events(run_id), "tool.result")
    if on_expiry == "fail":
        assert ("failed", "input.expired") == (run["status"], run["error"]["code"])
        assert (409, "runs.not_active") == late
    else:
        assert "completed" == run["status"]
        assert [("here", False), (NO_RESULT, True)] == [
            (r["output"], r["is_error"]) for r in results
        ]
        assert (409, "tool_results.conflict") == late


@pytest.mark.processes
def test_a_result_survives_its_server(system: System, user: Caller, mapper: str) -> None:
    """A server that dies after the commit has notified no worker; one finds the run."""
    run_id = user.run({"tools": [call(), call("open_page")]}, {"say": "ok"}, persona_id=mapper)
    waiting(user, run_id)
    assert 200 == send(user, run_id, result(1, "first")).status_code

    fault = {"ARKLOOP_FAULT_POINT": "api.results_stored:1:KILL"}
    with system.one_more_web_server(**fault) as server:
        with contextlib.suppress(httpx.HTTPError):  # the response may come first
            send(user.at(server.url), run_id, result(2, "second"))
        results = data_of(user.events(run_id), "tool.result")

    assert ["first", "second"] == [r["output"] for r in results]
    assert (200, 1) == (
        send(user, run_id, result(2, "second")).status_code,
        user.get_run(run_id)["attempt"],
    )


def test_a_client_learns_on_whose_behalf_it_is_called(user: Caller) -> None:
    """Each call has its key and trace context, the event the run and its end user."""
    tool = {**LOCATE, "idempotent": True}
    user.made("/v1/personas", {"key": "known", "client_tools": [tool, OPEN]})
    run_id = user.run(
        {"tools": [call(), call("open_page")]},
        {"say": "ok"},
        persona_id="known",
        end_user_id="zoe",
        metadata={"shop": "7"},
    )
    waiting(user, run_id)
    [asked] = data_of(user.events_so_far(run_id), "run.waiting_for_input")

    run = user.get_run(run_id)
    names = ("run_id", "thread_id", "org_id", "end_user_id", "metadata")
    assert {name: run[name] for name in names} == asked["identity"]
    assert ("zoe", {"shop": "7"}) == (run["end_user_id"], run["metadata"])
    assert [f"{run_id}:call_1_1", f"{run_id}:call_1_2"] == [
        one["idempotency_key"] for one in asked["calls"]
    ]
    assert [True, False] == [one["idempotent"] for one in asked["calls"]]
    traces = {one["traceparent"] for one in asked["calls"]}
    assert 2 == len(traces)
    assert all(one.startswith(f"00-{run['trace_id']}-") for one in traces)


def test_a_call_of_a_client_shows_its_time(user: Caller) -> None:
    """A page that shows the run knows until when its result is taken."""
    tool = {**LOCATE, "timeout_seconds": 60}
    user.made("/v1/personas", {"key": "patient", "client_tools": [tool]})
    run_id = user.run({"tools": [call()]}, persona_id="patient")

    assert "expires_at" in waiting(user, run_id)["calls"][0]
    user.cancel(run_id)


def test_a_client_tool_that_is_late_is_a_result(user: Caller) -> None:
    """Its time is that of the tool, not of people: the model reads it, and the run continues."""
    tool = {**LOCATE, "timeout_seconds": 1}
    user.made("/v1/personas", {"key": "hasty", "client_tools": [tool]})
    run_id = user.run({"tools": [call()]}, {"say": "Never mind."}, persona_id="hasty")

    events = user.events(run_id)

    [asked] = data_of(events, "run.waiting_for_input")
    assert "expires_at" in asked["calls"][0]
    [late] = data_of(events, "tool.result")
    assert (True, TOO_LATE) == (late["is_error"], late["output"])
    assert "Never mind." == user.get_run(run_id)["output"]
