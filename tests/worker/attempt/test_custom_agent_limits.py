"""The text with which a custom agent's run lands at a limit."""

from typing import Any

import pytest

from arkloop.shared.events import types
from arkloop.shared.events.usage import Usage
from arkloop.shared.ids import new_id
from arkloop.shared.runs.states import RunState
from arkloop.worker.attempt import execution
from arkloop.worker.contract.outcomes import DeadlineExceeded
from arkloop.worker.process.process import WorkerProcess
from tests.stored_runs import StoredRuns
from tests.worker.attempt.agent_runs import LOST, created, data, process, stopped

__all__ = ["process"]  # a fixture

SAID = "It costs 42 USD."
SEEN = [{"call": "look", "id": "a"}, {"result": "1", "id": "a"}]
TOLD = [{"text": SAID}, {"checkpoint": True}]
MORE = {"call": "look", "id": "b"}


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
    claim = stored.claim(run_id)
    assert claim is not None
    ended = types.MessageCompleted(str(new_id()), SAID, Usage())
    stored.write(claim, ended, types.RunLimitReached("budget", "Too much."))
    stored.set(run_id, **LOST)

    execution.execute(process, run_id)

    assert (RunState.COMPLETED, "budget", [SAID], [(SAID, False)]) == landed(stored, run_id)
