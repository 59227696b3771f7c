"""Sub-runs in the real service: a run gives tasks to other runs, and waits for them."""

import signal
from decimal import Decimal
from itertools import pairwise
from typing import Any

import pytest

from tests.caller import Caller, script
from tests.system import System
from tests.waiting import eventually

#: A model call of 0.003 USD.
CALL = {"usage": {"input_tokens": 1000, "output_tokens": 1000}}


def task(*steps: dict[str, Any], persona: str = "plain") -> dict[str, Any]:
    """Build a call of `delegate` whose task is a script."""
    return {"tool": "delegate", "args": {"persona": persona, "task": script(*steps)}}


def boss(owner: Caller, **fields: Any) -> str:
    """Publish a persona that may give tasks to others; returns its id."""
    definition = {"key": "boss", "delegates": ["plain"], **fields}
    return str(owner.made("/v1/personas", definition)["id"])


def children(owner: Caller, run_id: str) -> list[dict[str, Any]]:
    """List the sub-runs of a run, the oldest first."""
    return list(reversed(owner.get("/v1/runs", parent_run_id=run_id)))


def test_a_run_gets_the_answers_of_its_sub_runs_in_call_order(owner: Caller) -> None:
    """The sub-runs work side by side in threads of their own; the run waits without a worker and
    has their answers in the order of its calls, whatever ends first.
    """
    calls = {"tools": [task({"say": "first", "delay_ms": 8000}), task({"say": "second"})]}

    run_id = owner.run(calls, {"say": "done"}, persona_id=boss(owner))
    suspended = owner.until(run_id, "phase", "waiting", "finished")
    run = owner.ended(run_id)

    events = owner.events(run_id)
    results = [event["data"] for event in events if event["type"] == "tool.result"]
    assert "completed" == run["status"]
    assert [("first", False), ("second", False)] == [(r["output"], r["is_error"]) for r in results]
    started = [event["data"] for event in events if event["type"] == "run.delegated"]
    found = children(owner, run_id)
    assert {one["run_id"] for one in started} == {child["run_id"] for child in found}
    assert [(run_id, "completed")] * 2 == [(c["parent_run_id"], c["status"]) for c in found]
    assert {run["trace_id"]} == {owner.get_run(c["run_id"])["trace_id"] for c in found}
    assert ("running", None) == (suspended["status"], suspended["pending_input"])
    total = run["cost_usd"] + sum(child["total_cost_usd"] for child in found)
    assert total == pytest.approx(run["tree_cost_usd"])


def results_of(owner: Caller, run_id: str) -> list[tuple[str, bool]]:
    """Return output and is_error of the run's tool results, when it has ended."""
    events = [event for event in owner.events(run_id) if event["type"] == "tool.result"]
    return [(event["data"]["output"], event["data"]["is_error"]) for event in events]


def test_a_sub_run_that_does_not_complete_is_an_error_that_the_parent_reads(owner: Caller) -> None:
    """The parent's call of a failed sub-run has its code, that of a cancelled one says so; the
    parent continues with both.
    """
    calls = {"tools": [task({"error": "invalid_request"}), task({"hang": 60})]}
    run_id = owner.run(calls, {"say": "done"}, persona_id=boss(owner))
    started = [owner.seen(run_id, "run.delegated", count)["data"] for count in (1, 2)]
    [hangs] = [one["run_id"] for one in started if one["tool_call_id"].endswith("2")]
    owner.cancel(hangs)

    run = owner.ended(run_id)

    [failed, cancelled] = results_of(owner, run_id)
    assert "completed" == run["status"]
    assert failed[1] and failed[0].startswith("The sub-run failed: provider.invalid_request: ")
    assert ("The sub-run was cancelled.", True) == cancelled


def phases(owner: Caller, run_id: str) -> list[str]:
    """Return the phases of the sub-runs of a run."""
    return sorted(owner.get_run(child["run_id"])["phase"] for child in children(owner, run_id))


def test_cancelling_a_run_cancels_all_runs_below_it(owner: Caller) -> None:
    """Sub-runs that are executed, that wait for a person and that wait for their own sub-runs all
    end as cancelled, down to the last level; and their parent waits for nobody.
    """
    owner.made("/v1/personas", {"key": "inner", "delegates": ["plain"]})
    persona_id = boss(owner, delegates=["plain", "inner", "assistant"])
    asks = {"tool": "ask_user", "args": {"question": "Which?"}}
    calls = [task({"hang": 60}), task(task({"hang": 60}), persona="inner")]

    run_id = owner.run({"tools": [*calls, task(asks, persona="assistant")]}, persona_id=persona_id)
    eventually(lambda: phases(owner, run_id) == ["executing", "waiting", "waiting"])
    below = children(owner, run_id)
    [middle] = [child["run_id"] for child in below if child["persona_id"] == "inner@1"]
    eventually(lambda: phases(owner, middle) == ["executing"])
    owner.cancel(run_id)

    ended = [owner.ended(one["run_id"]) for one in (*below, *children(owner, middle))]
    assert ["cancelled"] * 5 == [owner.ended(run_id)["status"], *(run["status"] for run in ended)]


