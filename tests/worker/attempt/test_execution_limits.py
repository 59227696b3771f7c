"""The calls of a run that are open when its time is over, and none is left for a last answer."""

from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest

from arkloop.shared.config import Settings
from arkloop.shared.errors import LeaseLost
from arkloop.shared.runs.states import RunState
from arkloop.worker.attempt import execution
from arkloop.worker.contract.outcomes import DeadlineExceeded
from arkloop.worker.process.process import WorkerProcess
from tests.stored_runs import StoredRuns
from tests.worker.attempt.agent_runs import LOST, data, stopped
from tests.worker.attempt.executed_runs import scripted

SLEEP = {"tool": "sleep", "args": {"seconds": 60}}
OVER = "The run's time was over during this call; it may or may not have taken effect."


@pytest.fixture(scope="module")
def settings(settings: Settings) -> Settings:
    """The settings with the tool that takes time."""
    return replace(settings, faults=True)


def landed(stored: StoredRuns, run_id: UUID) -> bool:
    """Return whether the run has ended at its time, and its call with an unknown outcome."""
    row, ended = stored.row(run_id), data(stored, run_id, "tool.result")
    results = [(result["output"], result["is_error"]) for result in ended]
    assert [(OVER, True)] == results
    return (row["state"], row["stop_reason"]) == (RunState.COMPLETED, "timeout")


def test_a_call_in_progress_gets_a_result(stored: StoredRuns, process: WorkerProcess) -> None:
    """The next run of the thread reads of the call, whose effect it may have had."""
    run_id = scripted(stored, SLEEP)

    stopped(process, stored, run_id, DeadlineExceeded(1), after=("tool.call", 1), begun=1)

    assert landed(stored, run_id)


def test_a_call_of_a_lost_attempt_gets_a_result(
    stored: StoredRuns, process: WorkerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time is over before the next attempt has read the history and could make it again."""
    run_id = scripted(stored, SLEEP)
    stopped(process, stored, run_id, LeaseLost(), after=("tool.call", 1), begun=1)
    stored.set(run_id, **LOST)

    def late(*_: Any) -> None:
        raise DeadlineExceeded(1)

    monkeypatch.setattr(process.histories, "history_of", late)
    execution.execute(process, run_id)

    assert landed(stored, run_id)
