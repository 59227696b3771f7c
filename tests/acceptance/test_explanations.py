"""Explanations of runs: situations of the real service, and what `:explain` says of each."""

import secrets
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from arkloop.shared import ids
from tests.caller import Caller, client, script
from tests.system import CONCURRENCY, System
from tests.tool_worker import ToolWorker
from tests.waiting import eventually

CLIENT_TOOL = {
    "name": "get_location",
    "description": "Return where the user is.",
    "parameters": {"type": "object", "properties": {}},
    "client": True,
}
SLOW = {"say": "a b c d e f g h " * 10, "delay_ms": 1000}
BUSY = {"tool": "sleep", "args": {"seconds": 300}}


def explained(user: Caller, run_id: str, *reasons: str, seconds: float = 60) -> dict[str, Any]:
    """Wait until the run is explained with one of these reasons; return that."""
    seen: list[dict[str, Any]] = []

    def is_there() -> bool:
        seen.append(user.get(f"/v1/runs/{run_id}:explain"))
        return seen[-1]["reason"] in reasons

    try:
        eventually(is_there, seconds=seconds)
    except AssertionError:
        raise AssertionError([(one["reason"], one["sentence"]) for one in seen[-3:]]) from None
    return seen[-1]


def in_seconds(text: str) -> float:
    """Return how far in the future a time is."""
    return (datetime.fromisoformat(text) - datetime.now(UTC)).total_seconds()


