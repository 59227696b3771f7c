"""Models and tools that fail: what is tried again, what the run fails with, what is kept."""

from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import func, update

from arkloop.shared.storage.tables.runs import runs
from tests.caller import Caller, text_of, types
from tests.system import System

OFTEN = 99


@pytest.fixture(scope="module")
def failing(user: Caller) -> dict[str, str]:
    """Runs whose model always fails, all at once: the tries take seconds."""
    steps: dict[str, list[dict[str, Any]]] = {
        name: [{"error": name, "times": OFTEN}]
        for name in ("overloaded", "timeout", "invalid_request")
    }
    steps["connection"] = [{"say": "a part"}, {"error": "disconnect", "times": OFTEN}]
    return {name: user.run(*script) for name, script in steps.items()}


@pytest.mark.parametrize(
    ("kind", "retryable"),
    [
        ("overloaded", True),
        ("timeout", True),
        ("connection", True),
        ("invalid_request", False),
    ],
)
def test_a_model_that_fails_for_good_fails_the_run(
    user: Caller, failing: dict[str, str], kind: str, retryable: bool
) -> None:
    """`run.failed`, the run and the list say the same code; it tells whether to try again."""
    run = user.ended(failing[kind])
    last = user.events(failing[kind])[-1]

    assert ("failed", "finished") == (run["status"], run["phase"])
    assert run["failed_at"] is not None
    assert (f"provider.{kind}", retryable) == (run["error"]["code"], run["error"]["retryable"])
    assert "run.failed" == last["type"]
    assert {
        "error": run["error"],
        "usage": run["usage"],
        "cost_usd": run["cost_usd"],
    } == last["data"]


def test_a_run_waits_for_a_model_that_has_too_many_requests(user: Caller) -> None:
    """Tried more often than one that is broken; it says so once, and can be cancelled meanwhile."""
    waited = user.ended(user.run({"error": "rate_limited", "times": 6}, {"say": "at last"}))
    waiting = user.run({"error": "rate_limited", "times": OFTEN})
    user.seen(waiting, "run.throttled")
    user.cancel(waiting)

    assert "completed" == waited["status"]
    assert 1 == types(user.events(waited["run_id"])).count("run.throttled")
    assert "cancelled" == user.ended(waiting)["status"]


def test_text_of_a_failed_run_is_kept_as_partial(user: Caller, failing: dict[str, str]) -> None:
    """What the last try streamed; the tries before it are void and said so."""
    run = user.ended(failing["connection"])
    events = user.events(failing["connection"])

    assert "a part" == text_of(events)
    assert 3 == types(events).count("message.reset")
    assert ("assistant", "a part", True) == user.messages(run["thread_id"])[-1]
    # Four tries of two words each, none of them reported by the provider.
    assert (8, "estimated") == (run["usage"]["output_tokens"], run["usage"]["source"])


@pytest.mark.parametrize("name", ["rate_limited", "overloaded", "timeout"])
def test_a_model_that_recovers_costs_nothing_but_time(user: Caller, name: str) -> None:
    """A failure before the first word leaves no trace in the events."""
    events = user.events(user.run({"error": name, "times": 1}, {"say": "all is well"}))

    assert "run.completed" == events[-1]["type"]
    assert "all is well" == text_of(events)
    assert "message.reset" not in types(events)
    assert "reported" == events[-1]["data"]["usage"]["source"]


def test_a_model_cut_off_in_the_middle_is_asked_again(user: Caller) -> None:
    """`message.reset` names the first void event; only the whole answer is in the thread."""
    run_id = user.run({"say": "one two"}, {"error": "disconnect", "times": 1}, {"say": " three"})
    events = user.events(run_id)
    reset = next(event for event in events if event["type"] == "message.reset")

    assert {"from_seq": 2, "reason": "provider.connection"} == reset["data"]
    assert "one two three" == text_of(events)
    run = user.get_run(run_id)
    assert ("assistant", "one two three", False) == user.messages(run["thread_id"])[-1]
    assert (5, "estimated") == (run["usage"]["output_tokens"], run["usage"]["source"])


def test_a_run_has_a_limit_of_steps(user: Caller) -> None:
    """After as many steps as the persona allows, one last call leaves an answer."""
    run_id = user.run(*[{"tool": "current_time"}] * 32, {"say": "It is late."})
    events = user.events(run_id)

    run = user.get_run(run_id)
    assert ("completed", "max_steps", None) == (run["status"], run["stop_reason"], run["error"])
    [reached] = [event["data"] for event in events if event["type"] == "run.limit_reached"]
    assert "max_steps" == reached["stop_reason"] == events[-1]["data"]["stop_reason"]
    assert [32, 32, 33] == [
        types(events).count(kind) for kind in ("tool.call", "tool.result", "message.completed")
    ]
    assert ("assistant", "It is late.", False) == user.messages(run["thread_id"])[-1]
    [listed] = [r for r in user.get("/v1/runs") if r["run_id"] == run_id]
    assert "max_steps" == listed["stop_reason"]


