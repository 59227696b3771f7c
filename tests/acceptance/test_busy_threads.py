"""Messages that are sent while a run is active: none is lost, and each is answered once."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.caller import Caller, asking, error_of, script, types
from tests.system import System
from tests.waiting import eventually

SLOW = [{"hang": 10}, {"tool": "calculator", "args": {"expression": "1+1"}}]


def send(
    user: Caller, thread_id: str, message: str, on_busy: str | None = None, **more: Any
) -> dict[str, Any]:
    body = {"message": message, "on_busy": on_busy, "route_id": "scripted", **more}
    return user.made(f"/v1/threads/{thread_id}/runs", body)


def texts(user: Caller, thread_id: str) -> list[str]:
    return [content for _, content, _ in user.messages(thread_id)]


def test_a_queued_run_shows_its_place_and_follows(user: Caller) -> None:
    """Its stream is silent until the run before it has ended; lists show its place, too."""
    thread_id = user.thread()
    first = send(user, thread_id, script({"hang": 10}, {"say": "A"}), "enqueue")
    second, third = (send(user, thread_id, text, "enqueue") for text in ("b", "c"))

    assert ({"position": 1}, {"position": 2}) == (second["queue"], third["queue"])
    shown = user.get_run(third["run_id"])
    assert ("running", "queued", {"position": 2}) == tuple(
        shown[name] for name in ("status", "phase", "queue")
    )
    rows = user.get(f"/v1/threads/{thread_id}/runs")
    assert [{"position": 2}, {"position": 1}, None] == [row["queue"] for row in rows]
    assert ["running"] * 3 == [row["status"] for row in rows]

    events = user.events(third["run_id"])
    assert ("run.started", "run.completed") == (events[0]["type"], events[-1]["type"])
    assert user.ended(first["run_id"])["queue"] is None
    assert ["A", "b", "You said: b", "c", "You said: c"] == texts(user, thread_id)[1:]


def test_a_steered_message_reaches_the_next_step(user: Caller) -> None:
    """The model reads it before its next turn, and later runs where it was said."""
    thread_id = user.thread()
    first = send(user, thread_id, script(*SLOW, {"say": "unused"}), "enqueue")
    user.until(first["run_id"], "phase", "executing")
    steered = send(user, thread_id, "And in French?", "steer")

    events = user.events(first["run_id"])

    assert first["run_id"] == steered["run_id"]
    [event] = [event for event in events if event["type"] == "run.steered"]
    assert event["data"] == {
        "message_id": steered["steer"]["message_id"],
        "content": "And in French?",
    }
    assert types(events).index("tool.result") < types(events).index("run.steered")
    assert ["And in French?", "You said: And in French?"] == texts(user, thread_id)[1:]
    later = send(user, thread_id, script({"find": "And in"}), "enqueue")
    assert "And in French?" == user.ended(later["run_id"])["output"]
    lost = user.http.get(f"/v1/runs/{steered['steer']['fallback_run_id']}")
    assert (404, "runs.not_found") == error_of(lost)


def test_a_message_that_a_last_call_has_not_answered_is_a_run_of_its_own(user: Caller) -> None:
    """The model of the run, which is at its limit of steps, refuses the call that would have it."""
    user.made("/v1/personas", {"key": "brief", "tools": ["calculator"], "max_steps": 1})
    thread_id = user.thread()
    first = send(user, thread_id, script(*SLOW), "enqueue", persona_id="brief")
    user.until(first["run_id"], "phase", "executing")
    message = script({"tool": "calculator", "args": {}}, {"error": "invalid_request"})
    steered = send(user, thread_id, message, "steer")

    events = user.events(first["run_id"])
    own = user.ended(steered["steer"]["fallback_run_id"])

    assert "run.steered" not in types(events)
    assert ("completed", "max_steps") == tuple(
        user.get_run(first["run_id"])[name] for name in ("status", "stop_reason")
    )
    assert "failed" == own["status"]
    answer, said, *_ = texts(user, thread_id)[1:]
    assert (True, message) == (answer.startswith("No answer: "), said)


@pytest.mark.processes
def test_a_steered_message_survives_its_worker(user: Caller) -> None:
    """The next attempt has it once, and continues from it."""
    thread_id = user.thread()
    first = send(user, thread_id, script(*SLOW), "enqueue")
    user.until(first["run_id"], "phase", "executing")
    crash = {"exit_worker": True, "attempts": 1}
    turns = script({"tool": "calculator", "args": {}}, crash, {"say": "Done"})
    send(user, thread_id, turns, "steer")

    events = user.events(first["run_id"])

    assert 1 == types(events).count("run.steered")
    assert ("run.completed", "Done") == (events[-1]["type"], user.ended(first["run_id"])["output"])
    assert types(events).index("run.steered") < types(events).index("run.resumed")


def test_an_interrupt_and_a_schedule(user: Caller) -> None:
    """The interrupted run names its successor; a scheduled one can be cancelled before its time."""
    thread_id = user.thread()
    first = send(user, thread_id, script({"say": "Half"}, {"hang": 60}), "enqueue")
    user.seen(first["run_id"], "message.delta")
    later = send(user, thread_id, "later", "enqueue", not_before=_in_an_hour())
    second = send(user, thread_id, "b", "interrupt")

    last = user.events(first["run_id"])[-1]
    assert ("run.cancelled", second["run_id"]) == (last["type"], last["data"]["superseded_by"])
    assert second["run_id"] == user.get_run(first["run_id"])["superseded_by"]
    assert "You said: b" == user.ended(second["run_id"])["output"]
    assert "scheduled" == user.get_run(later["run_id"])["phase"]
    user.cancel(later["run_id"])
    assert "cancelled" == user.get_run(later["run_id"])["status"]
    assert ["Half", "b", "You said: b"] == texts(user, thread_id)[1:]


def test_a_time_that_has_passed_makes_a_run_wait(user: Caller) -> None:
    """It counts as one in the future: a client's clock may be behind, and its request late."""
    thread_id = user.thread()
    first = send(user, thread_id, script({"hang": 60}))
    passed = (datetime.now(UTC) - timedelta(seconds=2)).isoformat()
    late = send(user, thread_id, "late", not_before=passed)

    assert {"position": 1} == late["queue"]
    user.cancel(first["run_id"])
    assert "You said: late" == user.ended(late["run_id"])["output"]


