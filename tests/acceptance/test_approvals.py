"""Tool calls that require approval, through the whole service."""

import json
from typing import Any

import pytest

from tests.caller import Caller, error_of, script, types
from tests.system import System

CALL = {"tool": "calculator", "args": {"expression": "6*7"}}


@pytest.fixture
def waiting(user: Caller) -> str:
    """A run that waits for the approval of its call."""
    run_id = user.run(CALL, {"say": "ok"}, persona_id="careful")
    user.until(run_id, "status", "waiting_for_input")
    return run_id


def outputs(user: Caller, run_id: str) -> list[tuple[str, bool]]:
    found = [event["data"] for event in user.events(run_id) if event["type"] == "tool.result"]
    return [(result["output"], result["is_error"]) for result in found]


def test_the_inbox_shows_the_exact_call(user: Caller, waiting: str) -> None:
    """A list has the exact call to confirm, so that the runs need not be fetched."""
    inbox = {row["run_id"]: row for row in user.get("/v1/runs", status="waiting_for_input")}

    pending = inbox[waiting]["pending_input"]
    assert ("calculator", {"expression": "6*7"}) == (pending["tool_name"], pending["arguments"])
    assert ("tool_confirmation", False) == (pending["kind"], "approved_by" in pending)
    user.cancel(waiting)


def test_a_request_says_that_it_is_reserved_for_the_org(system: System) -> None:
    """A front end of end users shows no buttons: each reply of theirs would be refused."""
    owner = system.caller()
    guarded = {"tools": ["calculator"], "require_approval": ["*"], "approved_by": "org"}
    persona_id = owner.made("/v1/personas", {"key": "guarded", **guarded})["id"]

    run_id = owner.run(CALL, persona_id=persona_id)

    pending = owner.until(run_id, "status", "waiting_for_input")["pending_input"]
    [asked] = [
        event["data"]
        for event in owner.events_so_far(run_id)
        if event["type"] == "run.waiting_for_input"
    ]
    assert ("org", "org") == (pending["approved_by"], asked["approved_by"])
    owner.cancel(run_id)


@pytest.mark.parametrize(
    ("reply", "result"),
    [
        ({"decision": "approve"}, ("42", False)),
        ({"decision": "deny", "reason": "not today"}, ("The call was denied: not today", True)),
        ({"decision": "edit", "arguments": {"expression": "1+1"}}, ("2", False)),
    ],
)
def test_a_reply_in_full(user: Caller, waiting: str, reply: Any, result: tuple[str, bool]) -> None:
    """Approved, denied with a reason, or made with other arguments."""
    assert 200 == user.answer(waiting, json.dumps(reply)).status_code

    assert [result] == outputs(user, waiting)


@pytest.mark.parametrize(
    "said",
    [
        '{"decision": "aprove"}',
        '{"decision": "edit", "arguments": {"expression": 1e999}}',
        '{"decision": "edit", "arguments": {"expression": "\\u0000"}}',
        '{"decision": "edit", "arguments": ' + '{"a":' * 700 + "1" + "}" * 701,
        '{"decision": "edit", "arguments": ' + '{"a":' * 5000 + "1" + "}" * 5001,
    ],
)
def test_a_slip_is_refused_and_the_run_goes_on_waiting(
    user: Caller, waiting: str, said: str
) -> None:
    """Nothing is denied or changed by it; another answer to the same request is taken."""
    slip = user.answer(waiting, said)

    assert (422, "validation.error") == error_of(slip)
    assert ["content"] == list(slip.json()["details"])
    assert "waiting_for_input" == user.get_run(waiting)["status"]
    assert 200 == user.answer(waiting, "yes").status_code
    assert [("42", False)] == outputs(user, waiting)


def test_edited_arguments_that_do_not_fit_are_asked_for_again(user: Caller, waiting: str) -> None:
    """A new request for the same call."""
    first = user.get_run(waiting)["pending_input"]
    user.answer(waiting, json.dumps({"decision": "edit", "arguments": {"expresion": "1"}}))
    second = user.until(waiting, "status", "waiting_for_input")["pending_input"]
    while second["request_id"] == first["request_id"]:
        second = user.until(waiting, "status", "waiting_for_input")["pending_input"]

    assert "Invalid arguments" in second["prompt"]
    assert first["tool_call_id"] == second["tool_call_id"]
    assert (409, "input.stale") == error_of(
        user.answer(waiting, "yes", request_id=first["request_id"])
    )
    user.answer(waiting, "yes", request_id=second["request_id"])
    assert [("42", False)] == outputs(user, waiting)


def test_nobody_answers_and_the_run_goes_on(system: System) -> None:
    """If the persona says so, the run continues with a note to the model, and no worker waits."""
    owner = system.caller()
    persona = owner.made(
        "/v1/personas",
        {
            "key": "patient",
            "tools": ["calculator", "ask_user"],
            "require_approval": ["calculator"],
            "input_expires_seconds": 1,
            "on_input_expired": "continue",
        },
    )
    question = {"tool": "ask_user", "args": {"question": "?"}}

    run_id = owner.start(
        owner.thread(script(CALL, question, {"say": "ok"})), persona_id=persona["id"]
    )

    assert [
        ("The call was denied: No answer was given in time.", True),
        ("No answer was given in time.", False),
    ] == outputs(owner, run_id)
    assert "run.completed" == types(owner.events_so_far(run_id))[-1]