def test_a_persona_may_fail_at_its_limits(user: Caller) -> None:
    """With `on_limit: fail` a run fails by the limit's code, without another call."""
    persona = {"key": "strict", "tools": ["current_time"], "max_steps": 2, "on_limit": "fail"}
    persona_id = user.made("/v1/personas", persona)["id"]
    run_id = user.run(*[{"tool": "current_time"}] * 3, persona_id=persona_id)
    events = user.events(run_id)

    error = user.get_run(run_id)["error"]
    assert ("run.max_steps", False) == (error["code"], error["retryable"])
    assert ("run.failed", 2) == (events[-1]["type"], types(events).count("message.completed"))


def test_a_run_has_a_limit_of_time(system: System, user: Caller) -> None:
    """When its time without waiting is over, the text so far is the answer: this one began long
    ago.
    """
    run_id = user.run({"tool": "ask_user", "args": {"question": "?"}}, {"say": "So"}, {"hang": 60})
    user.until(run_id, "status", "waiting_for_input")
    with system.connections.transaction() as tx:
        long_ago = func.now() - timedelta(seconds=885)
        tx.sql.execute(update(runs).where(runs.c.id == UUID(run_id)).values(started_at=long_ago))

    assert 200 == user.answer(run_id, "yes").status_code

    run = user.ended(run_id)
    assert ("completed", "timeout") == (run["status"], run["stop_reason"])
    assert ("assistant", "So", False) == user.messages(run["thread_id"])[-1]


@pytest.mark.parametrize("on_limit", ["answer", "fail"])
def test_time_is_left_for_the_last_call(user: Caller, on_limit: str) -> None:
    """A tool that takes too long is left, and the model answers without its result."""
    persona = {"key": f"brisk-{on_limit}", "timeout_seconds": 20, "on_limit": on_limit}
    persona_id = user.made("/v1/personas", persona)["id"]
    slow = {"tool": "sleep", "args": {"seconds": 60}}
    run_id = user.run(slow, {"say": "I do not know."}, persona_id=persona_id)

    run = user.ended(run_id)
    messages = user.messages(run["thread_id"])
    if on_limit == "fail":
        assert ("failed", "run.timeout") == (run["status"], run["error"]["code"])
        return
    assert ("completed", "timeout") == (run["status"], run["stop_reason"])
    assert ("assistant", "I do not know.", False) == messages[-1]
    [result] = [event["data"] for event in user.events(run_id) if event["type"] == "tool.result"]
    assert result["is_error"]


def test_waiting_does_not_count_as_time(system: System, user: Caller) -> None:
    """A run that waited for hours has its time still before it."""
    run_id = user.run({"tool": "ask_user", "args": {"question": "?"}}, {"say": "ok"})
    user.until(run_id, "status", "waiting_for_input")
    with system.connections.transaction() as tx:
        long_ago = func.now() - timedelta(hours=5)
        tx.sql.execute(
            update(runs)
            .where(runs.c.id == UUID(run_id))
            .values(started_at=long_ago, waiting_since=long_ago)
        )

    assert 200 == user.answer(run_id, "yes").status_code

    run = user.ended(run_id)
    assert "completed" == run["status"]
    assert run["waiting_ms"] >= 5 * 3600 * 1000


@pytest.mark.parametrize(
    ("call", "why"),
    [
        ({"tool": "teleport"}, "Unknown tool 'teleport'"),
        ({"tool": "calculator", "args": {}}, "Missing argument 'expression'"),
        ({"tool": "calculator", "args": {"expression": 1}}, "must be of type string"),
        ({"tool": "calculator", "args": {"expression": "1/0"}}, "Division by zero"),
        ({"tool": "current_time", "args": {"zone": "UTC"}}, "Unknown argument 'zone'"),
        ({"tool": "ask_user", "args": {"question": 1}}, "must be of type string"),
        ({"tool": "append_line", "args": {"path": "/none/x", "line": ""}}, "No such file"),
        ({"tool": "current_time", "args": []}, "must be a JSON object"),
    ],
)
def test_a_tool_that_fails_tells_the_model(user: Caller, call: dict[str, Any], why: str) -> None:
    """A `tool.result` with `is_error` says why; the run continues."""
    events = user.events(user.run(call, {"say": "ok"}))
    result = next(event["data"] for event in events if event["type"] == "tool.result")

    assert result["is_error"]
    assert why in result["output"]
    assert "run.completed" == events[-1]["type"]


@pytest.mark.parametrize(
    "script",
    ['{"script": 1}', '{"script": [{}]}', '{"script": [{"say": 1}]}', '{"script": [{"fly": 1}]}'],
)
def test_a_wrong_script_says_so(user: Caller, script: str) -> None:
    """`provider.invalid_request`, with the number of the step."""
    run = user.ended(user.run(script))

    assert "provider.invalid_request" == run["error"]["code"]
    assert "script" in run["error"]["message"] or "step 1" in run["error"]["message"]
