"""Tasks whose calls of `delegate` are on record before they are given out."""

import json
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import delete

from arkloop.shared.errors import LeaseLost
from arkloop.shared.runs.states import RunState
from arkloop.shared.storage.tables.runs import tool_calls
from arkloop.worker.attempt import delegating, execution
from arkloop.worker.process.process import WorkerProcess
from tests.caller import script
from tests.stored_runs import StoredRuns
from tests.worker.attempt.agent_runs import LOST, created, data, process

__all__ = ["process"]  # a fixture

TASK = {"persona": "plain", "task": script({"say": "once"}), "tool_call_id": "a"}
OTHER = {"persona": "plain", "task": script({"say": "other"}), "tool_call_id": "b"}
EDITED = {"persona": "plain", "task": script({"say": "edited"})}


def delegated(stored: StoredRuns, process: WorkerProcess, run_id: UUID) -> None:
    """Execute the run until it waits for sub-runs, these, and the run again."""
    execution.execute(process, run_id)
    assert RunState.SUSPENDED == stored.state(run_id)
    for one in data(stored, run_id, "run.delegated"):
        execution.execute(process, UUID(one["run_id"]))
    execution.execute(process, run_id)


def said(stored: StoredRuns, run_id: UUID) -> Any:
    [(answer, is_partial)] = stored.messages(run_id)
    assert not is_partial
    return json.loads(answer.removeprefix("Another turn. "))


@pytest.mark.parametrize("between", [[], [{"call": "look", "id": "x"}, {"result": "1", "id": "x"}]])
def test_a_call_that_the_agent_has_recorded_is_given_out(
    stored: StoredRuns, process: WorkerProcess, between: list[dict[str, Any]]
) -> None:
    """It gets the result of its sub-run, as the new call next to it, of whatever turn it is."""
    if between:
        between = [{"text": "Another turn. "}, *between]
    step = {"delegate_recorded": TASK, "also": [OTHER], "between": between}
    run_id = created(stored, step, delegates=["plain"])

    delegated(stored, process, run_id)

    assert [["once", False], ["other", False]] == said(stored, run_id)
    ended = [one["tool_call_id"] for one in data(stored, run_id, "tool.result")]
    assert ["a", "b"] == [id_ for id_ in ended if id_ != "x"]
    assert 2 == len(data(stored, run_id, "run.delegated"))


@pytest.mark.parametrize(
    ("reply", "results"),
    [
        ("yes", [["once", False], ["other", False]]),
        (
            json.dumps({"decision": "edit", "arguments": EDITED}),
            [["edited", False], ["other", False]],
        ),
    ],
)
def test_a_call_that_a_person_has_approved_is_given_out(
    stored: StoredRuns, process: WorkerProcess, reply: str, results: list[Any]
) -> None:
    """Its sub-run has the task that the person has edited, and it has one `tool.call`."""
    step = {"delegate_approved": TASK, "also": [OTHER], "between": [{"text": "Another turn. "}]}
    run_id = created(stored, step, delegates=["plain"])
    execution.execute(process, run_id)
    stored.answer(run_id, reply)

    delegated(stored, process, run_id)

    assert results == said(stored, run_id)
    assert ["a", "b"] == [one["tool_call_id"] for one in data(stored, run_id, "tool.call")]


def test_a_call_that_a_person_has_denied_is_not_given_out(
    stored: StoredRuns, process: WorkerProcess
) -> None:
    """The agent reads why."""
    run_id = created(stored, {"delegate_approved": TASK}, delegates=["plain"])
    execution.execute(process, run_id)
    stored.answer(run_id, "no")

    execution.execute(process, run_id)

    assert [["The call was denied: no", True]] == said(stored, run_id)


def test_an_execution_that_is_lost_before_it_gives_out_an_edited_call_changes_nothing(
    stored: StoredRuns, process: WorkerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The call is in the ledger by then, and the next execution starts what the person wrote."""
    run_id = created(stored, {"delegate_approved": TASK}, delegates=["plain"])
    execution.execute(process, run_id)
    stored.answer(run_id, json.dumps({"decision": "edit", "arguments": EDITED}))

    def lose(*_args: Any, **_named: Any) -> None:
        raise LeaseLost

    with monkeypatch.context() as patch:
        patch.setattr(delegating, "start", lose)
        execution.execute(process, run_id)
    stored.set(run_id, **LOST)

    delegated(stored, process, run_id)

    assert [["edited", False]] == said(stored, run_id)
    assert 1 == len(data(stored, run_id, "run.delegated"))


def test_a_run_does_not_wait_for_results_that_cannot_arrive(
    stored: StoredRuns, process: WorkerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call that the ledger does not have would let it wait and resume without end."""
    run_id = created(stored, {"delegate_recorded": TASK}, delegates=["plain"])
    start = delegating.start

    def start_and_forget(*args: Any, **named: Any) -> None:
        start(*args, **named)
        with stored.connections.transaction() as tx:
            tx.sql.execute(delete(tool_calls).where(tool_calls.c.run_id == run_id))

    monkeypatch.setattr(delegating, "start", start_and_forget)

    execution.execute(process, run_id)

    row = stored.row(run_id)
    assert ("worker.crashed", "No results of sub-runs can arrive for: 'a'.") == (
        row["error_code"],
        row["error_message"],
    )
