"""Runs whose output must fit a schema, over HTTP: what clients get, and what survives a crash."""

import json
import os
import signal
from typing import Any

import pytest

from tests.caller import Caller, Event, data_of, error_of, script, text_of, types
from tests.system import System

CITY = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "inhabitants": {"type": "integer"}},
    "required": ["name", "inhabitants"],
    "additionalProperties": False,
}
ROME = {"name": "Rome", "inhabitants": 2_800_000}
CALCULATE = {"tool": "calculator", "args": {"expression": "6*7"}}


def asked(
    user: Caller, *steps: dict[str, Any], **fields: Any
) -> tuple[dict[str, Any], list[Event]]:
    """Start a run for a city; returns it after its end, and its events."""
    thread_id = user.thread(script(*steps))
    run_id = user.start(thread_id, route_id="scripted", **{"output_schema": CITY, **fields})
    events = user.events(run_id)
    return user.get_run(run_id), events


def rejections(events: list[Event]) -> list[list[str]]:
    return [
        turn["output_errors"]
        for turn in data_of(events, "message.completed")
        if "output_errors" in turn
    ]


def test_the_output_is_an_object(user: Caller) -> None:
    """The run, its last event and the thread's JSON have it in the order of the schema."""
    run, events = asked(user, CALCULATE, {"output": ROME})

    assert ("completed", "stop") == (run["status"], run["stop_reason"])
    assert json.dumps(ROME) == json.dumps(run["output"])
    assert json.dumps(ROME) == json.dumps(events[-1]["data"]["output"])
    assert json.dumps(ROME) == text_of(events)
    assert ("assistant", json.dumps(ROME), False) == user.messages(run["thread_id"])[-1]
    assert json.dumps(CITY) == json.dumps(run["overrides"]["output_schema"])
    assert [] == rejections(events)


def test_a_persona_may_have_the_schema(user: Caller) -> None:
    """Its runs need not name it; the scripted model makes something up that fits."""
    persona = user.made("/v1/personas", {"key": "geographer", "output_schema": CITY})

    run = user.ended(user.run("Which city?", persona_id=persona["id"], route_id="scripted"))

    assert {"name": "You said: Which city?", "inhabitants": 0} == run["output"]


def test_other_runs_have_text(user: Caller) -> None:
    """Text that happens to be JSON stays text."""
    run = user.ended(user.run({"say": "{}"}))

    assert ("{}", True) == (run["output"], "output" not in user.events(run["run_id"])[-1]["data"])


def test_an_answer_that_does_not_fit_is_repaired(user: Caller) -> None:
    """Twice at most; every attempt is a step that is billed."""
    run, events = asked(user, CALCULATE, {"output": ROME, "invalid": 2})

    assert (ROME, 4) == (run["output"], run["steps"])
    first, second = rejections(events)
    assert first == second
    assert "not valid JSON" in first[0]
    costs = [cost["usage"]["output_tokens"] for cost in data_of(events, "run.cost")]
    assert sorted(costs) == costs and 4 == len(costs)
    assert [("user", False), ("assistant", False)] == [
        (role, partial) for role, _, partial in user.messages(run["thread_id"])
    ]


def test_the_third_answer_that_does_not_fit_fails_the_run(user: Caller) -> None:
    """`output.invalid`, with the reasons; the thread keeps none of them as an answer."""
    run, events = asked(user, {"output": ROME, "invalid": 3})

    assert ("failed", "output.invalid") == (run["status"], run["error"]["code"])
    assert "in 3 attempts" in run["error"]["message"]
    assert (None, 3, 3) == (run["output"], run["steps"], len(rejections(events)))
    assert ["user"] == [role for role, _, _ in user.messages(run["thread_id"])]


def test_without_a_mode_of_the_vendor_a_tool_is_the_answer(user: Caller) -> None:
    """The refusal is reported once; text before the call is void; no call is shown."""
    refused = {"think": "Hm. ", "unsupported": ["output_schema"]}
    run, events = asked(
        user,
        *(refused, CALCULATE),
        *(refused, {"say": "Here it is: "}, {"output": ROME, "invalid": 1}),
    )

    assert ROME == run["output"]
    assert [["output_schema"]] == [
        dropped["settings"] for dropped in data_of(events, "run.settings_dropped")
    ]
    assert ["calculator"] == [call["name"] for call in data_of(events, "tool.call")]
    assert {"output"} == {reset["reason"] for reset in data_of(events, "message.reset")}
    assert 1 == len(rejections(events))
    assert json.dumps(ROME) == data_of(events, "message.completed")[-1]["content"]
    assert ("assistant", json.dumps(ROME), False) == user.messages(run["thread_id"])[-1]


def test_a_run_that_may_call_no_tool_makes_no_call_but_that_of_the_output(user: Caller) -> None:
    """A vendor that refuses a forced tool leaves the choice to the model: a call of another tool
    is not made.
    """
    refused = {"think": "Hm. ", "unsupported": ["output_schema", "tool_choice"]}
    run, events = asked(
        user,
        *(refused, CALCULATE),
        *(refused, {"output": ROME}),
        model_settings={"tool_choice": "none"},
    )

    assert ("completed", ROME) == (run["status"], run["output"])
    [result] = data_of(events, "tool.result")
    why = "Not executed: `tool_choice` is `none`."
    assert (True, why) == (result["is_error"], result["output"])


@pytest.mark.processes
def test_a_worker_that_is_killed_before_the_repair_changes_no_count(
    system: System, user: Caller
) -> None:
    """The rejected answer is stored: the next attempt asks once more, and not anew."""
    step = {"output": ROME, "invalid": 2, "delay_ms": 1000}
    run_id = user.start(user.thread(script(step)), route_id="scripted", output_schema=CITY)
    user.seen(run_id, "message.completed")

    os.kill(system.worker.pid, signal.SIGKILL)
    events = user.events(run_id)

    run = user.get_run(run_id)
    assert ("completed", ROME, 2) == (run["status"], run["output"], run["attempt"])
    assert (2, 3) == (len(rejections(events)), run["steps"])
    assert 3 == types(events).count("message.completed")
    assert json.dumps(ROME) == user.messages(run["thread_id"])[-1][1]


def test_a_schema_is_checked_before_the_run(user: Caller) -> None:
    """422 says what is wrong, and no run exists."""
    thread_id = user.thread("Hi")
    for schema, why in (
        ({"type": "array"}, '"type": "object"'),
        ({"type": "object", "properties": {"a": {"$ref": "https://a/b"}}}, "other documents"),
        ({"type": "object", "properties": {"a": {"$ref": "#"}}}, "recursive"),
    ):
        body = {"output_schema": schema}
        answer = user.http.post(f"/v1/threads/{thread_id}/runs", json=body)
        assert (422, "validation.error") == error_of(answer)
        assert why in answer.json()["details"]["output_schema"][0]
    assert [] == user.get(f"/v1/threads/{thread_id}/runs")
