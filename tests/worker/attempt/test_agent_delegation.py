"""Sub-runs that an agent in a worker process starts."""

import json
from collections.abc import Mapping
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest

from arkloop.shared.errors import LeaseLost, Unavailable
from arkloop.shared.events import types
from arkloop.shared.events.usage import Usage
from arkloop.shared.ids import new_id
from arkloop.shared.runs import claims, delegation, whole_results
from arkloop.shared.runs.states import ResultSource, RunState
from arkloop.worker.attempt import execution
from arkloop.worker.process.process import WorkerProcess
from tests.caller import script
from tests.stored_runs import StoredRuns
from tests.waiting import eventually
from tests.worker.attempt.agent_runs import LOST, created, data, process, stopped

__all__ = ["process"]  # a fixture

TWO = ["plain", "assistant"]


def task(call_id: str, *steps: dict[str, Any], persona: str = "plain") -> dict[str, str]:
    """Build a task that the scripted model plays."""
    return {"persona": persona, "task": script(*steps), "tool_call_id": call_id}


def children(stored: StoredRuns, run_id: UUID) -> list[UUID]:
    """Return the sub-runs that the events name, in call order."""
    return [UUID(one["run_id"]) for one in data(stored, run_id, "run.delegated")]


@pytest.mark.parametrize("agent", ["script", "async_script"])
def test_an_agent_gets_the_results_of_its_sub_runs_in_their_order(
    stored: StoredRuns, process: WorkerProcess, agent: str
) -> None:
    """The run waits without a worker, whatever ends first, and its agent is called again then."""
    tasks = [task("a", {"say": "first"}), task("b", {"error": "invalid_request"})]
    run_id = created(stored, {"text": "Now: "}, {"delegate": tasks}, agent=agent, delegates=TWO)
    execution.execute(process, run_id)
    assert RunState.SUSPENDED == stored.state(run_id)

    for child in reversed(children(stored, run_id)):
        execution.execute(process, child)
    execution.execute(process, run_id)

    assert RunState.COMPLETED == stored.state(run_id)
    assert [
        *("run.started", "message.completed", "tool.call", "tool.call"),
        *("run.delegated", "run.delegated", "run.suspended", "run.resumed"),
        *("tool.result", "tool.result", "message.completed", "run.completed"),
    ] == [type_ for type_ in stored.types(run_id) if type_ != "message.delta"]
    [(answer, _)] = stored.messages(run_id)
    [first, second] = json.loads(answer.removeprefix("Now: "))
    assert ["first", False] == first
    assert second[1] and second[0].startswith("The sub-run failed: provider.invalid_request: ")
    results = data(stored, run_id, "tool.result")
    assert ["a", "b"] == [one["tool_call_id"] for one in results]