def test_a_sub_run_that_waits_for_its_turn_is_cancelled_with_its_parent(owner: Caller) -> None:
    """It is never executed."""
    persona_id = boss(owner, max_active_children=1)
    run_id = owner.run({"tools": [task({"hang": 60})] * 2}, persona_id=persona_id)
    eventually(lambda: phases(owner, run_id) == ["executing", "waiting"])

    owner.cancel(run_id)

    ended = [owner.ended(child["run_id"]) for child in children(owner, run_id)]
    assert ["cancelled"] * 2 == [child["status"] for child in ended]
    assert 1 == [child["started_at"] for child in ended].count(None)


def test_no_more_sub_runs_are_active_than_the_persona_allows(owner: Caller) -> None:
    """Further ones wait for their turn and start as others end; all results arrive."""
    calls = {"tools": [task({"say": str(number)}) for number in range(4)]}

    run_id = owner.run(calls, {"say": "done"}, persona_id=boss(owner, max_active_children=1))
    run = owner.ended(run_id)

    assert [(str(number), False) for number in range(4)] == results_of(owner, run_id)
    found = [owner.get_run(child["run_id"]) for child in children(owner, run_id)]
    spans = sorted((child["started_at"], child["completed_at"]) for child in found)
    assert all(ended <= started for (_, ended), (started, _) in pairwise(spans))
    assert "completed" == run["status"]


def test_sub_runs_go_no_deeper_than_the_root_allows(owner: Caller) -> None:
    """A persona that gives itself tasks stops at `max_depth`: the call is refused, and says why."""
    call = task(task({"say": "deepest"}, persona="boss"), {"say": "I must not"}, persona="boss")

    run_id = owner.run(call, persona_id=boss(owner, delegates=["boss"], max_depth=1))
    owner.ended(run_id)

    [child] = children(owner, run_id)
    [(refusal, is_error)] = results_of(owner, child["run_id"])
    assert is_error and "must not start sub-runs" in refusal
    assert [("I must not", False)] == results_of(owner, run_id)


@pytest.mark.usefixtures("within_a_month")
def test_the_limit_of_a_run_covers_its_whole_tree(owner: Caller) -> None:
    """Sub-runs and their parent spend from one limit, and never more than it; what one has not
    used is there for the others.
    """
    spends = task(
        CALL, {"tool": "calculator", "args": {"expression": "1"}}, CALL, persona="assistant"
    )
    definition = {"delegates": ["assistant"], "key": "payer", "max_cost_usd": 0.02}
    persona_id = str(owner.made("/v1/personas", definition)["id"])

    run_id = owner.run({"tools": [spends] * 8}, {"say": "done"}, persona_id=persona_id)
    run = owner.ended(run_id, seconds=90)

    found = [owner.ended(child["run_id"]) for child in children(owner, run_id)]
    spent = sum(Decimal(str(one["cost_usd"])) for one in (run, *found))
    assert {"completed"} == {one["status"] for one in (run, *found)}
    assert "budget" in {child["stop_reason"] for child in found}
    assert Decimal("0.012") <= spent <= Decimal("0.02")
    assert float(spent) == pytest.approx(run["tree_cost_usd"])
    assert float(spent) == pytest.approx(owner.get("/v1/me/usage")["cost_usd"])


@pytest.mark.processes
def test_a_killed_worker_starts_no_sub_run_twice(system: System, owner: Caller) -> None:
    """After a worker is killed the run has one sub-run for each call, and gets each answer."""
    slow = task({"say": "a b c d e f", "delay_ms": 150})
    run_id = owner.run({"tools": [slow] * 3}, {"say": "done"}, persona_id=boss(owner))
    owner.seen(run_id, "run.delegated")

    system.worker.stop(signal.SIGKILL)
    system.worker.start()

    assert "completed" == owner.ended(run_id, seconds=60)["status"]
    assert [("a b c d e f", False)] * 3 == results_of(owner, run_id)
    announced = [e["data"]["run_id"] for e in owner.events(run_id) if e["type"] == "run.delegated"]
    assert sorted(announced) == sorted(child["run_id"] for child in children(owner, run_id))


def test_a_task_goes_only_to_personas_that_are_named(owner: Caller) -> None:
    """A call with another persona is refused, and a persona that names an unknown one is not
    published.
    """
    run_id = owner.run(task({"say": "hi"}, persona="assistant"), persona_id=boss(owner))
    unknown = owner.http.post("/v1/personas", json={"key": "b", "delegates": ["nobody"]})

    owner.ended(run_id)
    [(_, is_error)] = results_of(owner, run_id)
    assert (True, []) == (is_error, children(owner, run_id))
    assert (422, ["unknown persona 'nobody'"]) == (
        unknown.status_code,
        unknown.json()["details"]["delegates"],
    )
