"""Questions that a custom agent asks a person."""

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import pytest

from arkloop.shared.agents import questions
from arkloop.shared.agents.agent_run import RunStopped
from arkloop.worker.attempt import execution
from arkloop.worker.attempt.agent_run import InProcessRun
from arkloop.worker.contract.outcomes import WaitForInput
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


@pytest.mark.parametrize(("key", "is_asked"), [("refund of order 7\0", True), ("k" * 129, False)])
def test_a_key_has_the_limits_of_agent_workers(
    stored: StoredRuns, process: WorkerProcess, key: str, is_asked: bool
) -> None:
    """Any text of at most 128 characters is one; NUL is stored as U+FFFD."""
    run_id = created(stored, {"ask": "Sure?", "key": key})
    execution.execute(process, run_id)

    if is_asked:
        stored.answer(run_id, "yes")
        execution.execute(process, run_id)
        assert [("yes", False)] == stored.messages(run_id)
    else:
        row = stored.row(run_id)
        assert ("agent.failed", "The agent failed: ValueError.") == (
            *(row["error_code"], row["error_message"]),
        )


class OpenRun:
    """A record in which each step begins, and code whose calls back are made at once."""

    def begin_step(self, *_: object, **__: object) -> None:
        pass

    def call_back(self, function: Callable[[], Any], **_: object) -> Any:
        return function()


def test_a_step_does_not_begin_after_another_thread_has_asked() -> None:
    """It would be lost: the execution ends with the question."""
    names = [one.name for one in fields(InProcessRun) if one.init and one.name != "stopped"]
    given: dict[str, Any] = dict.fromkeys(names, OpenRun())
    asked = WaitForInput(persona=given["messages"], kind="question", prompt="Go?")
    run = InProcessRun(**given, stopped=asked)
    run.code = given["messages"]
    made: list[str] = []

    with pytest.raises(RunStopped, match="waiting"):
        run.step("pay", {}, lambda: made.append("a"), tool_call_id="a")

    assert [] == made