@pytest.mark.parametrize("most", [10_000_000, 100_000])
def test_an_agent_gets_a_long_result_whole(
    stored: StoredRuns, process: WorkerProcess, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    """Its event has a part, which JSON cannot be read from; of too much the newest is whole."""
    monkeypatch.setattr(whole_results, "MAX_CHARACTERS", most)
    said = ["a" * 70_000, "b" * 70_001]
    tasks = [task(text[0], {"say": text}) for text in said]
    run_id = created(stored, {"delegate": tasks}, delegates=["plain"])
    execution.execute(process, run_id)
    for child in children(stored, run_id):
        execution.execute(process, child)
    outages = iter([Unavailable()])
    read = whole_results.read

    def read_after_an_outage(*args: Any) -> Mapping[str, str]:
        for outage in outages:
            raise outage
        return read(*args)

    monkeypatch.setattr(whole_results, "read", read_after_an_outage)
    execution.execute(process, run_id)

    results = {one["tool_call_id"]: one for one in data(stored, run_id, "tool.result")}
    assert [70_000, 70_001] == [results[name]["characters"] for name in "ab"]
    [(answer, _)] = stored.messages(run_id)
    [first, second] = json.loads(answer)
    assert [said[1], False] == second
    assert [said[0] if most > 140_001 else results["a"]["output"], False] == first


@pytest.mark.parametrize("is_started", [False, True])
def test_an_execution_that_is_lost_while_it_delegates_starts_nothing_twice(
    stored: StoredRuns, process: WorkerProcess, is_started: bool
) -> None:
    """The next one starts what is not started, waits, and only then calls the agent."""
    given = task("a", {"say": "once"})
    steps = [{"say_attempt": True}, {"delegate": [given]}, {"wait": 30, "attempts": 2}]
    run_id = created(stored, *steps, delegates=TWO)
    claim = stored.held(run_id)
    arguments = {name: given[name] for name in ("persona", "task")}
    called = types.ToolCallRequested("a", "delegate", arguments)
    with stored.connections.transaction() as tx:
        claims.begin_tool_call(tx, claim, "a", ResultSource.RUN)
    stored.write(claim, types.MessageCompleted(str(new_id()), "", Usage()), called)
    if is_started:
        by = process.catalog.persona(claim.org_id, claim.persona_id)
        with stored.connections.transaction() as tx:
            wanted = delegation.prepare(process.catalog, claim, by, "a", **arguments)
            delegation.start(tx, claim, wanted)
    stored.set(run_id, **LOST)

    execution.execute(process, run_id)
    assert RunState.SUSPENDED == stored.state(run_id)
    [child] = children(stored, run_id)
    execution.execute(process, child)
    stopped(process, stored, run_id, LeaseLost(), after=("tool.result", 1))
    stored.set(run_id, **LOST)
    execution.execute(process, run_id)

    assert [('3[["once", false]]', False)] == stored.messages(run_id)
    assert [child] == children(stored, run_id)
    assert 1 == stored.types(run_id).count("tool.result") == stored.types(run_id).count("tool.call")


def test_a_task_that_nobody_may_get_has_an_error_as_its_result(
    stored: StoredRuns, process: WorkerProcess
) -> None:
    """The agent reads why, and the results of the others are in their places."""
    tasks = [task("a", persona="nobody"), task("b", {"say": "hi"}), task("c", persona="x")]
    run_id = created(stored, {"delegate": tasks}, delegates=TWO)
    execution.execute(process, run_id)
    [child] = children(stored, run_id)
    execution.execute(process, child)

    execution.execute(process, run_id)

    refused = "Not executed: %r is none of plain, assistant."
    expected = [[refused % "nobody", True], ["hi", False], [refused % "x", True]]
    assert [(json.dumps(expected), False)] == stored.messages(run_id)


@pytest.mark.parametrize(
    ("steps", "delegates"),
    [
        ([{"delegate": [task("a")]}], []),
        ([{"delegate": []}], TWO),
        ([{"delegate": [task("a"), task("a")]}], TWO),
        ([{"delegate": [{**task("a"), "task": ""}]}], TWO),
        ([{"call": "x", "id": "a"}, {"delegate": [task("a")]}], TWO),
    ],
)
def test_tasks_that_are_none_fail_the_agent(
    stored: StoredRuns, process: WorkerProcess, steps: list[dict[str, Any]], delegates: list[str]
) -> None:
    """A persona without delegates, and wrong ids or tasks, are errors of the agent's code."""
    run_id = created(stored, *steps, delegates=delegates)

    execution.execute(process, run_id)

    assert "The agent failed: ValueError." == stored.row(run_id)["error_message"]
    assert [] == children(stored, run_id)


@pytest.mark.parametrize("other", [task("a", {"say": "B"}), task("a", persona="assistant")])
def test_an_id_is_that_of_one_task(
    stored: StoredRuns, process: WorkerProcess, other: dict[str, str]
) -> None:
    """Another task under it fails the run: the agent would take the first one's result for its."""
    run_id = created(stored, {"delegate": [task("a")]}, {"delegate": [other]}, delegates=TWO)
    execution.execute(process, run_id)
    [child] = children(stored, run_id)
    execution.execute(process, child)

    execution.execute(process, run_id)

    assert "The agent failed: ValueError." == stored.row(run_id)["error_message"]
    assert [child] == children(stored, run_id)


def test_a_sub_run_spends_from_the_limit_of_the_run_that_waits_for_it(
    stored: StoredRuns, process: WorkerProcess
) -> None:
    """An agent gives back what it has reserved before it waits, and counts what they spent."""
    works = task("a", {"usage": {"input_tokens": 1000, "output_tokens": 1000}}, {"say": "ok"})
    steps = [{"reserve": 0.5}, {"delegate": [works]}, {"reserve": 0.498}]
    run_id = created(stored, *steps, delegates=TWO, max_cost_usd=0.5, on_limit="fail")
    execution.execute(process, run_id)
    [child] = children(stored, run_id)
    execution.execute(process, child)

    execution.execute(process, run_id)

    assert Decimal("0.003") == stored.row(child)["cost_usd"]
    row = stored.row(run_id)
    assert ("budget.exhausted", 0) == (row["error_code"], row["cost_usd"])
    assert "with its sub-runs is 0.5 USD" in row["error_message"]


def test_a_cancel_of_the_run_ends_its_sub_runs(stored: StoredRuns, process: WorkerProcess) -> None:
    """Neither the run nor what it has started is executed again."""
    run_id = created(stored, {"delegate": [task("a", {"say": "x"})]}, delegates=TWO)
    execution.execute(process, run_id)
    [child] = children(stored, run_id)

    stored.cancel(run_id)

    ended = [RunState.CANCELLED] * 2
    eventually(lambda: [stored.state(one) for one in (run_id, child)] == ended)
