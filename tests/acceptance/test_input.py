"""Input: a run asks a person, and each answer is used exactly once, or refused by name."""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from arkloop.shared.ids import new_id
from tests.caller import Caller, answered, data_of, error_of, types
from tests.system import System

MAX_BYTES = 32_768


def ask(question: str = "Which?", **more: Any) -> dict[str, Any]:
    return {"tool": "ask_user", "args": {"question": question, **more}}


def calculate(expression: str) -> dict[str, Any]:
    return {"tool": "calculator", "args": {"expression": expression}}


@pytest.fixture
def asking(user: Caller) -> str:
    """A run that waits for one answer and then ends."""
    run_id = user.run(ask())
    user.until(run_id, "status", "waiting_for_input")
    return run_id


def request_of(user: Caller, run_id: str) -> str:
    return str(user.until(run_id, "status", "waiting_for_input")["pending_input"]["request_id"])


def test_a_question_is_answered_and_the_run_goes_on(user: Caller) -> None:
    """The event, the run and the request say the same; the answer is the tool's result."""
    run_id = user.run({"say": "Let me ask."}, ask("Red?", options=["yes", "no"]), {"say": "Thanks"})
    run = user.until(run_id, "status", "waiting_for_input")
    waiting = user.events_so_far(run_id)[-1]["data"]

    assert "waiting" == run["phase"]
    assert run["pending_input"] == waiting
    expires_at = datetime.fromisoformat(waiting.pop("expires_at"))
    assert abs(expires_at - datetime.now(UTC) - timedelta(hours=24)) < timedelta(minutes=1)
    request_id = waiting.pop("request_id")
    assert {
        "kind": "question",
        "prompt": "Red?",
        "tool_call_id": "call_1_1",
        "options": ["yes", "no"],
    } == waiting

    answer = user.answer(run_id, "No, blue: é€\U0001f600", request_id=request_id)
    at_once = user.get_run(run_id)
    events = user.events(run_id)

    assert (200, {"ok": True}) == (answer.status_code, answer.json())
    assert at_once["status"] in ("running", "completed")
    assert at_once["pending_input"] is None
    assert [
        "run.waiting_for_input",
        "run.resumed",
        "run.input_received",
        "tool.result",
        "message.delta",
    ] == types(events)[-8:-3]
    assert [{"attempt": 1, "reason": "input"}] == data_of(events, "run.resumed")
    received = {"request_id": request_id, "content": "No, blue: é€\U0001f600"}
    assert [received] == data_of(events, "run.input_received")
    result = data_of(events, "tool.result")[0]
    assert ("No, blue: é€\U0001f600", False) == (result["output"], result["is_error"])
    ended = user.get_run(run_id)
    assert ("completed", 1) == (ended["status"], ended["attempt"])
    assert 0 < ended["waiting_ms"] < 100_000


def test_an_answer_given_twice_is_the_same_answer(user: Caller) -> None:
    """200 with the same content, whatever the run does by then; another content is stale."""
    run_id = user.run(ask(), ask(), {"say": "done"})
    first = request_of(user, run_id)
    assert 200 == user.answer(run_id, "a", request_id=first).status_code
    assert 200 == user.answer(run_id, "a", request_id=first).status_code
    user.seen(run_id, "run.waiting_for_input", 2)
    second = request_of(user, run_id)

    assert first != second
    assert 200 == user.answer(run_id, "a", request_id=first).status_code
    assert (409, "input.stale") == error_of(user.answer(run_id, "b", request_id=first))
    assert 200 == user.answer(run_id, "b", request_id=second).status_code
    user.ended(run_id)
    assert 200 == user.answer(run_id, "a", request_id=first).status_code
    assert (409, "input.stale") == error_of(user.answer(run_id, "c", request_id=second))
    events = user.events(run_id)
    assert ["a", "b"] == [data["content"] for data in data_of(events, "run.input_received")]


def test_an_answer_to_an_unknown_request_is_stale(user: Caller, asking: str) -> None:
    """Another request than the open one: 409, and the question stays open."""
    answer = user.answer(asking, "yes", request_id=str(new_id()))

    assert (409, "input.stale") == error_of(answer)
    assert "waiting_for_input" == user.get_run(asking)["status"]


def test_an_answer_that_nobody_asked_for_is_refused(user: Caller) -> None:
    """409 `runs.not_waiting` while the run executes, `runs.not_active` after its end."""
    run_id = user.run({"hang": 100})
    user.seen(run_id, "run.started")
    assert (409, "runs.not_waiting") == error_of(user.answer(run_id, "yes"))

    user.cancel(run_id)
    user.ended(run_id)
    assert (409, "runs.not_active") == error_of(user.answer(run_id, "yes"))
    late = user.answer(run_id, "yes", request_id=str(new_id()))
    assert (409, "runs.not_active") == error_of(late)


@pytest.mark.parametrize("content", ["x" * MAX_BYTES, "€" * 10_922 + "ab", " x "])
def test_an_answer_of_up_to_32_kib_is_taken_whole(user: Caller, asking: str, content: str) -> None:
    """Bytes of UTF-8 count, and nothing is trimmed."""
    assert 200 == user.answer(asking, content).status_code

    assert content == data_of(user.events(asking), "run.input_received")[0]["content"]