def test_a_repeated_request_waits_once(user: Caller) -> None:
    """A request with the same `Idempotency-Key` gets the first response, whatever became of the
    run.
    """
    thread_id = user.thread()
    first = send(user, thread_id, script({"hang": 60}), "enqueue")
    body = {"message": "b", "on_busy": "enqueue", "route_id": "scripted"}

    def again() -> tuple[dict[str, Any], str | None]:
        headers = {"Idempotency-Key": first["run_id"]}
        answer = user.http.post(f"/v1/threads/{thread_id}/runs", json=body, headers=headers)
        assert 201 == answer.status_code, answer.text
        return answer.json(), answer.headers.get("Idempotency-Replayed")

    made, _ = again()
    assert {"position": 1} == made["queue"]
    assert (made, "true") == again()
    user.cancel(first["run_id"])
    assert "You said: b" == user.ended(made["run_id"])["output"]
    assert (made, "true") == again()
    assert ["b", "You said: b"] == texts(user, thread_id)[1:]


def test_a_client_that_leaves_can_cancel_a_run_that_waits(user: Caller) -> None:
    """`on_disconnect: cancel` ends it at once, and leaves the active run alone."""
    thread_id = user.thread()
    first = send(user, thread_id, script({"hang": 12}, {"say": "A"}), "enqueue")
    body = {"message": "b", "on_busy": "enqueue", "on_disconnect": "cancel"}
    path = f"/v1/threads/{thread_id}/runs"
    headers = {"Content-Type": "application/json", "Prefer": "wait=60"}
    with asking(user, path, body, **headers):
        eventually(lambda: len(user.get(path)) == 2)

    newest = user.get(path)[0]
    assert "cancelled" == user.ended(newest["run_id"])["status"]
    assert "running" == user.get_run(first["run_id"])["status"]
    assert "A" == user.ended(first["run_id"])["output"]
    assert ["A"] == texts(user, thread_id)[1:]


@pytest.mark.parametrize("on_busy", ["steer", "merge"])
def test_a_client_that_leaves_cancels_no_run_of_another_request(user: Caller, on_busy: str) -> None:
    """The run that has taken its message ends as it would have, whose client may still be there."""
    thread_id = user.thread()
    first = send(user, thread_id, script({"hang": 10}, {"say": "A"}), "enqueue")
    user.until(first["run_id"], "phase", "executing")
    second = send(user, thread_id, "b", "enqueue")
    taken = first if on_busy == "steer" else second

    body = {"message": "c", "on_busy": on_busy, "on_disconnect": "cancel", "route_id": "scripted"}
    path, headers = f"/v1/threads/{thread_id}/runs", {"Accept": "text/event-stream"}
    with user.http.stream("POST", path, json=body, headers=headers) as response:
        assert response.headers["Location"].endswith(taken["run_id"])

    ended = [user.ended(one["run_id"])["status"] for one in (first, second)]
    assert ["completed", "completed"] == ended
    assert "c" in texts(user, thread_id)


@pytest.mark.usefixtures("within_a_month")
def test_a_run_that_waits_finds_the_budget_that_is_left(system: System) -> None:
    """What was accepted while the budget lasted calls no model once it is spent; none is stuck."""
    owner = system.caller()
    owner.put("/v1/budget", {"max_cost_usd_per_month": 1})
    spending = {"usage": {"input_tokens": 2000, "output_tokens": 1000}}
    thread_id = owner.thread()
    made = [
        send(owner, thread_id, script(spending, {"hang": 10}, {"say": "A"}), "enqueue")
        for _ in range(3)
    ]
    # As much as one run costs, at the price of the scripted route. Not before all are made: once
    # the first has reserved it, which takes milliseconds, no other is accepted.
    owner.put("/v1/budget", {"max_cost_usd_per_month": 0.004})

    ended = [owner.ended(one["run_id"]) for one in made]

    none = "No answer: this run reached its limit of cost before the model had one."
    assert [("A", 0.004), (none, 0.0), (none, 0.0)] == [
        (run["output"], run["cost_usd"]) for run in ended
    ]


def test_wrong_values_are_refused(user: Caller) -> None:
    """Each with the name of its field."""
    thread_id = user.thread()
    for wrong in (
        {"on_busy": "wait"},
        {"on_busy": ["enqueue"]},
        {"not_before": 5},
        {"not_before": "2026-01-01"},
        {"not_before": "2026-01-01T00:00:00"},
        {"not_before": "2030-01-01T00:00:00Z"},
        {"not_before": _in_an_hour(), "on_busy": "interrupt"},
    ):
        answer = user.http.post(f"/v1/threads/{thread_id}/runs", json=wrong)
        assert (422, "validation.error") == error_of(answer), wrong
        assert answer.json()["details"].keys() <= wrong.keys()


def _in_an_hour() -> str:
    return (datetime.now(UTC) + timedelta(hours=1)).isoformat()
