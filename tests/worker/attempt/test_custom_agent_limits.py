"""The text with which a custom agent's run lands at a limit, and the calls that are open then."""

import threading
from pathlib import Path
from typing import Any

import pytest

from arkloop.shared.agents.agent_run import UNKNOWN_OUTCOME
from arkloop.shared.agents.transcript import CUT_OFF, NOT_MADE_AT_LIMIT
from arkloop.shared.errors import LeaseLost
from arkloop.shared.events import types
from arkloop.shared.events.usage import Usage
from arkloop.shared.ids import new_id
from arkloop.shared.runs.states import RunState
from arkloop.worker.attempt import execution
from arkloop.worker.contract.outcomes import DeadlineExceeded
from arkloop.worker.process.process import WorkerProcess
from tests.stored_runs import StoredRuns
from tests.waiting import eventually
from tests.worker.attempt.agent_runs import LOST, created, data, process, stopped

__all__ = ["process"]  # a fixture

SAID = "It costs 42 USD."
SEEN = [{"call": "look", "id": "a"}, {"result": "1", "id": "a"}]
TOLD = [{"text": SAID}, {"checkpoint": True}]
MORE = {"call": "look", "id": "b"}
LIMIT = "run.limit_reached"


def landed(stored: StoredRuns, run_id: Any) -> tuple[str, str, list[str], list[tuple[str, bool]]]:
    """Return how the run has ended, the texts of its turns and its messages."""
    row = stored.row(run_id)
    turns = [one["content"] for one in data(stored, run_id, "message.completed")]
    return row["state"], row["stop_reason"], turns, stored.messages(run_id)


@pytest.mark.parametrize(
    ("steps", "limit", "reason"),
    [
        ([*SEEN, *TOLD, MORE], {"max_steps": 1}, "max_steps"),
        ([*SEEN, *TOLD, {"thinking": "Hm."}, MORE], {"max_steps": 1}, "max_steps"),
        ([*SEEN, *TOLD, {"usd": 5}], {"max_cost_usd": 1}, "budget"),
        ([*SEEN, *TOLD, {"reserve": 5}], {"max_cost_usd": 1}, "budget"),
    ],
)
def test_text_that_a_checkpoint_has_finished_is_the_answer(
    stored: StoredRuns,
    process: WorkerProcess,
    steps: list[dict[str, Any]],
    limit: dict[str, Any],
    reason: str,
) -> None:
    """It is the run's text so far, and its last turn: it is not said again."""
    run_id = created(stored, *steps, **limit)

    execution.execute(process, run_id)

    expected = (RunState.COMPLETED, reason, ["", SAID], [(SAID, False)])
    assert expected == landed(stored, run_id)


def test_text_that_a_checkpoint_has_finished_is_the_answer_when_the_time_is_over(
    stored: StoredRuns, process: WorkerProcess
) -> None:
    """As at the other limits."""
    run_id = created(stored, *TOLD, {"wait": 60})

    stopped(process, stored, run_id, DeadlineExceeded(1), after=("message.completed", 1))

    assert (RunState.COMPLETED, "timeout", [SAID], [(SAID, False)]) == landed(stored, run_id)


def test_text_of_a_turn_with_calls_is_no_answer(stored: StoredRuns, process: WorkerProcess) -> None:
    """It announces them: the answer was to come after their results."""
    run_id = created(stored, {"text": "Looking."}, *SEEN, {"usd": 5}, max_cost_usd=1)

    execution.execute(process, run_id)

    [(answer, _)] = stored.messages(run_id)
    assert answer.startswith("No answer: this run reached its limit of cost")


def test_an_execution_that_is_lost_at_the_limit_lands_with_the_text(
    stored: StoredRuns, process: WorkerProcess
) -> None:
    """The next one does not call the agent any more."""
    run_id = created(stored, {"text": "again"})
    claim = stored.held(run_id)
    ended = types.MessageCompleted(str(new_id()), SAID, Usage())
    stored.write(claim, ended, types.RunLimitReached("budget", "Too much."))
    stored.set(run_id, **LOST)

    execution.execute(process, run_id)

    assert (RunState.COMPLETED, "budget", [SAID], [(SAID, False)]) == landed(stored, run_id)


def results(stored: StoredRuns, run_id: Any) -> list[tuple[str, str]]:
    """Return the results of the run's calls, all of which are errors, after all the calls."""
    ended = data(stored, run_id, "tool.result")
    assert all(result["is_error"] for result in ended)
    assert stored.types(run_id).count("tool.call") == len(ended)
    return [(result["tool_call_id"], result["output"]) for result in ended]


def test_calls_that_are_open_when_the_time_is_over_get_results(
    stored: StoredRuns, process: WorkerProcess, tmp_path: Path
) -> None:
    """The thread's next run reads that the payment was perhaps made, and the other one was not."""
    calls = [{"call": "append", "id": id_, "arguments": {"line": id_}} for id_ in ("a", "b")]
    step = {"append": "a", "id": "a", "path": str(tmp_path / "a"), "gate": str(tmp_path / "b")}
    run_id = created(stored, {"text": "I pay."}, *calls, step)

    attempt = threading.Thread(target=execution.execute, args=(process, run_id))
    attempt.start()
    eventually((tmp_path / "a").exists)
    process.active_runs()[run_id].set(DeadlineExceeded(1))
    attempt.join(20)
    (tmp_path / "b").touch()

    assert [("a", CUT_OFF), ("b", NOT_MADE_AT_LIMIT)] == results(stored, run_id)
    state, reason, turns, _ = landed(stored, run_id)
    assert (RunState.COMPLETED, "timeout", "I pay.") == (state, reason, turns[0])


def test_a_call_that_is_made_by_hand_at_a_limit_gets_a_result(
    stored: StoredRuns, process: WorkerProcess
) -> None:
    """It may have had its effect. The result is there before the event of the limit."""
    run_id = created(stored, MORE, {"usd": 5}, max_cost_usd=1)

    execution.execute(process, run_id)

    assert [("b", CUT_OFF)] == results(stored, run_id)
    order = [type_ for type_ in stored.types(run_id) if type_ in ("tool.result", LIMIT)]
    assert ["tool.result", LIMIT] == order


def test_a_call_that_is_open_where_a_later_execution_lands_gets_a_result(
    stored: StoredRuns, process: WorkerProcess
) -> None:
    """A worker was lost as the run reached its limit: the next one does not call the agent."""
    run_id = created(stored, {"text": "again"})
    claim = stored.held(run_id)
    turn = types.MessageCompleted(str(new_id()), "", Usage())
    call = types.ToolCallRequested("a", "pay", {})
    stored.write(claim, turn, call, types.RunLimitReached("budget", "Too much."))
    stored.set(run_id, **LOST)

    execution.execute(process, run_id)

    assert [("a", UNKNOWN_OUTCOME)] == results(stored, run_id)


def test_a_call_that_is_open_when_the_time_of_a_resumed_run_is_over_gets_a_result(
    stored: StoredRuns, process: WorkerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run still waits for its history then, and its agent is not called again."""
    run_id = created(stored, {"call": "pay", "id": "a"}, {"wait": 60})
    stopped(process, stored, run_id, LeaseLost(), after=("tool.call", 1))
    stored.set(run_id, **LOST)

    def late(*_: Any) -> None:
        raise DeadlineExceeded(1)

    monkeypatch.setattr(process.histories, "history_of", late)
    execution.execute(process, run_id)

    assert [("a", UNKNOWN_OUTCOME)] == results(stored, run_id)
    assert (RunState.COMPLETED, "timeout") == landed(stored, run_id)[:2]
