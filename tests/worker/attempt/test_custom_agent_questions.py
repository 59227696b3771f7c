"""Questions that a custom agent asks a person."""

import pytest

from arkloop.shared.agents import questions
from arkloop.worker.attempt import execution
from arkloop.worker.process.process import WorkerProcess
from tests.stored_runs import StoredRuns
from tests.worker.attempt.agent_runs import created, process

__all__ = ["process"]  # a fixture


@pytest.mark.parametrize("key", [None, "k"])
def test_an_answered_question_has_no_limits(
    stored: StoredRuns, process: WorkerProcess, monkeypatch: pytest.MonkeyPatch, key: str | None
) -> None:
    """The release that asked it accepted more options, and longer ones."""
    run_id = created(stored, {"ask": "Blue?", "options": ["yes", "no"], "key": key})
    execution.execute(process, run_id)
    stored.answer(run_id, "yes")
    monkeypatch.setattr(questions, "MAX_OPTIONS", 1)

    execution.execute(process, run_id)

    assert [("yes", False)] == stored.messages(run_id)
