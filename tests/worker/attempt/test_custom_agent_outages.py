"""Runs of custom agents in a process that lacks memory or file descriptors."""

from contextlib import nullcontext
from decimal import Decimal

import pytest

from arkloop.shared.events.event_log import data_of
from arkloop.shared.runs.states import RunState
from arkloop.worker.attempt import execution
from arkloop.worker.process.process import WorkerProcess
from tests.no_descriptor import no_descriptor_left
from tests.stored_runs import StoredRuns
from tests.waiting import eventually
from tests.worker.attempt.agent_runs import created, process

__all__ = ["process"]  # a fixture


@pytest.mark.parametrize(("lack", "crashes"), [("memory", 1), ("a file descriptor", 0)])
def test_a_run_whose_agent_lacks_something_is_queued_again(
    stored: StoredRuns,
    process: WorkerProcess,
    caplog: pytest.LogCaptureFixture,
    lack: str,
    crashes: int,
) -> None:
    """It does not fail, also where the agent's framework has wrapped the error.

    The log says where the agent lacked it.
    """
    execution.execute(process, created(stored, {"text": "Hello"}))  # has opened what it keeps open
    run_id = created(stored, {"text": "Hello"}, {"lack": lack})

    with no_descriptor_left() if crashes == 0 else nullcontext():
        execution.execute(process, run_id)

    eventually(lambda: stored.state(run_id) == RunState.QUEUED)
    assert crashes == stored.row(run_id)["crashes"]
    assert "run.failed" not in stored.types(run_id)
    assert "RuntimeError: a framework's" in caplog.text


def test_an_agent_that_handles_its_lack_of_memory_fails(
    stored: StoredRuns, process: WorkerProcess
) -> None:
    """Its own error is its answer: no other attempt is made, and charged."""
    run_id = created(stored, {"usd": 0.5, "model": "m"}, {"refuse": "The document is too large."})

    execution.execute(process, run_id)

    row = stored.row(run_id)
    assert (RunState.FAILED, 0, Decimal("0.5")) == (row["state"], row["crashes"], row["cost_usd"])
    error = data_of(stored.events(run_id)[-1].payload)["error"]
    assert ("agent.failed", "The agent failed: ValueError.") == (error["code"], error["message"])


def test_an_agent_that_takes_all_descriptors_fails(
    stored: StoredRuns, process: WorkerProcess
) -> None:
    """Its run does not come again for ever: the process has descriptors once it has ended."""
    execution.execute(process, created(stored, {"text": "Hello"}))  # has opened what it keeps open
    run_id = created(stored, {"text": "Hello"}, {"take_descriptors": 1000})

    with no_descriptor_left(but=20):
        execution.execute(process, run_id)

    assert RunState.FAILED == stored.state(run_id)
    last = stored.events(run_id)[-1]
    assert "agent.failed" == data_of(last.payload)["error"]["code"]