@pytest.mark.parametrize(
    "body",
    [
        {"content": "x" * (MAX_BYTES + 1)},
        {"content": "€" * 10_922 + "abc"},
        {"content": ""},
        {"content": " \n\t\u3000"},
        {"content": None},
        {"content": 1},
        {"content": "nul \x00"},
        {},
        {"content": "x", "request_id": "one"},
        {"content": "x", "kind": "question"},
    ],
)
def test_an_answer_that_is_none_is_refused(user: Caller, asking: str, body: dict[str, Any]) -> None:
    """An answer that is too long, blank, missing, of another type or with unknown fields gets 422
    with the field's name.
    """
    answer = user.http.post(f"/v1/runs/{asking}/input", json=body)

    assert (422, "validation.error") == error_of(answer)
    assert [list(body)[-1] if body else "content"] == list(answer.json()["details"])
    assert "waiting_for_input" == user.get_run(asking)["status"]


def test_of_many_answers_at_once_one_is_used(system: System, user: Caller, asking: str) -> None:
    """Sixteen people at two servers: one 200, the others get a 409; one input in the events."""
    callers = [user.at(server.url) for server in system.web] * 8
    with ThreadPoolExecutor(16) as pool:
        answers = list(
            pool.map(lambda i: answered(lambda: callers[i].answer(asking, f"I am {i}")), range(16))
        )

    accepted = [i for i, answer in enumerate(answers) if answer.status_code == 200]
    assert 1 == len(accepted)
    refused = {error_of(answer) for answer in answers if answer.status_code != 200}
    assert refused <= {(409, "runs.not_waiting"), (409, "runs.not_active")}
    inputs = data_of(user.events(asking), "run.input_received")
    assert [f"I am {accepted[0]}"] == [data["content"] for data in inputs]


def test_an_idempotency_key_makes_an_answer_safe_to_repeat(user: Caller) -> None:
    """A repeated answer without a `request_id` could meet the next question; with a key it
    cannot.
    """
    run_id = user.run(ask("first"), ask("second"))
    request_of(user, run_id)
    for _ in range(2):
        answer = user.http.post(
            f"/v1/runs/{run_id}/input", json={"content": "x"}, headers={"Idempotency-Key": "k"}
        )
        assert 200 == answer.status_code
        user.seen(run_id, "run.waiting_for_input", 2)

    assert "true" == answer.headers["Idempotency-Replayed"]
    assert "second" == user.get_run(run_id)["pending_input"]["prompt"]
    user.cancel(run_id)


@pytest.mark.parametrize("answer", ["yes", "y", "approve", " Yes\n", "APPROVE"])
def test_an_approved_tool_runs(user: Caller, answer: str) -> None:
    """The persona's list says which tools ask first; yes, y and approve let them."""
    run_id = user.run(calculate("6*7"), {"say": "ok"}, persona_id="careful@1")
    waiting = user.until(run_id, "status", "waiting_for_input")["pending_input"]
    assert ("tool_confirmation", "call_1_1") == (waiting["kind"], waiting["tool_call_id"])
    assert "calculator" in waiting["prompt"]

    assert 200 == user.answer(run_id, answer).status_code

    result = data_of(user.events(run_id), "tool.result")[0]
    assert ("42", False) == (result["output"], result["is_error"])


@pytest.mark.parametrize("answer", ["no", "never mind: too dear"])
def test_a_denied_tool_does_not_run(user: Caller, answer: str) -> None:
    """The result is an error with the reply as its reason, and the run continues."""
    run_id = user.run(calculate("6*7"), {"say": "ok"}, persona_id="careful@1")
    user.until(run_id, "status", "waiting_for_input")

    assert 200 == user.answer(run_id, answer).status_code

    events = user.events(run_id)
    result = data_of(events, "tool.result")[0]
    assert result["is_error"]
    assert answer in result["output"]
    assert "42" not in result["output"]
    assert "run.completed" == events[-1]["type"]


def test_questions_of_one_turn_are_asked_one_at_a_time(user: Caller) -> None:
    """Questions are asked in the order of the calls; then all calls are made, with results in that
    order.
    """
    calls = [
        calculate("1+1"),
        ask("Second?"),
        {"tool": "current_time"},
        ask("Fourth?"),
        {"tool": "calculator", "args": {"wrong": 1}},
        calculate("2+2"),
    ]
    run_id = user.run({"tools": calls}, {"say": "ok"}, persona_id="careful@1")
    prompts = []
    for number, answer in enumerate(("yes", "two", "no", "four", "approve"), 1):
        data = user.seen(run_id, "run.waiting_for_input", number)["data"]
        prompts.append((data["kind"], data["tool_call_id"]))
        assert "tool.result" not in types(user.events_so_far(run_id))
        assert 200 == user.answer(run_id, answer, request_id=data["request_id"]).status_code

    assert [
        ("tool_confirmation", "call_1_1"),
        ("question", "call_1_2"),
        ("tool_confirmation", "call_1_3"),
        ("question", "call_1_4"),
        ("tool_confirmation", "call_1_6"),
    ] == prompts
    events = user.events(run_id)
    results = data_of(events, "tool.result")
    assert [f"call_1_{i}" for i in range(1, 7)] == [r["tool_call_id"] for r in results]
    assert ["2", "two", "four", "4"] == [results[i]["output"] for i in (0, 1, 3, 5)]
    assert [False, False, True, False, True, False] == [r["is_error"] for r in results]
    assert 1 == user.get_run(run_id)["attempt"]