def later(seconds: float) -> str:
    return (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat(timespec="milliseconds")


@pytest.mark.parametrize(
    ("steps", "choice", "reason", "kind"),
    [
        (
            {"tool": "ask_user", "args": {"question": "Which city?"}},
            {},
            "waiting.answer",
            "question",
        ),
        (
            {"tool": "calculator", "args": {"expression": "1+1"}},
            {"persona_id": "careful"},
            "waiting.approval",
            "tool_confirmation",
        ),
        ({"tool": "get_location", "args": {}}, {}, "waiting.client_tools", "tool_results"),
    ],
)
def test_a_run_that_waits_for_a_person_says_for_what(
    owner: Caller, steps: dict[str, Any], choice: dict[str, Any], reason: str, kind: str
) -> None:
    """The reason has who is waited for, since when, and until when."""
    fields = {"key": "mapper", "client_tools": [CLIENT_TOOL], "tools": ["ask_user"]}
    mapper = str(owner.made("/v1/personas", fields)["id"])
    run_id = owner.run(steps, {"say": "ok"}, **({"persona_id": mapper} | choice))

    found = explained(owner, run_id, reason)

    run = owner.get_run(run_id)
    pending = run["pending_input"]
    assert ("waiting_for_input", "waiting") == (found["status"], found["phase"])
    assert {"action": "expire", "at": pending["expires_at"]} == found["next"]
    assert (pending["request_id"], kind) == (
        found["details"]["request_id"],
        found["details"]["kind"],
    )
    assert run["started_at"] <= found["since"]
    if "tool_calls" in found["details"]:
        [call] = found["details"]["tool_calls"]
        assert "get_location" == call["name"] and "get_location" in found["sentence"]
    owner.cancel(run_id)
    assert "ended.cancelled" == explained(owner, run_id, "ended.cancelled")["reason"]


def test_a_run_that_waits_for_its_thread_names_the_active_one(owner: Caller) -> None:
    """The active run's id and phase, and the place behind it."""
    thread_id = owner.thread(script(SLOW))
    active = owner.start(thread_id)
    second = owner.made("/v1/runs", {"thread_id": thread_id, "message": "2", "on_busy": "enqueue"})
    third = owner.made("/v1/runs", {"thread_id": thread_id, "message": "3", "on_busy": "enqueue"})

    found = explained(owner, second["run_id"], "thread.busy")
    behind = explained(owner, third["run_id"], "thread.busy")

    assert (1, active, "queue") == (
        found["details"]["position"],
        found["details"]["active_run_id"],
        found["next"]["action"],
    )
    assert 2 == behind["details"]["position"] and active in behind["sentence"]
    owner.cancel(active)


def test_a_scheduled_run_says_when_it_starts(owner: Caller) -> None:
    """Its time is that of the next action."""
    body = {"message": "hi", "not_before": later(3600).replace("+00:00", "Z")}
    run_id = owner.made("/v1/runs", body)["run_id"]

    found = explained(owner, run_id, "not_before")

    assert {"action": "queue", "at": body["not_before"]} == found["next"]
    assert "scheduled" == found["phase"]


@pytest.mark.parametrize(
    ("steps", "reason"),
    [
        ([{"hang": 90}], "model.calling"),
        ([SLOW], "model.streaming"),
        ([{"think": "a b c d e f " * 20, "delay_ms": 500}], "model.streaming"),
    ],
)
def test_a_model_call_is_told_from_a_response(
    owner: Caller, steps: list[dict[str, Any]], reason: str
) -> None:
    """A model that has sent nothing yet, and one that writes."""
    run_id = owner.run(*steps)

    found = explained(owner, run_id, reason)

    assert ("executing", "continue") == (found["phase"], found["next"]["action"])
    owner.cancel(run_id)


def test_a_silent_model_after_a_tool_is_a_call(owner: Caller) -> None:
    """After the first turn the reason is the call, since the last result."""
    run_id = owner.run({"tool": "current_time", "args": {}}, {"hang": 90})

    found = explained(owner, run_id, "model.calling")

    last = owner.events_so_far(run_id)[-1]
    assert last["created_at"] >= found["since"]
    owner.cancel(run_id)


def test_a_failed_call_says_which_try_follows_and_when(owner: Caller) -> None:
    """The code of the failure, the number of the next try, and its time."""
    run_id = owner.run({"error": "overloaded", "times": 3}, {"say": "ok"})

    found = explained(owner, run_id, "model.retrying")

    retried = [e for e in owner.events(run_id) if e["type"] == "run.retrying"]
    assert [2, 3, 4] == [event["data"]["try_number"] for event in retried]
    assert "provider.overloaded" == found["details"]["error_code"]
    assert found["details"]["try_number"] in (2, 3, 4)
    assert "retry" == found["next"]["action"] and in_seconds(found["next"]["at"]) < 3
    assert "ended.completed" == explained(owner, run_id, "ended.completed")["reason"]


def test_a_throttled_run_says_by_what_and_until_when(owner: Caller) -> None:
    """A provider's 429: the route, and when it is asked again."""
    run_id = owner.run({"error": "rate_limited", "times": 3}, {"say": "ok"})

    found = explained(owner, run_id, "throttled.provider")

    assert ("scripted", "retry") == (found["details"]["route_id"], found["next"]["action"])
    assert "429" in found["sentence"]
    owner.cancel(run_id)


def test_running_tools_are_named(owner: Caller) -> None:
    """The calls that have no result yet, and since when they run."""
    calls = [{"tool": "current_time", "args": {}}, {"tool": "sleep", "args": {"seconds": 90}}]
    run_id = owner.run({"tools": calls}, {"say": "ok"})

    found = explained(owner, run_id, "tools.running")
    eventually(lambda: len(explained(owner, run_id, "tools.running")["details"]["tool_calls"]) == 1)

    [call] = explained(owner, run_id, "tools.running")["details"]["tool_calls"]
    assert ("call_1_2", "sleep") == (call["tool_call_id"], call["name"])
    assert "sleep" in found["sentence"]
    owner.cancel(run_id)


def test_a_call_that_no_tool_worker_fetches_says_so(owner: Caller) -> None:
    """First no worker has it, then one has."""
    pool = f"pool-{secrets.token_hex(4)}"
    worker = ToolWorker.of(owner, pool)
    worker.poll(wait_seconds=0)
    owner.made("/v1/personas", {"key": pool, "tool_workers": [pool], "timeout_seconds": 60})
    run_id = owner.run({"tool": "echo", "args": {"text": "hi"}}, {"say": "ok"}, persona_id=pool)

    found = explained(owner, run_id, "tools.no_worker")
    taken = worker.take()
    leased = explained(owner, run_id, "tools.running")

    [call] = found["details"]["tool_calls"]
    assert (pool, "queued") == (call["tool_worker"], call["worker_state"])
    assert pool in found["sentence"] and in_seconds(found["next"]["at"]) > 0
    assert "leased" == leased["details"]["tool_calls"][0]["worker_state"]
    worker.complete(taken, "done")
    assert "completed" == owner.ended(run_id)["status"]


def test_a_run_and_its_sub_runs_explain_each_other(owner: Caller) -> None:
    """The parent waits for the sub-run; the sub-run does what it does."""
    owner.made("/v1/personas", {"key": "boss", "delegates": ["plain"]})
    task = {"tool": "delegate", "args": {"persona": "plain", "task": script(SLOW)}}
    run_id = owner.run(task, {"say": "ok"}, persona_id="boss")

    found = explained(owner, run_id, "waiting.sub_runs")

    [child] = owner.get("/v1/runs", parent_run_id=run_id)
    assert [child["run_id"]] == found["details"]["sub_run_ids"]
    assert "model.streaming" == explained(owner, child["run_id"], "model.streaming")["reason"]
    owner.cancel(run_id)


def test_a_run_for_agent_workers_names_their_agent(system: System, owner: Caller) -> None:
    """No worker is alive, then one polls and has it."""
    owner.made("/v1/personas", {"key": "custom", "agent": "custom"})
    run_id = owner.run("hi", persona_id="custom")

    found = explained(owner, run_id, "queue.no_agent_worker")
    _, key = owner.api_key(scopes=["agents.work"])
    body = {"worker_id": str(ids.new_id()), "wait_seconds": 5}
    polled = client(system.web[0].url, key).post("/v1/agent-workers/custom:poll", json=body)
    has_it = explained(owner, run_id, "agent.executing")

    assert ("custom", 0) == (found["details"]["agent"], found["details"]["workers_alive"])
    assert [run_id] == [run["run_id"] for run in polled.json()["runs"]]
    assert body["worker_id"] == has_it["details"]["worker_id"]
    owner.cancel(run_id)


@pytest.mark.parametrize(
    ("steps", "choice", "reason"),
    [
        ([{"say": "ok"}], {}, "ended.completed"),
        ([{"error": "invalid_request", "times": 9}], {}, "ended.failed"),
        (
            [{"tool": "current_time", "args": {}}] * 3,
            {"limits": {"max_steps": 2}},
            "ended.at_limit",
        ),
    ],
)
def test_an_ended_run_says_how(
    owner: Caller, steps: list[dict[str, Any]], choice: dict[str, Any], reason: str
) -> None:
    """Completed, failed with its code, or landed at a limit; nothing happens next."""
    short = {"key": "short", "tools": ["current_time"], "max_steps": 2}
    owner.made("/v1/personas", short)
    run_id = owner.run(*steps, **({"persona_id": "short"} if choice else {}))

    found = explained(owner, run_id, reason)

    run = owner.get_run(run_id)
    assert None is found["next"] and "finished" == found["phase"]
    assert found["since"] == (run["completed_at"] or run["failed_at"])
    if reason == "ended.failed":
        assert run["error"]["code"] == found["details"]["error_code"]
        assert run["error"]["message"] in found["sentence"]
    if reason == "ended.at_limit":
        assert "max_steps" == found["details"]["stop_reason"]


@pytest.mark.processes
def test_without_a_worker_a_queued_run_says_so(system: System, owner: Caller) -> None:
    """A run whose worker was killed, and a new one: nothing is alive that could execute them."""
    lost = owner.run(SLOW)
    explained(owner, lost, "model.streaming")
    with system.without_worker():
        silent = explained(owner, lost, "worker.silent")
        new = owner.run("hi")
        found = explained(owner, new, "queue.no_worker")
        gone = explained(owner, lost, "worker.silent")

    assert {"action": "take_over", "at": None} == silent["next"] == gone["next"]
    assert 0 == gone["details"]["workers_alive"] and "as soon as one is alive" in gone["sentence"]
    assert (0, "start") == (found["details"]["workers_alive"], found["next"]["action"])
    assert "completed" == owner.ended(new, seconds=60)["status"]
    owner.cancel(lost)


def test_a_frozen_worker_is_silent_until_another_takes_over(system: System, owner: Caller) -> None:
    """A process that stands still, and continues: no other takes its runs over meanwhile."""
    run_id = owner.run(BUSY, {"say": "ok"})
    explained(owner, run_id, "tools.running")
    with system.with_frozen_worker():
        found = explained(owner, run_id, "worker.silent")

    assert {"action": "take_over", "at": None} == found["next"]
    assert "tools.running" == explained(owner, run_id, "tools.running")["reason"]
    owner.cancel(run_id)


def test_behind_others_a_queued_run_says_behind_how_many(system: System, owner: Caller) -> None:
    """All slots are in use: the first in the queue waits for one, the next ones for the first."""
    held = [owner.run(BUSY, {"say": "ok"}) for _ in range(CONCURRENCY)]
    queued = [owner.run("hi") for _ in range(3)]
    try:
        first = explained(owner, queued[0], "queue.slots_full")
        last = explained(owner, queued[-1], "queue.behind_others")
    finally:
        for run_id in held:
            owner.cancel(run_id)

    assert (1, 0) == (first["details"]["position"], first["details"]["ahead_of_you"])
    assert (3, 2) == (last["details"]["position"], last["details"]["ahead_of_you"])
    assert "2 runs" in last["sentence"] and "queued" == last["phase"]
    assert "completed" == owner.ended(queued[-1])["status"]
